"""A curve as CSV and as a drawing, and the line that shows a training."""

from __future__ import annotations

import csv
import io
import xml.etree.ElementTree as ET

import pytest

from gistmill.curve import Curve
from gistmill.training_progress import parameters, progress, seconds_left, show_training
from gistmill.views import JobView, MetricView

SVG = "{http://www.w3.org/2000/svg}"


def point(step: int, loss: float | None, kind: str = "train") -> MetricView:
    return MetricView(cursor=f"m:{step}:{kind}", kind=kind, step=step, epoch=step / 10, loss=loss)


def job(**training: object) -> JobView:
    return JobView(
        id="job_1", kind="finetune", state="running", dataset="d", model="m@1", prompt="instruction", training=training
    )


def test_csv_has_a_line_per_point_and_empty_cells_for_what_is_unknown() -> None:
    rows = list(csv.DictReader(io.StringIO(Curve([point(1, 2.5), point(1, None, "eval")]).as_csv())))
    assert [(row["kind"], row["step"], row["loss"], row["rougel"]) for row in rows] == [
        ("train", "1", "2.5", ""), ("eval", "1", "", "")
    ]  # fmt: skip
    assert "cursor" not in rows[0]


def test_drawing_has_a_line_per_kind_inside_its_frame() -> None:
    curve = Curve([*(point(step, 5.0 / step) for step in range(1, 9)), point(4, 1.5, "eval"), point(8, 0.9, "eval")])
    root = ET.fromstring(curve.as_svg("a < b & c"))
    lines = root.findall(f"{SVG}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [8, 2]
    places = [tuple(map(float, pair.split(","))) for line in lines for pair in line.attrib["points"].split()]
    assert all(0 <= x <= 720 and 0 <= y <= 360 for x, y in places)
    heights = [y for _, y in places[:8]]
    assert heights == sorted(heights), "a falling loss is drawn from the top to the bottom"
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text == "a < b & c"


@pytest.mark.parametrize("points", [[], [point(1, None)], [point(1, 2.0)], [point(1, float("nan")), point(2, 1.0)]])
def test_drawing_of_little_or_nothing_is_a_drawing(points: list[MetricView]) -> None:
    assert ET.fromstring(Curve(points)._repr_svg_()).tag == f"{SVG}svg"


def test_parameters_are_shown_with_their_share() -> None:
    shown = parameters({"trainable_parameters": 3_538_944, "total_parameters": 251_116_800})
    assert shown == "trainable parameters: 3,538,944 of 251,116,800 = 1.41%"


def test_line_shows_what_is_known_and_the_time_that_is_left() -> None:
    running = job(step=10, total_steps=70, loss=1.25, eval_loss=1.5, rouge_l=0.4, learning_rate=1e-3, samples_per_s=8.0,
                  memory_bytes=2**30, batch_size=4, gradient_accumulation=2)  # fmt: skip
    assert progress(running) == (
        ", step 10/70, loss 1.2500, eval loss 1.5000, rouge l 0.4000, lr 1.00e-03, 8.0 samples/s, 1,024 MiB, 1:00 left"
    )
    assert progress(job()) == ""
    assert seconds_left(job(step=1, total_steps=2)) is None


def test_parameters_come_before_the_first_step_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    known = {"trainable_parameters": 1, "total_parameters": 4, "total_steps": 2}
    with show_training(live=True) as show:
        show(job())
        show(job(**known, step=0))
        show(job(**known, step=1, loss=1.0))
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "trainable" in line] == ["trainable parameters: 1 of 4 = 25.00%"]
