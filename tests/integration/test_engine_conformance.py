"""One suite over every engine: the same promises for the fake and the real thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gistmill.errors import GenerationFailed, InputTooLong
from gistmill.specs import GenerationParameters, Overflow, Precision
from models_store.store import Store
from tests.support.models import dialogues, make_tiny_bart, make_tiny_t5
from workers.engine.base import Completion, Engine, Failure, Outcome, Prompt, Row
from workers.engine.ctranslate2 import load as load_converted
from workers.engine.fake import FakeEngine
from workers.engine.graph.engine import load as load_graph
from workers.engine.loading import load_engine

GIST_TINY = Path(__file__).parents[2] / "models_store" / "builtin" / "gist-tiny"
GREEDY = GenerationParameters(max_new_tokens=40)
SAMPLED = GenerationParameters(max_new_tokens=40, do_sample=True, temperature=1.3, top_p=0.95, top_k=50, seed=7)
BEAMS = GenerationParameters(max_new_tokens=24, num_beams=3)


def never() -> bool:
    return False


class Countdown:
    """A should_stop that says True from the n-th question on, and counts the questions."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked >= self.n


class Pages:
    """What `more` gives: these pages one after another, of which an empty one is not ready yet, and then None, once."""

    def __init__(self, *pages: Sequence[Row]) -> None:
        self.left: list[Sequence[Row] | None] = [*pages, None]

    def __call__(self) -> Sequence[Row] | None:
        return self.left.pop(0)


def read(engine: Engine, prompts: Sequence[Prompt]) -> list[Row]:
    found = engine.read(prompts, max_input_tokens=2048, on_overflow="fail", should_stop=never)
    return [item for item in found if isinstance(item, Row)]


def feed(
    engine: Engine,
    pages: Sequence[Sequence[Prompt]],
    parameters: GenerationParameters = GREEDY,
    should_stop: Callable[[], bool] = never,
) -> list[list[Outcome]]:
    """Return the lists of outcomes of a stream whose first rows are those of the first page; skip what never reaches it."""
    skip_what_never_reaches(engine, parameters)
    first, *later = (read(engine, page) for page in pages)
    return list(engine.complete(first, parameters, should_stop, Pages(*later)))


def skip_what_never_reaches(engine: Engine, parameters: GenerationParameters) -> None:
    if engine.name == "ctranslate2" and not parameters.is_greedy:
        pytest.skip("this engine decodes greedily; beams and sampling never reach it")
    if engine.name == "graph" and parameters.num_beams > 1:
        pytest.skip("this engine has no beams; they never reach it")


def complete(
    engine: Engine,
    prompts: list[Prompt],
    parameters: GenerationParameters = GREEDY,
    *,
    max_input_tokens: int = 2048,
    on_overflow: Overflow = "fail",
    should_stop: Callable[[], bool] = never,
) -> dict[int, Outcome]:
    skip_what_never_reaches(engine, parameters)
    batches = engine.generate(
        prompts, parameters, max_input_tokens=max_input_tokens, on_overflow=on_overflow, should_stop=should_stop
    )
    outcomes = [outcome for batch in batches for outcome in batch]
    by_key = {outcome.key: outcome for outcome in outcomes}
    assert len(by_key) == len(outcomes), "a prompt has two outcomes"
    return by_key


def prompts_of(texts: list[str]) -> list[Prompt]:
    return [Prompt(key, text, noise=(f"digest-{key}", 0)) for key, text in enumerate(texts)]


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        "tiny-t5",
        "tiny-bart",
        "gist-tiny",
        "ctranslate2 tiny-t5",
        "ctranslate2 gist-tiny",
        "ctranslate2 lanes gist-tiny",
        "graph tiny-t5",
        "graph gist-tiny",
        "ctranslate2 int8 tiny-t5",
        "ctranslate2 int8 lanes tiny-t5",
    ],
)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    if request.param == "fake":
        return FakeEngine()
    *how, model = request.param.split()
    if model == "gist-tiny":
        if not (GIST_TINY / "config.json").exists():
            pytest.skip("gist-tiny is not built")
        directory = GIST_TINY
    else:
        make = {"tiny-t5": make_tiny_t5, "tiny-bart": make_tiny_bart}[model]
        directory = make(tmp_path_factory.mktemp("model"))
    # A small budget, so that 40 prompts are several micro-batches.
    if "graph" in how:
        return load_graph(directory, device="cpu", precision="float32", budget_tokens=600)
    if how:
        precision: Precision = "int8" if "int8" in how else "float32"
        home = tmp_path_factory.mktemp("store")
        lanes = 2 if "lanes" in how else 1
        return load_converted(directory, Store(home), precision=precision, threads=lanes, lanes=lanes, budget_tokens=600)
    return load_engine("transformers", directory, device="cpu", precision="float32", batch_tokens=600)


