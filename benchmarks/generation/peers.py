"""The peers, each as its own documentation calls it: the notebook's loop, sorted batches of transformers, and CTranslate2."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from benchmarks.generation.contestants import Answer
from benchmarks.generation.work import spread_evenly

CPU_BATCHES, GPU_BATCHES = (16, 8, 32), (256, 128, 512)
# What a batch may hold, and of what kind; the first is kept when nothing is tried.
CPU_LIMITS = (("tokens", 4_096), ("tokens", 8_192), ("examples", 32))
SIDE_BY_SIDE_LIMITS = (("tokens", 2_048), ("tokens", 4_096), ("tokens", 8_192))
GPU_LIMITS = (("examples", 256), ("examples", 128), ("examples", 512))
Setting = TypeVar("Setting")


class Loop:
    """One dialogue at a time, as in the notebook."""

    setting = "batch 1"

    def __init__(self, directory: Path, *, device: str, most_tokens: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self._model = _load(directory, device, "float32")
        self._most_tokens = most_tokens

    def tune(self, prompts: Sequence[str]) -> None:
        """Do nothing: it has one setting."""

    def answer(self, prompts: Sequence[str], most_rows: int) -> Answer:
        """Complete some prompts, spread over all lengths."""
        texts, lengths, written = {}, [], 0
        for row in spread_evenly([len(prompt) for prompt in prompts], most_rows):
            inputs = self._tokenizer(prompts[row], return_tensors="pt").to(self._model.device)
            tokens = self._model.generate(inputs["input_ids"], max_new_tokens=self._most_tokens)[0]
            texts[row] = self._tokenizer.decode(tokens, skip_special_tokens=True).strip()
            lengths.append(inputs["input_ids"].shape[1])
            written += len(tokens) - 1
        return Answer(texts, sum(lengths), written, [[length] for length in lengths])


class SortedBatches:
    """transformers on batches of rows of like length, of the batch size that is fastest."""

    def __init__(self, directory: Path, *, device: str, most_tokens: int) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self._model = _load(directory, device, "float32" if device == "cpu" else "bfloat16")
        self._most_tokens = most_tokens
        self._sizes = CPU_BATCHES if device == "cpu" else GPU_BATCHES
        self.size = self._sizes[0]

    @property
    def setting(self) -> str:
        """The batch size."""
        return f"batch {self.size}"

    def tune(self, prompts: Sequence[str]) -> None:
        """Keep the batch size that is fastest on these prompts."""

        def run(size: int) -> None:
            self.size = size
            self.answer(prompts, len(prompts))

        self.size = _find_fastest(self._sizes, run)

    def answer(self, prompts: Sequence[str], most_rows: int) -> Answer:
        """Complete as many of the batches that all prompts make as come closest to so many rows, spread over all lengths."""
        tokens: list[list[int]] = self._tokenizer(list(prompts))["input_ids"]
        ranked = sorted(range(len(tokens)), key=lambda row: -len(tokens[row]))
        batches = [ranked[start : start + self.size] for start in range(0, len(ranked), self.size)]
        wanted = len(batches) if most_rows >= len(ranked) else max(1, round(most_rows / self.size))
        chosen = [batches[number] for number in spread_evenly(range(len(batches)), wanted)]
        texts, written = {}, 0
        for batch in chosen:
            for row, (text, count) in zip(batch, self._complete([tokens[row] for row in batch]), strict=True):
                texts[row] = text
                written += count
        lengths = [[len(tokens[row]) for row in batch] for batch in chosen]
        return Answer(texts, sum(map(sum, lengths)), written, lengths)

    def _complete(self, rows: list[list[int]]) -> list[tuple[str, int]]:
        inputs = self._tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            written = self._model.generate(**inputs, max_new_tokens=self._most_tokens)[:, 1:].tolist()
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        end = self._tokenizer.eos_token_id
        counts = [tokens.index(end) + 1 if end in tokens else len(tokens) for tokens in written]
        return [(text.strip(), count) for text, count in zip(texts, counts, strict=True)]


class Direct:
    """CTranslate2 with all rows at once, sorted and cut into batches by itself, converted by its own converter."""

    def __init__(self, directory: Path, *, device: str, scratch: Path, most_tokens: int, precision: str, threads: int) -> None:
        # It is not there on every machine with a GPU.
        from ctranslate2.converters import TransformersConverter

        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self._most_tokens = most_tokens
        self._device = device
        self._precision = precision if device == "cpu" or precision != "float32" else "bfloat16"
        self._files = str(scratch)
        TransformersConverter(str(directory)).convert(self._files, force=True)
        limits = CPU_LIMITS if device == "cpu" else GPU_LIMITS
        # (workers, threads of each): batches one after the other, or side by side.
        self._settings = [((1, threads), limit) for limit in limits]
        if device == "cpu" and threads > 1:
            self._settings += [((threads, 1), limit) for limit in SIDE_BY_SIDE_LIMITS]
        self._translators: dict[tuple[int, int], Any] = {}
        self._chosen = self._settings[0]
        self._get_translator(self._chosen[0])

    @property
    def setting(self) -> str:
        """Workers, threads and batches."""
        (workers, threads), (kind, count) = self._chosen
        return f"{workers} x {threads} threads, batches of {count} {kind}"

    def tune(self, prompts: Sequence[str]) -> None:
        """Keep the threads and the limit of a batch that are fastest on these prompts."""

        def run(setting: tuple[tuple[int, int], tuple[str, int]]) -> None:
            self._chosen = setting
            self.answer(prompts, len(prompts))

        self._chosen = _find_fastest(self._settings, run)
        self._translators = {share: made for share, made in self._translators.items() if share == self._chosen[0]}

    def answer(self, prompts: Sequence[str], most_rows: int) -> Answer:
        """Complete all prompts: fewer would leave it less to sort."""
        share, (kind, count) = self._chosen
        read = self._tokenizer(list(prompts))["input_ids"]
        results = self._get_translator(share).translate_batch(
            [self._tokenizer.convert_ids_to_tokens(tokens) for tokens in read],
            beam_size=1,
            max_decoding_length=self._most_tokens,
            max_input_length=0,
            max_batch_size=count,
            batch_type=kind,
            return_end_token=True,
        )
        written = [self._tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        return Answer({n: text.strip() for n, text in enumerate(texts)}, sum(map(len, read)), sum(map(len, written)))

    def _get_translator(self, share: tuple[int, int]) -> Any:
        if share not in self._translators:
            import ctranslate2

            workers, threads = share
            self._translators[share] = ctranslate2.Translator(
                self._files,
                device=self._device,
                compute_type=self._precision,
                inter_threads=workers,
                intra_threads=threads,
            )
        return self._translators[share]


def _find_fastest(settings: Sequence[Setting], run: Callable[[Setting], None]) -> Setting:
    """Return the setting that took the least time."""
    seconds = {}
    for setting in settings:
        begun = time.perf_counter()
        run(setting)
        seconds[setting] = time.perf_counter() - begun
    return min(seconds, key=lambda setting: seconds[setting])


def _load(directory: Path, device: str, dtype: str) -> Any:
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    return model.to(device).eval()
