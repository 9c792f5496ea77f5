"""What a job would do and take, as people read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gistmill.cli.output import say, write_json

if TYPE_CHECKING:
    from gistmill.views import EstimateView, SpeedView


def write_estimate(view: EstimateView, *, as_json: bool) -> None:
    """Write an estimate to standard output, and its warnings to standard error."""
    if as_json:
        write_json(view.model_dump(mode="json"))
    else:
        for name, value in _lines(view):
            print(f"{name:<20}{value}")
    for warning in view.warnings:
        say(f"warning: {warning}")


def _lines(view: EstimateView) -> list[tuple[str, str]]:
    lines = [
        ("rows", f"{view.rows:,}"),
        ("distinct dialogues", f"{view.distinct:,}"),
        ("stored already", f"{view.stored:,} (not made again)"),
        ("to generate", f"{view.to_generate:,}"),
    ]
    if view.tokens_in is not None:
        tokens = view.tokens_in
        counted = f"a sample of {tokens.counted:,} prompts" if tokens.is_sample else f"all {tokens.counted:,} prompts"
        lengths = f"p50 {tokens.p50:,}, p95 {tokens.p95:,}, longest {tokens.max:,}"
        lines += [
            ("tokens in", f"{'about ' if tokens.is_sample else ''}{tokens.total:,} ({lengths}; counted on {counted})"),
            ("over the limit", f"{tokens.over_limit_rows:,} rows of more than {view.limit_tokens:,} tokens"),
        ]
    workers = f"{view.live_workers:,}" if view.live_workers else "0 (the time is that of one)"
    lines += [("chunks", f"{view.chunks:,}"), ("live workers", workers)]
    expected = "unknown" if view.expected_s is None else _duration(view.expected_s)
    return [*lines, ("expected time", expected), ("basis", view.basis), *(_apart(speed) for speed in view.speeds)]


def _apart(speed: SpeedView) -> tuple[str, str]:
    load = "unknown" if speed.load_s is None else f"{speed.load_s:.1f} s"
    warmup = "unknown" if speed.warmup_s is None else f"{speed.warmup_s:.1f} s"
    return "apart from it", f"on {speed.device_name}, model load {load}, warm-up {warmup} when it was last measured"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