@pytest.fixture
def prompts() -> list[Prompt]:
    return prompts_of(dialogues(40, most_words=18))


def test_every_prompt_has_exactly_one_outcome_in_several_batches(engine: Engine, prompts: list[Prompt]) -> None:
    batches = list(engine.generate(prompts, GREEDY, max_input_tokens=2048, on_overflow="fail", should_stop=never))

    assert len(batches) > 1
    assert sorted(outcome.key for batch in batches for outcome in batch) == [prompt.key for prompt in prompts]
    assert all(isinstance(outcome, Completion) for batch in batches for outcome in batch)


@pytest.mark.parametrize("parameters", [GREEDY, SAMPLED, BEAMS], ids=["greedy", "sampled", "beams"])
def test_batch_equals_its_rows_done_singly(engine: Engine, prompts: list[Prompt], parameters: GenerationParameters) -> None:
    together = complete(engine, prompts[:16], parameters)

    singly = {prompt.key: complete(engine, [prompt], parameters)[prompt.key] for prompt in prompts[:16]}

    assert together == singly


def test_sampling_repeats_and_does_not_depend_on_the_order(engine: Engine, prompts: list[Prompt]) -> None:
    first = complete(engine, prompts, SAMPLED)

    assert complete(engine, prompts[::-1], SAMPLED) == first
    assert complete(engine, prompts[1::2], SAMPLED) == {prompt.key: first[prompt.key] for prompt in prompts[1::2]}


def test_sampling_depends_on_seed_digest_and_draw(engine: Engine) -> None:
    text = dialogues(1, seed=5, most_words=12)[0]
    noises = [("a", 0), ("a", 1), ("b", 0)]
    warm = SAMPLED.model_copy(update={"temperature": 5.0, "top_p": 1.0})

    texts = {str(complete(engine, [Prompt(0, text, noise)], warm)[0]) for noise in noises}
    reseeded = str(complete(engine, [Prompt(0, text, ("a", 0))], warm.model_copy(update={"seed": 8}))[0])

    assert len(texts | {reseeded}) == 4


@pytest.mark.parametrize("parameters", [GREEDY, SAMPLED, BEAMS], ids=["greedy", "sampled", "beams"])
@pytest.mark.parametrize("limit", [1, 5, 24])
def test_limit_is_kept_and_finish_reason_says_whether_the_text_ended(
    engine: Engine, prompts: list[Prompt], parameters: GenerationParameters, limit: int
) -> None:
    limited = parameters.model_copy(update={"max_new_tokens": limit})

    for outcome in complete(engine, prompts[:12], limited).values():
        assert isinstance(outcome, Completion)
        assert 1 <= outcome.tokens_out <= limit
        assert outcome.finish_reason == "stop" or outcome.tokens_out == limit


def test_longer_limit_only_continues_a_cut_text(engine: Engine, prompts: list[Prompt]) -> None:
    short = complete(engine, prompts, GREEDY.model_copy(update={"max_new_tokens": 6}))
    long = complete(engine, prompts, GREEDY.model_copy(update={"max_new_tokens": 30}))

    for key, outcome in short.items():
        whole = long[key]
        assert isinstance(outcome, Completion)
        assert isinstance(whole, Completion)
        if outcome.finish_reason == "stop":
            assert outcome == whole
        else:
            assert whole.tokens_out > outcome.tokens_out or whole.finish_reason == "stop"


@pytest.mark.parametrize("parameters", [GREEDY, SAMPLED, BEAMS], ids=["greedy", "sampled", "beams"])
def test_stop_is_asked_at_every_step_and_ends_within_one(
    engine: Engine, prompts: list[Prompt], parameters: GenerationParameters
) -> None:
    asked = Countdown(10**9)
    whole = complete(engine, prompts[:4], parameters, should_stop=asked)
    steps = max(outcome.tokens_out for outcome in whole.values() if isinstance(outcome, Completion))
    assert asked.asked >= steps

    stop = Countdown(5)
    outcomes = complete(engine, prompts[:4], parameters, should_stop=stop)

    assert outcomes == {}
    assert stop.asked == 5


