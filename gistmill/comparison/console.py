"""Where text for people goes: a terminal with its width and colours, or anything else without either."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, RenderableType

# A file has no edge: what is written there is cut or folded by whoever shows it.
WIDEST = 100_000


def write(parts: Iterable[RenderableType], file: IO[str]) -> None:
    """Write renderables to a terminal in its width, or to another file as wide as they are and without colours."""
    console = _make(file) if file.isatty() else _make(file, width=WIDEST, color_system=None, force_terminal=False)
    _print(console, parts)


def render(parts: Iterable[RenderableType], *, width: int | None = None) -> str:
    """Return renderables as text without colours, folded to a width, or as wide as they are."""
    file = io.StringIO()
    _print(_make(file, width=width or WIDEST, color_system=None, force_terminal=False), parts)
    return file.getvalue()


def _make(file: IO[str], **options: Any) -> Console:
    return Console(file=file, markup=False, emoji=False, highlight=False, force_jupyter=False, **options)


def _print(console: Console, parts: Iterable[RenderableType]) -> None:
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    # rich pads cells with spaces to the edge of the table.
    lines = (line.rstrip() for line in captured.get().splitlines())
    console.file.write("".join(f"{line}\n" for line in lines))
