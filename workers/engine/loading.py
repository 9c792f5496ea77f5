"""Which engine runs a model. An engine's library is imported only when it is asked for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import structlog

from gistmill.errors import ModelError, ModelUnavailable, UnsupportedModel
from gistmill.specs import Precision
from models_store.store import Store
from workers.engine.base import Engine
from workers.engine.fake import DEFAULT_BUDGET_TOKENS, FakeEngine
from workers.engine.t5 import find_obstacle

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
        ModelUnreadable, UnsupportedModel: the directory holds no model that can be run, or not in this precision.
    """
    if engine == "fake":
        return FakeEngine(seconds_per_row=fake_seconds_per_row, budget_tokens=batch_tokens or DEFAULT_BUDGET_TOKENS)
    if precision == "int8":
        raise UnsupportedModel(_no_int8("the engine transformers does not compute in it, and this worker may use no other"))
    from workers.engine.transformers import load

    return load(directory, device=device, precision=precision, threads=threads, budget_tokens=batch_tokens)


def prefers_graph(engine: EngineName, *, device: str) -> bool:
    """Whether `load_greedy_engine` loads the engine graph where it can, which samples too and takes adapters by itself."""
    return engine == "graph" or (engine == "auto" and device == "cuda")


def load_greedy_engine(
    engine: EngineName,
    directory: Path,
    store: Store,
    *,
    device: str,
    precision: Precision,
    adapter: Path | None = None,
    threads: int = 0,
    lanes: int = 0,
    batch_tokens: int = 0,
) -> Engine | None:
    """Load the engine that is faster than `load_engine`'s at greedy decoding of a model, or of one with an adapter, or None.

    On an NVIDIA GPU that is `graph`, which samples as well and takes adapters by itself; on a CPU it is `ctranslate2`, the only
    one with lanes; 0 leaves those to it.

    None means that the other one runs those jobs as well; the log says why, except where nobody would expect another. In int8
    there is no other: what hinders this one is an error.

    Raises:
        ModelUnreadable, UnsupportedModel: the model cannot be run, or not by the one engine that was asked for.
        ModelUnavailable: there is no room for the model now.
    """
    if engine == "graph":
        return _load_graph(directory, device=device, precision=precision, threads=threads, batch_tokens=batch_tokens)
    if prefers_graph(engine, device=device) and precision != "int8":
        return _try_graph(directory, device=device, precision=precision, batch_tokens=batch_tokens)
    if engine not in ("auto", "ctranslate2"):
        return None
    has_no_other = engine == "ctranslate2" or precision == "int8"
    obstacle = _find_obstacle(engine, directory, device=device, precision=precision)
    if obstacle is None:
        from workers.engine.ctranslate2 import load

        try:
            return load(
                directory,
                store,
                adapter=adapter,
                precision=precision,
                threads=threads,
                lanes=lanes,
                budget_tokens=batch_tokens,
            )
        except (ModelError, ModelUnavailable) as error:
            if has_no_other:
                raise
            obstacle = error.message
    if precision == "int8":
        raise UnsupportedModel(_no_int8(obstacle))
    if engine == "ctranslate2":
        raise UnsupportedModel(f"The engine ctranslate2 cannot run this job: {obstacle}. Use the engine auto or transformers.")
    log.info("transformers_instead_of_ctranslate2", digest=directory.name, reason=obstacle)
    return None


def _load_graph(directory: Path, *, device: str, precision: Precision, threads: int, batch_tokens: int) -> Engine:
    if precision == "int8":
        raise UnsupportedModel(_no_int8("the engine graph does not compute in it"))
    from workers.engine.graph.engine import load

    return load(directory, device=device, precision=precision, threads=threads, budget_tokens=batch_tokens)


def _try_graph(directory: Path, *, device: str, precision: Precision, batch_tokens: int) -> Engine | None:
    """Load the engine graph, or return None and log why transformers runs the model instead."""
    obstacle = find_obstacle(directory) if find_spec("triton") else "the package triton is not there"
    if obstacle is None:
        try:
            return _load_graph(directory, device=device, precision=precision, threads=0, batch_tokens=batch_tokens)
        except ModelError as error:
            obstacle = error.message
    log.info("transformers_instead_of_graph", digest=directory.name, reason=obstacle)
    return None


def _find_obstacle(engine: EngineName, directory: Path, *, device: str, precision: Precision) -> str | None:
    if device != "cpu":
        return "it runs on CPUs, and this worker has a GPU"
    if precision == "bfloat16" and engine == "auto":
        # No CPU was at hand on which its texts in bfloat16 could be compared.
        return "it computes in bfloat16 only when it is asked for by name"
    try:
        import ctranslate2  # noqa: F401
    except ImportError as error:
        return f"the package ctranslate2 cannot be imported ({error})"
    from workers.engine.ctranslate2 import is_supported

    if not is_supported(precision):
        return f"this CPU does not compute in {precision}"
    return find_obstacle(directory)


def _no_int8(reason: str) -> str:
    return (
        f"This worker cannot run the job in int8: {reason}. int8 is for greedy decoding of T5 models on a CPU by the engine "
        "ctranslate2. Use --precision native, or workers with GISTMILL_WORKER__ENGINE=auto."
    )
