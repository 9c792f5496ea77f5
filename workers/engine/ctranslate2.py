"""The fast engine for CPUs: greedy decoding of T5 models by CTranslate2, in float32 unless a job asks otherwise.

How its threads are shared and how large a batch is, it finds out by itself; see tuning.py.

In float32 it writes the tokens of the transformers engine, save where the two best scores of a step are all but equal. Rows
that have ended leave the batch, which transformers goes on computing.
"""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ctranslate2
import structlog
import torch

from gistmill.errors import ModelUnreadable
from gistmill.specs import GenerationParameters, Precision, combined_digest
from models_store import converted
from models_store.store import Store
from workers.engine import conversion
from workers.engine.base import Failure, Outcome, Row
from workers.engine.batched import BatchFailed
from workers.engine.checkpoint import load_tokenizer
from workers.engine.conversion import ComputeType
from workers.engine.tokenizing import ModelTokenizer, completed
from workers.engine.transformers import FORWARD_ERRORS, blame, not_finite
from workers.engine.tuned import TunedEngine
from workers.engine.tuning import Setting, Tuner, list_lanes
from workers.engine.tuning_notes import Key, Notebook, describe_cpu

log = structlog.get_logger(__name__)

# A step of decoding reads all weights however few rows it is for, so larger batches are faster until they outgrow the caches:
# where that is differs between machines (ADR 16). What is tried takes about ten seconds at the 64 GFLOP/s a thread that this
# is, and half of it; no more, for so often results are committed, and a batch gives no sign of life before its first step,
# which a machine that others use must reach within the 60 s of `generate_stall_s`. All lanes together hold a limited number.
LEAST_TOKENS, MOST_TOKENS, MOST_TOKENS_AT_ONCE = 512, 8_192, 32_768
FLOP_PER_THREAD = 640e9
MAX_ROWS = 64
# The attention scores of a head that a lane holds at once: those of a row of 2,048 tokens. With long rows, more gains little.
MAX_SCORES = 2_048**2
# On CPUs CTranslate2 takes int8 and int8_float32 for the same thing: what is not a matrix stays in float32.
COMPUTE_TYPES: dict[Precision, ComputeType] = {
    "native": "float32",
    "float32": "float32",
    "bfloat16": "bfloat16",
    "int8": "int8_float32",
}
DTYPES: dict[ComputeType, str] = {"float32": "float32", "bfloat16": "bfloat16", "int8_float32": "int8"}
WEIGHT_BYTES: dict[ComputeType, int] = {"float32": 4, "bfloat16": 2, "int8_float32": 1}


def is_supported(precision: Precision) -> bool:
    """Say whether this CPU computes in a precision without another one taking its place."""
    return COMPUTE_TYPES[precision] in ctranslate2.get_supported_compute_types("cpu")