def test_what_was_yielded_before_a_stop_stays(engine: Engine, prompts: list[Prompt]) -> None:
    seen: list[list[Outcome]] = []

    for batch in engine.generate(prompts, GREEDY, max_input_tokens=2048, on_overflow="fail", should_stop=lambda: bool(seen)):
        seen.append(batch)

    assert len(seen) == 1


def test_too_long_prompt_fails_alone_and_says_its_size(engine: Engine) -> None:
    outcomes = complete(engine, prompts_of(["Anna", "the cat " * 20, "Ben"]), max_input_tokens=12)

    assert isinstance(outcomes[0], Completion)
    assert isinstance(outcomes[2], Completion)
    failure = outcomes[1]
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, InputTooLong)
    assert failure.error.fields["limit"] == 12
    assert failure.error.fields["tokens"] > 12
    assert "12" in failure.error.message
    assert "--on-overflow truncate" in failure.error.message


def test_too_long_prompt_is_cut_and_marked_when_asked(engine: Engine) -> None:
    outcomes = complete(engine, prompts_of(["Anna", "the cat " * 20]), max_input_tokens=12, on_overflow="truncate")

    short, cut = outcomes[0], outcomes[1]
    assert isinstance(short, Completion)
    assert isinstance(cut, Completion)
    assert (short.truncated, cut.truncated) == (False, True)
    assert short.tokens_in < cut.tokens_in == 12


def test_any_unicode_and_nearly_nothing_can_be_read(engine: Engine) -> None:
    texts = ["日本語の会話", "🙂🙂", "e\u0301 \u200b\ufeff", "\x00\x07", ".", "नमस्ते", "\n\n\t", " "]

    outcomes = complete(engine, prompts_of(texts))

    assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
    assert len(outcomes) == len(texts)


def test_text_that_is_no_unicode_fails_alone(engine: Engine) -> None:
    outcomes = complete(engine, prompts_of(["Anna", "broken \ud800 pair", "Ben"]))

    assert [type(outcomes[key]) for key in range(3)] == [Completion, Failure, Completion]
    assert isinstance(outcomes[1].error, GenerationFailed)  # type: ignore[union-attr]


def test_short_prompt_beside_a_long_one_gives_what_it_gives_alone(engine: Engine) -> None:
    short, long = Prompt(0, "."), Prompt(1, "the cat " * 250)

    together = complete(engine, [short, long], on_overflow="truncate", max_input_tokens=512)

    assert together[0] == complete(engine, [short])[0]
    assert isinstance(together[1], Completion)


def test_no_prompts_give_nothing(engine: Engine) -> None:
    assert complete(engine, []) == {}


@pytest.mark.parametrize("parameters", [GREEDY, SAMPLED, BEAMS], ids=["greedy", "sampled", "beams"])
def test_rows_that_come_page_by_page_get_what_they_get_together(
    engine: Engine, prompts: list[Prompt], parameters: GenerationParameters
) -> None:
    pages = [prompts[:3], prompts[3:20], [], prompts[20:21], prompts[21:30]]

    outcomes = [outcome for batch in feed(engine, pages, parameters) for outcome in batch]

    assert sorted(outcome.key for outcome in outcomes) == list(range(30))
    assert {outcome.key: outcome for outcome in outcomes} == complete(engine, prompts[:30], parameters)


def test_engine_that_has_nothing_left_says_so_and_asks_again(engine: Engine, prompts: list[Prompt]) -> None:
    batches = feed(engine, [[], [], [], prompts[:2]])

    assert batches[:2] == [[], []]
    assert all(batches[2:])
    assert feed(engine, [prompts[:2]])
    assert feed(engine, [[]]) == []


def test_stop_while_there_is_nothing_to_do_ends_the_stream(engine: Engine, prompts: list[Prompt]) -> None:
    assert list(engine.complete([], GREEDY, Countdown(4), list)) == [[]] * 3


def test_engine_says_what_it_runs_on(engine: Engine) -> None:
    assert engine.device == "cpu"
    assert engine.name in ("fake", "transformers", "ctranslate2", "graph")
    assert (engine.dtype in ("float32", "int8")) == (engine.name != "fake")
    assert engine.dtype != "int8" or engine.name == "ctranslate2"
    assert (engine.weight_bytes > 0) == (engine.name != "fake")
