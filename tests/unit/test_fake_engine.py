"""The fake engine: the knobs that tests and fault drills turn."""

from __future__ import annotations

import subprocess
import sys
import time

from gistmill.errors import GenerationFailed
from gistmill.specs import GenerationParameters
from workers.engine.base import Completion, Failure, Outcome, Prompt
from workers.engine.fake import FakeEngine

GREEDY = GenerationParameters(max_new_tokens=40)


def run(engine: FakeEngine, texts: list[str], parameters: GenerationParameters = GREEDY) -> list[list[Outcome]]:
    prompts = [Prompt(key, text) for key, text in enumerate(texts)]
    return list(engine.generate(prompts, parameters, max_input_tokens=2048, on_overflow="fail", should_stop=lambda: False))


def test_text_follows_from_the_prompt_and_tells_prompts_apart() -> None:
    (first,), (again,) = run(FakeEngine(), ["Anna lost her cat"]), run(FakeEngine(), ["Anna lost her cat"])
    texts = {outcome.text for batch in run(FakeEngine(), ["a b c d e f 1", "a b c d e f 2"]) for outcome in batch}  # type: ignore[union-attr]

    assert first == again
    assert isinstance(first[0], Completion)
    assert first[0].text.startswith("summary of Anna lost her cat ")
    assert len(texts) == 2


def test_tokens_are_words_and_the_end_counts_as_one() -> None:
    ((whole,),) = run(FakeEngine(), ["Anna lost"])
    ((cut,),) = run(FakeEngine(), ["Anna lost"], GenerationParameters(max_new_tokens=3))

    assert isinstance(whole, Completion)
    assert isinstance(cut, Completion)
    assert (whole.tokens_in, whole.tokens_out, whole.finish_reason) == (2, 6, "stop")
    assert (cut.text, cut.tokens_out, cut.finish_reason) == ("summary of Anna", 3, "length")


def test_poisoned_row_fails_alone() -> None:
    outcomes = {o.key: o for batch in run(FakeEngine(), ["a", "b [[poison]]", "c", "d"]) for o in batch}

    assert [type(outcomes[key]) for key in range(4)] == [Completion, Failure, Completion, Completion]
    assert isinstance(outcomes[1].error, GenerationFailed)  # type: ignore[union-attr]


def test_batches_are_halved_when_memory_runs_out() -> None:
    batches = run(FakeEngine(out_of_memory_over_rows=2, max_rows=8), ["word"] * 8)

    assert [len(batch) for batch in batches] == [2, 2, 2, 2]


def test_rows_take_their_time_and_a_stop_is_seen_within_50_ms() -> None:
    asked: list[float] = []

    def stop_at_fourth() -> bool:
        asked.append(time.monotonic())
        return len(asked) >= 6

    engine = FakeEngine(seconds_per_row=60.0)
    started = time.monotonic()

    batches = list(
        engine.generate([Prompt(0, "a")], GREEDY, max_input_tokens=9, on_overflow="fail", should_stop=stop_at_fourth)
    )

    assert batches == []
    assert time.monotonic() - started < 5
    assert asked[-1] - started >= 3 * 0.04


def test_fake_worker_never_imports_torch() -> None:
    program = (
        "import sys; from pathlib import Path; from workers.engine.loading import load_engine;"
        "load_engine('fake', Path('nowhere'), device='cpu', precision='native');"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
