"""Datasets of the Hugging Face hub, brought into a JSON Lines file."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gistmill.errors import InvalidDataset, InvalidName, Unavailable, UnknownDataset

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def download(hub_id: str, split: str | None, target: Path) -> None:
    """Write the rows of one split as JSON Lines.

    Raises:
        InvalidName: it is no hub id, or `datasets` would take it for files of this machine.
        InvalidDataset: it cannot be loaded, there is no such split, or there are several and none was named.
        UnknownDataset: the hub has no such dataset, or none that this machine may read.
        Unavailable: the hub cannot be reached.
    """
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    # `datasets` looks for a folder of this name first, and takes "json" or "csv" for a reader of the working directory.
    if not HUB_ID.fullmatch(hub_id) or hub_id in _PACKAGED_DATASETS_MODULES or Path(hub_id).exists():
        raise InvalidName(f"'{hub_id[:80]}' cannot be used as a hub id. Write owner/name, as in knkarthick/dialogsum.")
    write_split(hub_id, split, target)


def write_split(source: str, split: str | None, target: Path) -> None:
    """Write the rows of one split as JSON Lines; `source` is trusted and may also be a folder of this machine.

    Raises:
        InvalidDataset, UnknownDataset, Unavailable: as for `download`.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(source)
    except DatasetNotFoundError as error:
        raise UnknownDataset(f"The hub has no dataset {source} that this machine may read: {_first_line(error)}.") from error
    except DatasetsError as error:
        raise _unreadable(source, error) from error
    except (HfHubHTTPError, OSError) as error:
        raise Unavailable(
            f"The dataset {source} could not be loaded from the hub: {_first_line(error)}. "
            "Try again, or download it where the hub can be reached, and submit the file."
        ) from error
    except (ValueError, RuntimeError) as error:
        raise _unreadable(source, error) from error
    names = list(loaded)
    if split is None and len(names) == 1:
        split = names[0]
    if split not in names:
        asked = f"no split '{split}'" if split else "several splits"
        raise InvalidDataset(f"The dataset {source} has {asked}. Name one: {', '.join(f'{source}:{name}' for name in names)}.")
    with target.open("w", encoding="utf-8") as file:
        for row in loaded[split]:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _unreadable(source: str, error: Exception) -> InvalidDataset:
    advice = "Export it as JSON Lines, CSV or Parquet, and submit the file."
    return InvalidDataset(f"The dataset {source} cannot be read: {_first_line(error)}. {advice}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(" .")