def load(
    directory: Path,
    store: Store,
    *,
    adapter: Path | None = None,
    precision: Precision = "native",
    threads: int = 0,
    lanes: int = 0,
    budget_tokens: int = 0,
) -> CTranslate2Engine:
    """Load the model of a store's directory, converted now if no process of this host has done so; 0 leaves the choice to us.

    In how many lanes the threads are split, and the token budget of a batch, are then what is fastest on this host; while that
    is not known, the engine tries it on the rows that it completes.

    With an adapter it is the whole model that both make.

    Raises:
        ModelUnreadable, UnsupportedModel: the directory holds no model that can be run, or the adapter is not one of it.
        ModelUnavailable: the disk does not take the converted model now.
    """
    compute_type = COMPUTE_TYPES[precision]
    files = converted.get(
        store,
        directory,
        f"{compute_type}-{conversion.VERSION}",
        partial(conversion.convert, compute_type=compute_type, adapter=adapter),
        digest=combined_digest(directory.name, None if adapter is None else adapter.name),
    )
    threads = threads or torch.get_num_threads()
    size = (files / "model.bin").stat().st_size
    settings = _list_settings(threads, size // WEIGHT_BYTES[compute_type], lanes=lanes, budget_tokens=budget_tokens)
    tuner = Tuner(settings, Notebook(store, _key(compute_type, size, threads)), max_rows=MAX_ROWS)
    lanes, budget_tokens = tuner.best_known
    return CTranslate2Engine(
        directory,
        files,
        compute_type=compute_type,
        threads=threads,
        lanes=lanes,
        budget_tokens=budget_tokens,
        tuner=None if tuner.chosen or len(settings) == 1 else tuner,
    )


class CTranslate2Engine(TunedEngine):
    """Greedy decoding by CTranslate2; beams and sampling are another engine's work.

    Its beams prune differently from transformers', and its sampling draws from a noise that belongs to the batch.
    """

    name = "ctranslate2"
    device = "cpu"
    max_rows = MAX_ROWS
    max_scores = MAX_SCORES

    def __init__(
        self,
        directory: Path,
        files: Path,
        *,
        compute_type: ComputeType = "float32",
        threads: int,
        lanes: int = 1,
        budget_tokens: int,
        tuner: Tuner | None = None,
    ) -> None:
        tokens = json.loads((files / conversion.TOKENS_FILE).read_text(encoding="utf-8"))
        self._tokenizer = ModelTokenizer(load_tokenizer(directory), tokens["vocabulary"])
        self._names = [str(token) for token in range(tokens["vocabulary"])]
        self._ends: list[int] = tokens["ends"]
        self._load = partial(_load_translator, files, compute_type, threads=threads)
        self._translator = self._load(lanes=lanes)
        self.lanes = lanes
        self.tuner = tuner
        self.dtype = DTYPES[compute_type]
        self.weight_bytes = (files / "model.bin").stat().st_size
        self.budget_tokens = budget_tokens

    def close(self) -> None:
        """Give the model's memory back."""
        self._translator.unload_model()
        del self._translator
        gc.collect()

    def _adopt(self, setting: Setting) -> bool:
        """Work by this setting from here on, or return False when the model cannot be loaded for it.

        For a moment it is there twice: its files may be gone, or memory short, and then the one that is there goes on.
        """
        if setting.lanes != self.lanes:
            try:
                translator = self._load(lanes=setting.lanes)
            except (ModelUnreadable, MemoryError) as error:
                log.warning("lanes_not_changed", lanes=setting.lanes, reason=str(error)[:300])
                return False
            self._translator.unload_model()
            self._translator = translator
        self.lanes, self.budget_tokens = setting
        return True

    def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        return self._tokenizer.encode(texts, limit)

    def _forward(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        assert parameters.is_greedy, "this engine decodes greedily"
        watch = _StepWatch(should_stop)
        try:
            written = self._translate(rows, parameters, watch)
        except FORWARD_ERRORS as error:
            failed = BatchFailed(blame(error, rows))
        else:
            if watch.is_stopped:
                return None
            return [self._outcome(row, tokens, watch.bad_steps.get(n)) for n, (row, tokens) in enumerate(written)]
        finally:
            watch.let_go()
        raise failed

    def _translate(
        self, rows: Sequence[Row], parameters: GenerationParameters, watch: _StepWatch
    ) -> list[tuple[Row, list[int]]]:
        results = self._translator.translate_batch(
            [[self._names[token] for token in row.tokens] for row in rows],
            beam_size=1,
            max_decoding_length=parameters.max_new_tokens,
            # Its own defaults would keep the end token from being the first and cut the input at 1,024 tokens.
            min_decoding_length=0,
            max_input_length=0,
            end_token=self._ends,
            return_end_token=True,
            # The watch looks at them; they took no time that could be measured.
            return_scores=True,
            callback=watch,
        )
        return [(row, [int(name) for name in result.hypotheses[0]]) for row, result in zip(rows, results, strict=True)]

    def _outcome(self, row: Row, tokens: list[int], bad_step: int | None) -> Outcome:
        if bad_step is not None:
            return Failure(row.prompt.key, not_finite(bad_step))
        return completed(row, tokens, self._tokenizer.decode(tokens), self._ends)


class _StepWatch:
    """Is called by CTranslate2 for every token of every row; asks once per step whether to stop, and then ends all rows.

    `bad_steps` has the first step at which the score of a row was no number.

    CTranslate2's thread keeps it until a little after the call that it was for. Were it to hold the engine then, by what asks
    whether to stop, and be the last to, that thread would end the translator that it belongs to, and with it the process:
    "terminate called after throwing an instance of 'std::system_error', what(): Resource deadlock avoided".
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self._step = -1
        self.is_stopped = False
        self.bad_steps: dict[int, int] = {}

    def let_go(self) -> None:
        """Hold nothing of the caller's any more; the call is over."""
        self._should_stop = lambda: True

    def __call__(self, token: Any) -> bool:
        if token.step != self._step:
            self._step = token.step
            self.is_stopped = self.is_stopped or self._should_stop()
        if not math.isfinite(token.log_prob):
            self.bad_steps.setdefault(token.batch_id, token.step)
        return self.is_stopped


def _list_settings(threads: int, parameters: int, *, lanes: int, budget_tokens: int) -> list[Setting]:
    """Return the settings to try, the one to begin with first. What the user has set is not tried otherwise."""
    settings = []
    for number in [min(lanes, threads)] if lanes else list_lanes(threads):
        most = _most_tokens(threads, lanes=number, parameters=parameters)
        budgets = [budget_tokens] if budget_tokens else sorted({max(most // 2, LEAST_TOKENS), most})
        settings += [Setting(number, budget) for budget in budgets]
    return settings


def _key(compute_type: ComputeType, weight_bytes: int, threads: int) -> Key:
    return Key(
        engine=CTranslate2Engine.name,
        engine_version=ctranslate2.__version__,
        compute_type=compute_type,
        weight_mib=round(weight_bytes / 2**20),
        threads=threads,
        cpu=describe_cpu(),
        cores=os.cpu_count() or 1,
    )


def _most_tokens(threads: int, *, lanes: int, parameters: int) -> int:
    """Return the largest budget that a lane is tried with."""
    # As everywhere on CPUs, a token costs about one FLOP per parameter.
    affordable = int(FLOP_PER_THREAD * (threads // lanes) / max(1, parameters))
    return max(min(affordable, MOST_TOKENS, MOST_TOKENS_AT_ONCE // lanes), LEAST_TOKENS)


def _load_translator(files: Path, compute_type: ComputeType, *, lanes: int, threads: int) -> Any:
    """Load the model once for all lanes, which share the threads and the weights."""
    try:
        return ctranslate2.Translator(
            str(files), device="cpu", compute_type=compute_type, inter_threads=lanes, intra_threads=max(1, threads // lanes)
        )
    except (RuntimeError, ValueError) as error:
        raise ModelUnreadable(f"CTranslate2 cannot read the converted model {files.name}: {str(error)[:300]}") from error
