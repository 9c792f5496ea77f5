"""Which engine runs a model. An engine's library is imported only when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import structlog

from gistmill.errors import ModelError, ModelUnavailable, UnsupportedModel
from gistmill.specs import Precision
from models_store.store import Store
from workers.engine.base import Engine
from workers.engine.fake import DEFAULT_BUDGET_TOKENS, FakeEngine

log = structlog.get_logger(__name__)

EngineName = Literal["auto", "transformers", "ctranslate2", "graph", "fake"]


def load_engine(
    engine: EngineName,
    directory: Path,
    *,
    device: str,
    precision: Precision,
    threads: int = 0,
    batch_tokens: int = 0,
    fake_seconds_per_row: float = 0.0,
) -> Engine:
    """Load the engine that runs every job on the model of a directory: transformers, save where the fake one is asked for.

    0 leaves threads and the token budget of a batch to the engine. The fake engine reads no file.

    Raises:
        InvalidSpec: the precision is not offered.
        ModelUnreadable, UnsupportedModel: the directory holds no model that can be run.
    """
    if engine == "fake":
        return FakeEngine(seconds_per_row=fake_seconds_per_row, budget_tokens=batch_tokens or DEFAULT_BUDGET_TOKENS)
    from workers.engine.transformers import load

    return load(directory, device=device, precision=precision, threads=threads, budget_tokens=batch_tokens)


def load_greedy_engine(
    engine: EngineName,
    directory: Path,
    store: Store,
    *,
    device: str,
    precision: Precision,
    threads: int = 0,
    batch_tokens: int = 0,
) -> Engine | None:
    """Load the engine that is faster than `load_engine`'s at greedy decoding of a whole model, or return None.

    None means that the other one runs those jobs as well; the log says why, except where nobody would expect another.

    Raises:
        ModelUnreadable, UnsupportedModel: the model cannot be run, or not by the one engine that was asked for.
        ModelUnavailable: there is no room for the model now.
    """
    if engine == "graph":
        return _load_graph(directory, device=device, precision=precision, threads=threads, batch_tokens=batch_tokens)
    if engine not in ("auto", "ctranslate2") or (engine == "auto" and device != "cpu"):
        return None
    obstacle = _find_obstacle(directory, device=device, precision=precision)
    if obstacle is None:
        from workers.engine.ctranslate2 import load

        try:
            return load(directory, store, threads=threads, budget_tokens=batch_tokens)
        except (ModelError, ModelUnavailable) as error:
            if engine == "ctranslate2":
                raise
            obstacle = error.message
    if engine == "ctranslate2":
        raise UnsupportedModel(f"The engine ctranslate2 cannot run this job: {obstacle}. Use the engine auto or transformers.")
    log.info("transformers_instead_of_ctranslate2", digest=directory.name, reason=obstacle)
    return None


def _load_graph(directory: Path, *, device: str, precision: Precision, threads: int, batch_tokens: int) -> Engine:
    from workers.engine.graph.engine import load

    return load(directory, device=device, precision=precision, threads=threads, budget_tokens=batch_tokens)


def _find_obstacle(directory: Path, *, device: str, precision: Precision) -> str | None:
    if device != "cpu":
        return "it runs on CPUs, and this worker has a GPU"
    if precision not in ("native", "float32"):
        return f"it computes in float32, and the job asks for {precision}"
    try:
        import ctranslate2  # noqa: F401
    except ImportError as error:
        return f"the package ctranslate2 cannot be imported ({error})"
    from workers.engine.conversion import find_obstacle

    return find_obstacle(directory)
