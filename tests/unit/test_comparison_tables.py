"""What a comparison says: tables of figures in points, and sentences about what they rest on."""

from __future__ import annotations

import pytest

from gistmill.comparison import figures
from gistmill.comparison.tables import Table, list_sentences, list_tables, tabulate_pairs, tabulate_systems
from gistmill.views import ComparisonView, SystemView
from tests.support.comparisons import comparison


def table(view: ComparisonView, title: str) -> Table:
    (found,) = (table for table in list_tables(view) if title in table.title)
    return found


def named(names: dict[str, str]) -> ComparisonView:
    """The comparison of columns that are called so."""
    view = comparison()
    for system in view.systems:
        system.name = system.column = names[system.name]
    view.baseline = view.systems[0].name
    return view


def test_systems_have_their_means_with_intervals_and_what_they_cost() -> None:
    made = tabulate_systems(comparison())
    assert made.columns == (
        "system", "rouge1", "rougeLsum", "training time", "peak memory", "trainable parameters", "artifact"
    )  # fmt: skip
    assert made.rows == (
        ("original", "23.34 [22.34, 24.34]", "20.15 [19.15, 21.15]", "-", "-", "-", "-"),
        ("full", "42.16 [41.16, 43.16]", "33.84 [32.84, 34.84]", "1:02:05", "3.0 GiB", "247,577,856", "999 B"),
        ("base+lora@1", "40.81 [39.81, 41.81]", "32.49 [31.49, 33.49]", "42.0 s", "-", "3,538,944 (1.41%)", "-"),
    )


def test_costs_that_nobody_knows_take_no_column() -> None:
    view = comparison()
    for system in view.systems:
        system.cost = None
    assert tabulate_systems(view).columns == ("system", "rouge1", "rougeLsum")


def test_pairs_have_differences_p_values_and_wins() -> None:
    made = tabulate_pairs(comparison())
    assert made.columns == ("system", "over", "measure", "difference", "p (Holm)", "wins/ties/losses")
    assert made.rows[2] == ("base+lora@1", "full", "rouge1", "-1.35 [-2.35, -0.35]", "0.0006", "400/20/80")
    view = comparison()
    for pair in view.pairs:
        pair.p_adjusted = None
    assert {row[4] for row in tabulate_pairs(view).rows} == {"0.0002"}


def test_two_systems_have_one_pair_and_nothing_to_correct() -> None:
    view = comparison()
    view.systems = view.systems[:2]
    assert tabulate_pairs(view).columns[4] == "p"


def test_improvements_are_those_of_the_notebook_under_their_real_names() -> None:
    over_baseline = table(comparison(), "percentage points over original")
    assert over_baseline.rows == (
        ("full over original", "+18.82", "+13.69"),
        ("base+lora@1 over original", "+17.47", "+12.34"),
    )
    others = table(comparison(), "of the others over each other")
    assert others.rows == (("base+lora@1 over full", "-1.35", "-1.35"),)


def test_two_systems_have_one_table_of_improvements_and_one_has_none() -> None:
    view = comparison()
    view.systems.pop()
    assert [table.title for table in list_tables(view)].count("Absolute improvement in percentage points over original") == 1
    assert not any("each other" in table.title for table in list_tables(view))
    view.systems.pop()
    assert not any("improvement" in table.title for table in list_tables(view))


def test_one_case_alone_has_no_interval_and_says_so() -> None:
    view = comparison(cases=1)
    assert tabulate_systems(view).rows[0][1] == "23.34"
    assert tabulate_pairs(view).rows[0][3:5] == ("+18.82", "-")
    assert any("One case alone has no interval and no p-value" in sentence for sentence in list_sentences(view))
    assert not any("One case alone" in sentence for sentence in list_sentences(comparison()))


def test_what_was_left_out_is_said_with_its_reasons() -> None:
    view = comparison()
    view.systems[2].empty = 3
    assert list_sentences(view) == [
        "500 of 510 cases of dialogsum[0:510] are scored.",
        "Left out of every figure: 10 cases (7 without a summary of every system, 2 used as an example of a prompt,"
        " 1 seen in training).",
        "Empty summaries, which score 0: base+lora@1 3.",
        "full was trained on another prompt.",
        "Signature: rouge|v:0.1.2|refs:max|seed:0",
    ]
    whole = list_sentences(comparison(counts={"scored": 510, "failed": 0}))
    assert not any("Left out" in sentence or "Empty" in sentence for sentence in whole)


def test_evaluation_that_has_not_ended_says_how_far_it_is() -> None:
    view = comparison(state="running", ended=40, systems=[SystemView(name="original")], pairs=[], signature="", notes=[])
    assert list_sentences(view)[0] == "The evaluation is running: 40 of 510 cases of dialogsum[0:510] have ended."
    assert [table.rows for table in list_tables(view)] == [(("original", "-", "-"),)]
    failed = comparison(state="failed", error={"code": "metric_failed", "message": "bleu raised ValueError."})
    assert "It ended with an error: bleu raised ValueError." in list_sentences(failed)


def test_label_of_the_notebook_is_put_right() -> None:
    columns = {"original": "original_model_summaries", "full": "instruct_model_summaries", "base+lora@1": "peft"}
    sentences = list_sentences(named(columns))
    note = "What the notebook calls 'over HUMAN BASELINE' is over original_model_summaries, and is called so here."
    assert sentences.count(note) == 1
    columns["original"] = "human_baseline_summaries"
    assert any(
        "human_baseline_summaries is one of the compared here" in sentence for sentence in list_sentences(named(columns))
    )
    assert not any("HUMAN" in sentence or "compared here" in sentence for sentence in list_sentences(comparison()))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (figures.signed(-0.00001), "0.00"),
        (figures.signed(0.00004), "0.00"),
        (figures.signed(-0.0123), "-1.23"),
        (figures.p_value(0.00001), "<0.0001"),
        (figures.p_value(1.0), "1.0000"),
        (figures.p_value(None), ""),
        (figures.duration(0.04), "0.0 s"),
        (figures.duration(59.99), "60.0 s"),
        (figures.duration(3599.6), "1:00:00"),
        (figures.size(0), "0 B"),
        (figures.size(1023), "1023 B"),
        (figures.size(1024), "1.0 KiB"),
        (figures.size(5 * 2**40), "5.0 TiB"),
        (figures.size(5 * 2**50), "5,120.0 TiB"),
        (figures.share(1, None), "1"),
        (figures.number_of(1, "case"), "1 case"),
        (figures.number_of(0, "case"), "0 cases"),
    ],
)
def test_figures_are_written_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected
