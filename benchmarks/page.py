"""docs/benchmarks.md: each benchmark writes the figures of its last full run between two marks."""

from __future__ import annotations

from pathlib import Path


def replace_section(page: Path, begin: str, end: str, text: str) -> None:
    """Put the text between the marks, in place of what stands there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
