"""A comparison as text, Markdown, HTML, CSV, Parquet and a drawing, and its cases side by side; names may be anything."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from rich.cells import cell_len

from gistmill.comparison import files, items, markdown, text
from gistmill.comparison.html import as_html
from gistmill.comparison.svg import COLOURS, WIDTH, as_svg
from gistmill.errors import InvalidInput
from gistmill.ingest.mapping import parse_mapping
from gistmill.ingest.reading import Format, read_rows
from gistmill.views import ComparisonView, SystemView
from tests.support.comparisons import MEANS, case, comparison, mean

SVG = "{http://www.w3.org/2000/svg}"
ODD = 'a|b*c_ <i>&"[bold]\x1b[31m\x00\x9b2J\n雪'


def oddly_named(name: str = ODD) -> ComparisonView:
    """The comparison with a baseline of such a name."""
    view = comparison(dataset=name, baseline=name, notes=[name])
    view.systems[0].name = name
    for pair in view.pairs:
        pair.baseline = name if pair.baseline == "original" else pair.baseline
    return view


def test_text_is_as_wide_as_it_is_and_has_no_colours() -> None:
    written = io.StringIO()
    text.write_text(comparison(), written)
    assert written.getvalue() == text.as_text(comparison())
    assert "\x1b" not in written.getvalue()
    assert "base+lora@1  40.81 [39.81, 41.81]  32.49 [31.49, 33.49]" in written.getvalue()
    assert all(line == line.rstrip() for line in written.getvalue().splitlines())


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_text_keeps_to_a_width_and_cuts_nothing(width: int) -> None:
    lines = text.as_text(comparison(), width=width).splitlines()
    assert max(map(cell_len, lines)) <= width
    joined = " ".join(" ".join(lines).split())
    for figure in ("42.16", "[41.16,", "43.16]", "-1.35", "[-2.35,", "400/20/80", "247,577,856", "0.0006"):
        assert figure in joined
    assert "…" not in joined


def test_long_names_are_folded_before_figures_are() -> None:
    view = comparison(pairs=[])
    for system in view.systems:
        system.name, system.cost = f"{system.name}_model_summaries", None
    drawn = text.as_text(view, width=50)
    assert "original_model_sum           23.34           20.15\n" in drawn
    assert "maries              [22.34, 24.34]  [19.15, 21.15]\n" in drawn


def test_terminal_gets_colours_and_obeys_no_name() -> None:
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal:
        text.write_text(oddly_named(), terminal)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert "\x1b[1m" in shown
    assert "\x1b[31m" not in shown
    assert "[bold]\ufffd[31m\ufffd\ufffd2J" in shown


def test_markdown_has_a_row_for_each_system_whatever_it_is_called() -> None:
    made = markdown.as_markdown(oddly_named())
    tables = [line for line in made.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in tables} == {8, 7, 4}
    assert r"| a\|b\*c\_ \<i\>" in made
    assert "| full | 42.16 [41.16, 43.16] | 33.84 [32.84, 34.84] | 1:02:05 |" in markdown.as_markdown(comparison())
    assert "| human_baseline_summaries |" in markdown.as_markdown(oddly_named("human_baseline_summaries"))
    assert markdown.as_markdown(comparison(), level=3).startswith("### Scores")


def test_html_shows_names_as_they_are_and_holds_the_drawing() -> None:
    seen: list[str] = []
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            seen.append(data)

        def handle_starttag(self, tag: str, attributes: Any) -> None:
            tags.append(tag)

    Reader().feed(as_html(oddly_named("<script>alert('x')</script>")))
    assert "<script>alert('x')</script>" in seen
    assert "script" not in tags
    assert (tags.count("table"), tags.count("svg")) == (4, 1)
    assert "42.16 [41.16, 43.16]" in seen


def test_csv_holds_means_and_differences_from_0_to_1() -> None:
    rows = list(csv.DictReader(io.StringIO(files.as_csv(comparison()))))
    assert [row["kind"] for row in rows] == ["mean"] * 6 + ["difference"] * 6
    first = rows[2]
    assert (first["system"], first["measure"], first["cases"], first["value"]) == ("full", "rouge1", "500", "0.4216")
    assert (first["precision"], first["training_s"], first["p_value"], first["baseline"]) == ("0.5", "3725.4", "", "")
    pair = rows[6]
    assert (pair["system"], pair["baseline"], pair["wins"], pair["p_adjusted"]) == ("full", "original", "400", "0.0006")
    assert float(pair["value"]) == pytest.approx(0.1882)
    assert pair["training_s"] == ""


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".md", ".svg", ".SVG"])
def test_file_is_written_as_its_suffix_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    files.save(oddly_named(), path)
    if suffix == ".parquet":
        table = parquet.read_table(path)
        assert [str(kind) for kind in table.schema.types[:6]] == ["string"] * 4 + ["int64", "double"]
        assert table.to_pylist() == list(files.list_rows(oddly_named()))
    elif suffix == ".csv":
        with path.open(newline="") as file:
            assert next(csv.DictReader(file))["system"] == ODD
    else:
        assert path.read_text().startswith("## Scores" if suffix == ".md" else "<svg")


def test_other_suffixes_are_refused_before_there_is_anything_to_write(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"written as \.csv, \.parquet, \.md, \.svg, not as 'table\.xlsx'"):
        files.save(comparison(), tmp_path / "table.xlsx")
    assert not any(tmp_path.iterdir())


def test_thin_client_says_what_parquet_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Python takes a module that is None for one that cannot be found.
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInput, match=r"Parquet needs pyarrow\. Install it with: pip install pyarrow\. Or write \.csv"):
        files.check_suffix(tmp_path / "table.parquet")


def test_drawing_has_a_bar_for_each_mean_and_a_mark_for_each_difference() -> None:
    root = ET.fromstring(as_svg(comparison()))
    bars = [part for part in root.iter(f"{SVG}rect") if part.get("class") == "bar"]
    marks = [part for part in root.iter(f"{SVG}circle") if part.get("class") == "difference"]
    intervals = [part for part in root.iter(f"{SVG}line") if part.get("class") == "interval"]
    (zero,) = (part for part in root.iter(f"{SVG}line") if part.get("class") == "zero")
    assert (len(bars), len(marks), len(intervals)) == (6, 4, 10)
    heights = [float(bar.attrib["height"]) for bar in bars[::2]]
    assert [height / heights[0] for height in heights] == pytest.approx(
        [score[0] / MEANS["original"][0] for score in MEANS.values()], rel=0.01
    )
    assert all(float(mark.attrib["cy"]) < float(zero.attrib["y1"]) for mark in marks), "better is above zero"
    assert [mark.attrib["fill"] for mark in marks] == [COLOURS[1], COLOURS[2]] * 2, "a system keeps the colour of its bars"
    height = float(root.attrib["viewBox"].split()[3])
    for part in root.iter():
        assert all(0 <= float(part.attrib.get(name, 0)) <= WIDTH for name in ("x1", "x2", "cx"))
        assert all(0 <= float(part.attrib.get(name, 0)) <= height for name in ("y1", "y2", "cy"))


def test_worse_than_the_baseline_is_below_zero() -> None:
    view = comparison(baseline="full")
    for pair in view.pairs:
        pair.baseline, pair.system, pair.delta = "full", "original", -0.1
        pair.low, pair.high = -0.2, -0.05
    root = ET.fromstring(as_svg(view))
    (zero,) = (part for part in root.iter(f"{SVG}line") if part.get("class") == "zero")
    marks = [part for part in root.iter(f"{SVG}circle") if part.get("class") == "difference"]
    assert marks
    assert all(float(mark.attrib["cy"]) > float(zero.attrib["y1"]) for mark in marks)


@pytest.mark.parametrize(
    "view",
    [
        oddly_named(),
        comparison(cases=1),
        comparison(systems=[], pairs=[], measures=[]),
        comparison(systems=[SystemView(name="a")], pairs=[]),
        comparison(systems=[SystemView(name="a", scores={"rouge1": mean(0.0, cases=1)})], pairs=[]),
        comparison(systems=[SystemView(name=f"s{n}", scores={"rouge1": mean(n / 32)}) for n in range(32)], pairs=[]),
    ],
)
def test_drawing_of_anything_is_a_drawing(view: ComparisonView) -> None:
    root = ET.fromstring(as_svg(view))
    assert root.tag == f"{SVG}svg"
    assert all("nan" not in value for part in root.iter() for value in part.attrib.values())
    assert as_html(view)
    assert markdown.as_markdown(view)
    assert text.as_text(view, width=30)


def test_case_is_shown_with_its_references_and_every_summary() -> None:
    assert items.as_text(case()) == (
        "row 3, id test_3: scored, -25.00 points over the baseline\n"
        "  dialogue\n    Ann: hi\n    Bob: bye\n"
        "  reference 1\n    Ann greets Bob.\n"
        "  reference 2\n    They part.\n"
        "  original  rouge1 50.00  rougeLsum 25.00\n    Ann, Bob\n"
        "  full  rouge1 0.00\n    (empty)\n\n"
    )
    left_out = items.as_text(case(outcome="no_reference", references=[], summaries={"full": None}, scores={}, delta=None))
    assert left_out.startswith("row 3, id test_3: no reference\n")
    assert "  full\n    (no summary)\n" in left_out
    assert "dialogue" in left_out
    assert "dialogue" not in items.as_text(case(dialogue="row 3")), "it is unknown, and the head names the row"


def test_cases_keep_to_a_width_and_a_terminal_obeys_none() -> None:
    long = case(dialogue="word " * 50 + "雪" * 50, references=["r"], summaries={"full": "\x1b[2J\rgone"})
    shown = items.as_text(long, width=40)
    assert max(map(cell_len, shown.splitlines())) <= 40
    assert shown.count("word") == 50
    assert shown.count("雪") == 50
    assert "\x1b" not in shown
    assert "\r" not in shown
    written = io.StringIO()
    items.write_text([long, long], written)
    assert written.getvalue() == 2 * items.as_text(long)


def test_lines_of_json_hold_what_the_api_answered() -> None:
    (line,) = items.as_lines([case()])
    assert json.loads(line) == case().model_dump(exclude={"cursor"})
    assert line.count("\n") == 1


def test_wide_table_is_read_back_as_predictions(tmp_path: Path) -> None:
    odd = case(id="x", references=[], summaries={"original": 'a\r"b",\rc', "full": None, "id": "\n"})
    path = tmp_path / "wide.csv"
    path.write_text("".join(items.as_wide_csv([case(), odd], ["original", "full", "id"])), newline="")
    mapping = parse_mapping(["references=references", "predictions=original,full,system:id"])
    first, second = read_rows(path, format=Format.CSV, mapping=mapping)
    assert (first.id, first.references) == ("test_3", ("Ann greets Bob.\nThey part.",))
    assert first.metadata["predictions"] == {"original": "Ann, Bob", "full": "", "system:id": ""}
    assert (second.id, second.references) == ("x", ())
    assert second.metadata["predictions"] == {"original": 'a\r"b",\rc', "full": "", "system:id": "\n"}
