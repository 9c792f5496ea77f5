"""A training curve as people take it away: CSV, a drawing, or a cell of a notebook."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from html import escape

from gistmill.views import MetricView

COLUMNS = tuple(name for name in MetricView.model_fields if name != "cursor")
WIDTH, HEIGHT, MARGIN = 720, 360, 56
TICKS = 5
# Two colours that differ for every kind of colour vision.
LOSS, EVALUATION = "#0072b2", "#d55e00"


class Curve(list[MetricView]):
    """The points of a training, by step. A notebook shows it as a drawing."""

    @property
    def losses(self) -> list[tuple[int, float]]:
        """The training loss after each step, where it is a number."""
        return _pairs(self, "train")

    @property
    def evaluations(self) -> list[tuple[int, float]]:
        """The validation loss after each evaluation."""
        return _pairs(self, "eval")

    def as_csv(self) -> str:
        """Return a table with a line per point."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(point.model_dump() for point in self)
        return text.getvalue()

    def as_svg(self, title: str = "loss") -> str:
        """Return a drawing of the losses, as a standalone SVG document."""
        points = [*self.losses, *self.evaluations]
        if not points:
            return _document(title, ['<text x="50%" y="50%" text-anchor="middle">no step is done yet</text>'])
        frame = _Frame(points)
        parts = [*frame.axes(), frame.line(self.losses, LOSS), frame.line(self.evaluations, EVALUATION)]
        parts += [frame.legend(0, "training loss", LOSS)]
        if self.evaluations:
            parts += [frame.legend(1, "validation loss", EVALUATION)]
        return _document(title, parts)

    def _repr_svg_(self) -> str:
        return self.as_svg()


class _Frame:
    """Turns steps and losses into places on the drawing."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        steps, losses = [step for step, _ in points], [loss for _, loss in points]
        self.first, self.last = min(steps), max(steps)
        self.low, self.high = min(losses), max(losses)

    def x(self, step: float) -> float:
        """Return the horizontal place of a step."""
        return MARGIN + (step - self.first) / max(1, self.last - self.first) * (WIDTH - 2 * MARGIN)

    def y(self, loss: float) -> float:
        """Return the vertical place of a loss."""
        return HEIGHT - MARGIN - (loss - self.low) / ((self.high - self.low) or 1) * (HEIGHT - 2 * MARGIN)

    def line(self, points: Sequence[tuple[int, float]], colour: str) -> str:
        """Return a line through these points, and a dot on each when they are few."""
        if not points:
            return ""
        places = " ".join(f"{self.x(step):.1f},{self.y(loss):.1f}" for step, loss in points)
        dots = "".join(
            f'<circle cx="{self.x(step):.1f}" cy="{self.y(loss):.1f}" r="3" fill="{colour}"/>' for step, loss in points
        )
        return (
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{places}"/>{dots if len(points) < 50 else ""}'
        )

    def axes(self) -> Iterable[str]:
        """Yield the grid with its numbers."""
        for place in range(TICKS + 1):
            loss = self.low + (self.high - self.low) * place / TICKS
            y = self.y(loss)
            yield f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            yield f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{loss:.3g}</text>'
        for place in range(TICKS + 1):
            step = round(self.first + (self.last - self.first) * place / TICKS)
            yield f'<text x="{self.x(step):.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{step}</text>'
        yield f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">step</text>'

    def legend(self, place: int, text: str, colour: str) -> str:
        """Return a named sample of a line."""
        x = WIDTH - MARGIN - 130
        y = MARGIN + 18 * place
        return f'<rect x="{x}" y="{y - 9}" width="12" height="3" fill="{colour}"/><text x="{x + 18}" y="{y - 3}">{text}</text>'


def _pairs(points: Iterable[MetricView], kind: str) -> list[tuple[int, float]]:
    of_kind = (point for point in points if point.kind == kind)
    return [(point.step, point.loss) for point in of_kind if point.loss is not None and math.isfinite(point.loss)]


def _document(title: str, parts: Iterable[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">'
    named = f'<title>{escape(title)}</title><text x="{WIDTH / 2}" y="24" text-anchor="middle">{escape(title)}</text>'
    ground = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return "\n".join([head, ground, named, *parts, "</svg>"]) + "\n"
