"""The engine graph: our own T5 decode, greedy and sampled, with rows that join and leave in flight."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch

from gistmill.errors import ModelUnavailable, UnsupportedModel
from gistmill.specs import GenerationParameters, Precision
from workers.engine.base import Engine, Failure, More, Outcome, Row
from workers.engine.checkpoint import LoadedModel, load_model, resolve_dtype
from workers.engine.graph.adapters import AdaptedEngine, Merger
from workers.engine.graph.arena import Arena, Ending
from workers.engine.graph.desk import Desk
from workers.engine.graph.lane import EagerLane, Lane, Side
from workers.engine.graph.operations import Operations, TorchOperations
from workers.engine.graph.step import Choice, choose_best, choose_by_noise
from workers.engine.graph.stream import Stream
from workers.engine.graph.weights import T5Weights, take_weights
from workers.engine.reading import ReadingEngine
from workers.engine.sampling import warpers
from workers.engine.t5 import find_obstacle
from workers.engine.tokenizing import ModelTokenizer, completed
from workers.engine.transformers import not_finite

CPU_BUDGET_TOKENS, CPU_MAX_ROWS = 32_768, 32
GPU_BUDGET_TOKENS, GPU_MAX_ROWS = 1_179_648, 1_024
GPU_PAGE_ROWS = 8 * GPU_MAX_ROWS


def load(directory: Path, *, device: str, precision: Precision, threads: int = 0, budget_tokens: int = 0) -> GraphEngine:
    """Load a T5 from a local directory; 0 leaves the threads of torch as they are and chooses the budget by device.

    Raises:
        InvalidSpec: the precision is not offered.
        ModelUnreadable, UnsupportedModel: the directory holds no model that this engine runs.
        ModelUnavailable: the device has no room for the model now.
    """
    if obstacle := find_obstacle(directory):
        raise UnsupportedModel(f"The engine graph cannot run this model: {obstacle}. Use the engine auto or transformers.")
    if threads:
        torch.set_num_threads(threads)
    # It is read on the host, so that the device holds it once.
    dtype: Precision = "float32" if resolve_dtype(precision, device) == torch.float32 else "bfloat16"
    loaded = load_model(directory, device="cpu", precision=dtype)
    return GraphEngine(loaded, device=device, budget_tokens=budget_tokens, directory=directory)


class GraphEngine(ReadingEngine):
    """Greedy and sampled decoding of a T5; beams are another engine's work.

    The texts are those of `transformers`, token for token in float32. A list of outcomes holds the rows that have left since
    the last one, while others are in flight. An adapter is merged into the weights when its rows come.
    """

    name = "graph"

    def __init__(
        self, loaded: LoadedModel, *, device: str = "cpu", budget_tokens: int = 0, directory: Path | None = None
    ) -> None:
        start, ends = _read_special_tokens(loaded)
        weights = take_weights(loaded.model, _operations(device), device=device)
        self._tokenizer = ModelTokenizer(loaded.tokenizer, weights.shape.vocabulary)
        self._ends = frozenset(ends)
        self._directory = directory
        self.device = str(weights.embedding.device)
        self.dtype = str(weights.embedding.dtype).removeprefix("torch.")
        self._base_bytes = self.weight_bytes = weights.bytes
        self._desk = Desk(
            weights,
            _make_lane,
            start=start,
            ends=ends,
            budget_tokens=budget_tokens or _default_budget(weights),
            max_rows=CPU_MAX_ROWS if self.device == "cpu" else GPU_MAX_ROWS,
            side=_make_side(weights),
        )
        if self.device != "cpu":
            self.page_rows = GPU_PAGE_ROWS

    def add_adapter(self, digest: str, directory: Path) -> None:
        """Read the adapter of a directory; on a CPU it counts in `weight_bytes` until it is removed.

        Raises:
            ModelUnreadable, UnsupportedModel: it is no adapter of this base.
        """
        if self._desk.merger is None:
            assert self._directory is not None, "the engine was made without its files"
            self._desk.merger = Merger(self._desk.weights, self._directory)
        self._desk.merger.add(digest, directory)
        self._weigh()

    def adapted(self, digest: str) -> Engine:
        """Return the engine of the base with this adapter; it ends with the base's."""
        return AdaptedEngine(self, partial(self.complete, adapter=digest), self._encode)

    def remove_adapter(self, digest: str) -> None:
        """Forget an adapter; rows in flight go back first."""
        self._desk.clear()
        if self._desk.merger is not None:
            self._desk.merger.remove(digest)
            self._weigh()

    def close(self) -> None:
        """Give the model's memory back."""
        desk = self._desk
        del self._desk
        desk.give_back_memory()
        gc.collect()

    def _weigh(self) -> None:
        # On a GPU adapters wait on the host, and merging takes no memory of the device.
        assert self._desk.merger is not None
        self.weight_bytes = self._base_bytes + (self._desk.merger.bytes if self.device == "cpu" else 0)

    def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        return self._tokenizer.encode(texts, limit)

    def complete(
        self,
        rows: Sequence[Row],
        parameters: GenerationParameters,
        should_stop: Callable[[], bool],
        more: More | None = None,
        *,
        adapter: str | None = None,
    ) -> Iterator[list[Outcome]]:
        """Yield outcomes as rows end, with the weights of an adapter when one is named; see `Engine.complete`."""
        assert parameters.num_beams == 1, "this engine decodes one text per row"
        stream = Stream(self._desk, parameters, _choice(parameters), self._finish, adapter=adapter, more=more)
        stream.add(rows)
        return stream.run(should_stop)

    def _finish(self, ended: Sequence[tuple[Row, Ending]]) -> list[Outcome]:
        texts = self._tokenizer.decode_all([ending.tokens for _, ending in ended])
        return [
            completed(row, ending.tokens, text, self._ends)
            if ending.bad_step is None
            else Failure(row.prompt.key, not_finite(ending.bad_step))
            for (row, ending), text in zip(ended, texts, strict=True)
        ]


