"""The arithmetic of `make bench`: figures from rounds, ratios, operations of a dialogue, goals, the dialogues' lengths."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest

from benchmarks.generation import __main__ as command
from benchmarks.generation import plan, report
from benchmarks.generation.contestants import DIRECT, LOOP, SORTED, Answer
from benchmarks.generation.figures import Result, Round, agreement, padded_positions, ratio, ratio_range
from benchmarks.generation.goals import FULL, QUICK, Goal, judge
from benchmarks.generation.roofline import ACCELERATORS, Shape, count_work, limit_rows_per_s
from benchmarks.generation.work import make_dialogues, read_dialogues, spread_evenly, write_rows
from workers.engine.ctranslate2 import MAX_ROWS, MOST_TOKENS
from workers.engine.tuning import Setting, list_lanes, trial_rows

BASE = Shape(d_model=768, inner=768, d_ff=2048, encoder_layers=12, decoder_layers=12, vocabulary=32_128, is_gated=True)


def rounds_of(*speeds: float, name: str = "one") -> Result:
    """Return a contestant that did 10 rows a round at these speeds."""
    return Result(name, [Round(rows=10, seconds=10 / speed, tokens_in=100, tokens_out=40) for speed in speeds])


def test_speeds_are_medians_over_the_rounds() -> None:
    result = rounds_of(1.0, 4.0, 2.0)
    assert result.rows_per_s == pytest.approx(2.0)
    assert result.tokens_out_per_s == pytest.approx(8.0)
    assert result.mean_tokens == (10.0, 4.0)


def test_ratio_compares_within_a_round_so_that_a_slow_minute_of_the_machine_cancels() -> None:
    one, other = rounds_of(4.0, 0.4, 4.4), rounds_of(2.0, 0.2, 2.0)
    assert ratio(one, other) == pytest.approx(2.0)
    assert ratio_range(one, other) == pytest.approx((2.0, 2.2))


def test_ratio_of_contestants_with_different_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio(rounds_of(1.0, 2.0), rounds_of(1.0))


def test_padding_share_counts_each_row_as_long_as_the_longest_of_its_batch() -> None:
    batches = [[10, 6], [4]]
    answer = Answer({}, tokens_in=20, tokens_out=0, batches=batches)
    assert padded_positions(batches) == answer.positions == 24
    result = Result("one", [Round(rows=3, seconds=1, tokens_in=20, tokens_out=3, positions=answer.positions)])
    assert result.padding_share == pytest.approx(4 / 24)


def test_padding_share_is_unknown_when_batches_are() -> None:
    assert Answer({}, tokens_in=20, tokens_out=0).positions is None
    assert rounds_of(1.0).padding_share is None


def test_agreement_looks_only_at_rows_that_both_wrote() -> None:
    one = Result("one", [Round(2, 1.0, 2, 2, texts={1: "a", 2: "b"}), Round(1, 1.0, 1, 1, texts={3: "c"})])
    other = Result("other", [Round(2, 1.0, 2, 2, texts={2: "b", 3: "x"})])
    assert agreement(one, other) == 0.5
    assert agreement(one, Result("none", [Round(1, 1.0, 1, 1, texts={9: "z"})])) is None


def test_work_of_a_dialogue_on_the_base_shape_is_what_was_computed_by_hand() -> None:
    work = count_work(BASE, tokens_in=200, tokens_out=40)
    found = [part / 1e9 for part in (work.encoder, work.cross_keys, work.decoder, work.total)]
    assert found == pytest.approx([35.5, 5.7, 10.2, 51.3], abs=0.06)


@pytest.mark.parametrize(("rows", "expected"), [(128, 7_986), (256, 8_535), (512, 8_839)])
def test_limit_of_an_h200_is_what_was_computed_by_hand(rows: int, expected: int) -> None:
    found = limit_rows_per_s(ACCELERATORS["H200"], BASE, rows=rows, tokens_in=200, tokens_out=40)
    assert found == pytest.approx(expected, rel=0.03)


def test_generated_dialogues_are_as_long_as_those_of_dialogsum() -> None:
    dialogues = make_dialogues(500)
    words = [len(dialogue.split()) for dialogue in dialogues]
    assert len(set(dialogues)) == 500
    assert statistics.mean(words) == pytest.approx(131, rel=0.05)
    assert statistics.stdev(map(math.log, words)) == pytest.approx(0.5, abs=0.05)
    assert 40 <= min(words) <= max(words) <= 480
    assert make_dialogues(500) == dialogues
    assert make_dialogues(20, seed=1) != dialogues[:20]


def test_rows_of_a_file_are_its_first_distinct_dialogues(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ["a", "b", "c"], copies=3)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 9
    assert read_dialogues(tmp_path / "rows.jsonl", 2) == ["a", "b"]


def test_a_sample_stands_for_all_lengths() -> None:
    lengths = [length * 37 % 101 for length in range(101)]
    sample = spread_evenly(lengths, 10)
    assert sample == sorted(set(sample))
    assert len(sample) == 10
    assert statistics.mean(lengths[row] for row in sample) == pytest.approx(statistics.mean(lengths), rel=0.05)
    assert spread_evenly(lengths, 101) == spread_evenly(lengths, 1_000) == list(range(101))


def test_a_goal_is_met_at_its_limit_and_not_below() -> None:
    goals = (Goal("one", "other", 2.0),)
    other = rounds_of(1.0, 1.0, name="other")
    met, missed = (judge(goals, {"one": rounds_of(speed, speed), "other": other}) for speed in (2.0, 1.99))
    assert (met[0].is_met, missed[0].is_met) == (True, False)
    assert missed[0].figure == "1.99 (1.99 to 1.99)"


def test_a_goal_of_what_did_not_run_is_not_met_and_says_so() -> None:
    verdict = judge((Goal("one", "other", 1.0),), {"other": rounds_of(1.0)})[0]
    assert not verdict.is_met
    assert verdict.figure == "not measured: one is not offered"


def test_every_goal_of_a_quick_run_speaks_of_contestants_that_run_in_it() -> None:
    (stage,) = plan.quick()
    names = {each.name for each in (*stage.entries, *stage.one_worker, *stage.two_workers)}
    assert {name for goal in QUICK for name in (goal.one, goal.other)} <= names


def test_every_goal_of_a_full_run_speaks_of_contestants_of_the_small_shape_or_of_int8() -> None:
    stage = plan.full()[0]
    names = {each.name for each in (*stage.entries, *stage.one_worker, *stage.two_workers)} | {plan.INT8.name}
    assert {name for goal in FULL for name in (goal.one, goal.other)} <= names


def test_short_dialogues_are_enough_for_a_trial_of_the_largest_batches() -> None:
    short = next(stage for stage in plan.full() if stage.ends_by_itself)
    settings = [Setting(lanes, tokens) for lanes in list_lanes(2) for tokens in (MOST_TOKENS // 2, MOST_TOKENS)]
    assert trial_rows([92] * short.tune_rows, settings, max_rows=MAX_ROWS) > 0


def test_tables_give_ratios_to_the_loop_and_copies_take_no_arithmetic() -> None:
    thrice = Result("thrice", [Round(rows=30, seconds=10, tokens_in=300, tokens_out=120, texts=dict.fromkeys(range(10), ""))])
    results = {
        LOOP.name: Result(LOOP.name, [Round(10, 20.0, 100, 40, 100, {0: "a"})]),
        SORTED.name: Result(SORTED.name, [Round(10, 10.0, 100, 40, 125, {0: "a"})]),
        DIRECT.name: Result(DIRECT.name, [Round(10, 8.0, 100, 40, None, {0: "b"})]),
        "thrice": thrice,
    }
    flop_per_s = 2.0 * count_work(BASE, tokens_in=200, tokens_out=40).total
    stage = report.describe_stage(results, BASE, limit_flop_per_s=flop_per_s, tokens=(200, 40))
    assert stage["limit_dialogues_per_s"] == pytest.approx(2.0)
    found = stage["contestants"]
    assert found["thrice"]["times_loop"] == pytest.approx(6.0)
    assert found["thrice"]["times_ctranslate2"] == pytest.approx(2.4)
    assert found["thrice"]["peak_share"] == pytest.approx(0.5)
    assert (found[LOOP.name]["agreement"], found[DIRECT.name]["agreement"]) == (1.0, 0.0)
    assert found[SORTED.name]["padding_share"] == pytest.approx(0.2)
    json.dumps(stage)
    assert "| thrice | 3.00 | 12 | 6.00 | 2.40 | not measured | 50.0 |" in report.as_markdown(run_of(stage))


def run_of(stage: dict[str, object]) -> dict[str, object]:
    """Return a run of one stage."""
    machine = {"cores": 2, "cpu": "CPU", "memory_gib": 1.0, "system": "Linux", "load_average_at_start": [0.1]}
    return {
        "date": "2026-01-02T03:04:05",
        "commit": "0" * 40,
        "has_uncommitted_changes": False,
        "machine": machine,
        "versions": {"python": "3"},
        "threads": 2,
        "device": "cpu",
        "data": "generated",
        "stages": {"small": stage},
        "goals": [],
    }


def test_the_sections_of_both_pages_are_replaced_and_the_rest_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCS", "README"):
        page = tmp_path / name
        page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
        monkeypatch.setattr(report, name, page)
    monkeypatch.setattr(report, "as_markdown", lambda run: "all")
    monkeypatch.setattr(report, "as_highlights", lambda run: "few")
    report.write_docs({})
    for name, text in {"DOCS": "all", "README": "few"}.items():
        assert (tmp_path / name).read_text() == f"before\n{report.BEGIN}\n{text}\n{report.END}\nafter\n"


def test_both_pages_show_the_figures_of_the_last_full_run() -> None:
    run = json.loads(command.RESULTS.read_text(encoding="utf-8"))
    for page, text in {report.DOCS: report.as_markdown(run), report.README: report.as_highlights(run)}.items():
        assert page.read_text(encoding="utf-8").count(f"{report.BEGIN}\n{text}\n{report.END}") == 1


@pytest.mark.parametrize(("system_per_s", "status"), [(8.0, 0), (2.0, 1)], ids=["as it should be", "collapsed"])
def test_quick_run_fails_when_a_ratio_has_collapsed_and_writes_nothing(
    system_per_s: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {LOOP.name: 1.0, DIRECT.name: 8.0, plan.ENGINE_CTRANSLATE2.name: 8.0}
    speeds |= {plan.DISTINCT.name: system_per_s, plan.THRICE.name: 3 * system_per_s}
    results = {name: rounds_of(speed, speed, name=name) for name, speed in speeds.items()}
    figures = report.describe_stage(results, BASE, limit_flop_per_s=None, tokens=(200, 40))
    monkeypatch.setattr(command, "_measure", lambda *_: (results, figures))
    monkeypatch.setattr(command, "_find_peak", lambda _: None)
    written: list[object] = []
    monkeypatch.setattr(command, "write_json", lambda *given: written.append(given))
    monkeypatch.setattr(command, "write_docs", written.append)
    assert command.main(["--size", "quick"]) == status
    assert written == []
    assert ("**not met**" in capsys.readouterr().out) == bool(status)
