"""Figures as people read them. A score of 0 to 1 is shown as points, 0 to 100."""

from __future__ import annotations

SMALLEST_P = 0.0001
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def points(score: float) -> str:
    """Return a score in points."""
    return f"{100 * score:.2f}"


def signed(difference: float) -> str:
    """Return a difference of scores in points, with its sign unless it rounds to nothing."""
    text = f"{100 * difference:+.2f}"
    return text[1:] if float(text) == 0 else text


def mean(score: float, low: float | None, high: float | None) -> str:
    """Return a mean in points with its interval, if it has one."""
    return points(score) if low is None or high is None else f"{points(score)} [{points(low)}, {points(high)}]"


def difference(delta: float, low: float | None, high: float | None) -> str:
    """Return a difference in points with its interval, if it has one."""
    return signed(delta) if low is None or high is None else f"{signed(delta)} [{signed(low)}, {signed(high)}]"


def p_value(p: float | None) -> str:
    """Return a p-value with four digits, or nothing."""
    if p is None:
        return ""
    return f"<{SMALLEST_P:.4f}" if p < SMALLEST_P else f"{p:.4f}"


def duration(seconds: float | None) -> str:
    """Return a time as hours:minutes:seconds, short ones in seconds, or nothing."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def size(count: int | None) -> str:
    """Return a number of bytes in the largest unit that it fills, or nothing."""
    if count is None:
        return ""
    place = min(max(count.bit_length() - 1, 0) // 10, len(UNITS) - 1)
    return f"{count} B" if place == 0 else f"{count / 1024**place:,.1f} {UNITS[place]}"


def share(part: int | None, total: int | None) -> str:
    """Return a number of parameters and its share of all, if that is known, or nothing."""
    if part is None:
        return ""
    return f"{part:,} ({part / total:.2%})" if total else f"{part:,}"


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