def _operations(device: str) -> Operations:
    """Return the operations of a device, after a trial of those that are compiled there.

    Raises:
        UnsupportedModel: they cannot be compiled.
    """
    if device == "cpu":
        return TorchOperations()
    try:
        from workers.engine.graph.kernels import TritonOperations

        operations = TritonOperations()
        operations.normalize(torch.ones(1, 8, device=device), torch.ones(8, device=device), 1e-6)
    except torch.OutOfMemoryError as error:
        raise ModelUnavailable(f"The device {device} has no room for the model now. Trying again is safe.") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise UnsupportedModel(
            f"The engine graph cannot compile its kernels here: {error}. Triton and a C compiler have to be installed; or use "
            "the engine transformers."
        ) from error
    return operations


def _make_lane(weights: T5Weights, arena: Arena, choice: Choice) -> Lane:
    if not weights.embedding.is_cuda:
        return EagerLane(weights, arena, choice)
    from workers.engine.graph.cuda import CudaLane

    return CudaLane(weights, arena, choice)


def _make_side(weights: T5Weights) -> Side | None:
    if not weights.embedding.is_cuda:
        return None
    from workers.engine.graph.cuda import CudaSide

    return CudaSide()


def _default_budget(weights: T5Weights) -> int:
    if not weights.embedding.is_cuda:
        return CPU_BUDGET_TOKENS
    from workers.engine.graph.cuda import budget_tokens

    return budget_tokens(weights, GPU_BUDGET_TOKENS)


@lru_cache(maxsize=16)
def _choose_by(temperature: float, top_k: int, top_p: float) -> Choice:
    """Return one choice for equal parameters, for what a lane has recorded is found by it."""
    parameters = GenerationParameters(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p)
    return partial(choose_by_noise, warp=warpers(parameters))


def _choice(parameters: GenerationParameters) -> Choice:
    if not parameters.do_sample:
        return choose_best
    return _choose_by(parameters.temperature, parameters.top_k, parameters.top_p)


def _read_special_tokens(loaded: LoadedModel) -> tuple[int, list[int]]:
    """Return the token that every text starts from, and those that end one."""
    special = loaded.special_tokens
    if "forced_bos_token_id" in special:
        raise UnsupportedModel("The engine graph runs no model with a forced first token. Use the engine auto or transformers.")
    start, ends = special.get("decoder_start_token_id", special.get("bos_token_id")), special.get("eos_token_id", [])
    assert isinstance(start, int), "load_model takes no model without a start token"
    return start, ends if isinstance(ends, list) else [ends]
