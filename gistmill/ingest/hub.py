"""Datasets of the Hugging Face hub, or saved ones of a local mirror, brought into a JSON Lines file."""

from __future__ import annotations

import json
from pathlib import Path

from gistmill.errors import InvalidDataset, Unavailable


def download(hub_id: str, split: str | None, target: Path) -> None:
    """Write the rows of one split as JSON Lines.

    Raises:
        InvalidDataset: there is no such split, or several and none was named.
        Unavailable: the hub cannot be reached or has no such dataset.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        loaded = datasets.load_dataset(hub_id)
    except (DatasetNotFoundError, HfHubHTTPError, ConnectionError, OSError) as error:
        raise Unavailable(
            f"The dataset {hub_id} could not be loaded from the hub: {str(error).splitlines()[0]}. "
            "Download it where the hub can be reached, and submit the file."
        ) from error
    names = list(loaded)
    if split is None and len(names) == 1:
        split = names[0]
    if split not in names:
        asked = f"no split '{split}'" if split else "several splits"
        raise InvalidDataset(f"The dataset {hub_id} has {asked}. Name one: {', '.join(f'{hub_id}:{name}' for name in names)}.")
    with target.open("w", encoding="utf-8") as file:
        for row in loaded[split]:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
