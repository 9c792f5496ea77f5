"""A comparison as a drawing: means with intervals as bars, and below them the differences from the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape as escape_html

from gistmill.comparison.characters import plain
from gistmill.comparison.figures import mean, signed
from gistmill.views import ComparisonView

WIDTH, MARGIN, HEAD, PANEL, GAP = 860, 60, 40, 260, 64
TICKS = 5
LEGEND_COLUMNS, LEGEND_LINE, LONGEST_LABEL = 3, 18, 38
# The colours of Okabe and Ito, which differ for every kind of colour vision; more systems than colours begin anew.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b5a900")


@dataclass(frozen=True)
class _Value:
    """A value in points with its limits, and in which slot of which group it stands."""

    group: int
    slot: int
    middle: float
    low: float
    high: float
    hint: str


def as_svg(view: ComparisonView) -> str:
    """Return a drawing as a standalone SVG document."""
    means, differences = list(_means(view)), list(_differences(view))
    title = f"{view.id}: {view.dataset}"
    if not means:
        return _document(title, HEAD + PANEL, ['<text x="50%" y="50%" text-anchor="middle">nothing is scored yet</text>'])
    top = HEAD + LEGEND_LINE * math.ceil(len(view.systems) / LEGEND_COLUMNS) + 20
    upper = _Panel(view, means, top)
    parts = [*_legend(view), *upper.axes("points"), *map(upper.bar, means), *map(upper.whisker, means)]
    if differences:
        lower = _Panel(view, differences, top + PANEL + GAP)
        parts += [*lower.axes(f"points over {_short(view.baseline)}"), lower.zero()]
        parts += [*map(lower.whisker, differences), *map(lower.dot, differences)]
    return _document(title, top + (PANEL + GAP) * (2 if differences else 1), parts)


class _Panel:
    """Turns measures, systems and points into places on the drawing; a panel begins at `top` and always shows zero."""

    def __init__(self, view: ComparisonView, values: Sequence[_Value], top: float) -> None:
        self.measures, self.top = view.measures, top
        self.low = min(0.0, *(value.low for value in values))
        self.high = max(0.0, *(value.high for value in values))
        if self.high == self.low:
            self.high = self.low + 1.0
        self.group_width = (WIDTH - 2 * MARGIN) / len(view.measures)
        self.slot_width = self.group_width / (len(view.systems) + 1)

    def x(self, value: _Value) -> float:
        """Return the horizontal middle of a value's slot."""
        return MARGIN + value.group * self.group_width + (value.slot + 1) * self.slot_width

    def y(self, points: float) -> float:
        """Return the vertical place of a number of points."""
        return self.top + (self.high - points) / (self.high - self.low) * PANEL

    def axes(self, unit: str) -> Iterator[str]:
        """Yield the grid with its numbers, the unit above and the measures below."""
        for place in range(TICKS + 1):
            points = self.low + (self.high - self.low) * place / TICKS
            y = self.y(points)
            yield f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            yield f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{points:.1f}</text>'
        yield f'<text x="{MARGIN}" y="{self.top - 8:.1f}">{escape(unit)}</text>'
        for group, measure in enumerate(self.measures):
            x = MARGIN + (group + 0.5) * self.group_width
            yield f'<text x="{x:.1f}" y="{self.top + PANEL + 18:.1f}" text-anchor="middle">{escape(_short(measure))}</text>'

    def bar(self, value: _Value) -> str:
        """Return the bar of a mean."""
        width = 0.8 * self.slot_width
        top, bottom = sorted((self.y(value.middle), self.y(0)))
        return (
            f'<rect class="bar" x="{self.x(value) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
            f'height="{bottom - top:.1f}" fill="{_colour(value.slot)}"><title>{escape(value.hint)}</title></rect>'
        )

    def whisker(self, value: _Value) -> str:
        """Return the line from the lower to the upper limit; without an interval there is none."""
        if value.low == value.high:
            return ""
        x = self.x(value)
        return (
            f'<line class="interval" x1="{x:.1f}" x2="{x:.1f}" y1="{self.y(value.high):.1f}" y2="{self.y(value.low):.1f}" '
            'stroke="#333" stroke-width="1.5"/>'
        )

    def dot(self, value: _Value) -> str:
        """Return the mark of a difference."""
        place = f'cx="{self.x(value):.1f}" cy="{self.y(value.middle):.1f}"'
        hint = f"<title>{escape(value.hint)}</title>"
        return f'<circle class="difference" {place} r="5" fill="{_colour(value.slot)}">{hint}</circle>'

    def zero(self) -> str:
        """Return the line where a system is as good as the baseline."""
        y = self.y(0)
        return f'<line class="zero" x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#333"/>'


def _means(view: ComparisonView) -> Iterator[_Value]:
    for slot, system in enumerate(view.systems):
        for group, measure in enumerate(view.measures):
            if found := system.scores.get(measure):
                hint = f"{system.name} {measure}: {mean(found.fmeasure, found.low, found.high)}"
                yield _value(group, slot, found.fmeasure, found.low, found.high, hint)


def _differences(view: ComparisonView) -> Iterator[_Value]:
    slots = {system.name: slot for slot, system in enumerate(view.systems)}
    groups = {measure: group for group, measure in enumerate(view.measures)}
    for pair in view.pairs:
        if pair.baseline == view.baseline and pair.system in slots and pair.measure in groups:
            hint = f"{pair.system} over {pair.baseline}, {pair.measure}: {signed(pair.delta)}"
            yield _value(groups[pair.measure], slots[pair.system], pair.delta, pair.low, pair.high, hint)


def _value(group: int, slot: int, score: float, low: float | None, high: float | None, hint: str) -> _Value:
    limits = (score, score) if low is None or high is None else (low, high)
    return _Value(group, slot, 100 * score, 100 * limits[0], 100 * limits[1], hint)


def _legend(view: ComparisonView) -> Iterator[str]:
    for place, system in enumerate(view.systems):
        x = MARGIN + place % LEGEND_COLUMNS * (WIDTH - 2 * MARGIN) / LEGEND_COLUMNS
        y = HEAD + LEGEND_LINE * (place // LEGEND_COLUMNS) + 12
        yield f'<rect x="{x:.1f}" y="{y - 10}" width="12" height="12" fill="{_colour(place)}"/>'
        yield f'<text x="{x + 18:.1f}" y="{y}">{escape(_short(system.name))}</text>'


def escape(text: str) -> str:
    """Return a text as XML may hold it."""
    return escape_html(plain(text))


def _colour(slot: int) -> str:
    return COLOURS[slot % len(COLOURS)]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"


def _document(title: str, height: float, parts: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif" font-size="12">'
    )
    named = f'<title>{escape(title)}</title><text x="{WIDTH / 2}" y="24" text-anchor="middle">{escape(title)}</text>'
    ground = f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>'
    return "\n".join([head, ground, named, *(part for part in parts if part), "</svg>"]) + "\n"
