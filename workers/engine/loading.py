"""Which engine runs a model. The torch engine is imported only when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gistmill.specs import Precision
from workers.engine.base import Engine
from workers.engine.fake import DEFAULT_BUDGET_TOKENS, FakeEngine


def load_engine(
    engine: Literal["auto", "transformers", "fake"],
    directory: Path,
    *,
    device: str,
    precision: Precision,
    threads: int = 0,
    batch_tokens: int = 0,
    fake_seconds_per_row: float = 0.0,
) -> Engine:
    """Load the model of a directory; "auto" is the fastest engine that runs every model here, today transformers.

    0 leaves threads and the token budget of a batch to the engine. The fake engine reads no file.

    Raises:
        InvalidSpec: the precision is not offered.
        ModelUnreadable, UnsupportedModel: the directory holds no model that can be run.
    """
    if engine == "fake":
        return FakeEngine(seconds_per_row=fake_seconds_per_row, budget_tokens=batch_tokens or DEFAULT_BUDGET_TOKENS)
    from workers.engine.transformers import load

    return load(directory, device=device, precision=precision, threads=threads, budget_tokens=batch_tokens)
