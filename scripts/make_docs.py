"""Write the reference pages that come from the code: settings, errors, commands. A test checks that they are current.

Usage: python scripts/make_docs.py
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from gistmill.cli.app import app
from gistmill.errors import GistmillError, Stopped
from gistmill.settings import Settings

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
MADE = "<!-- Made by `make docs`; do not edit. -->"


def main() -> None:
    """Write every page."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Return each page's name and text."""
    return {"settings.md": settings_page(), "errors.md": errors_page(), "commands.md": commands_page()}


def settings_page() -> str:
    """Return the page of the environment variables."""
    lines = [
        "# Settings",
        "",
        MADE,
        "",
        "Every setting is an environment variable. HF_*, CUDA_VISIBLE_DEVICES and NO_COLOR are honoured as they are.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
        *(f"| `{name}` | {default} | {meaning} |" for name, default, meaning in _settings(Settings, "GISTMILL_")),
    ]
    return "\n".join(lines) + "\n"


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{prefix}{name.upper()}__")
            continue
        default = "" if field.default in (None, "") else f"`{field.default}`"
        yield prefix + name.upper(), default, field.description or ""


def errors_page() -> str:
    """Return the page of the error codes."""
    lines = [
        "# Errors",
        "",
        MADE,
        "",
        "Over HTTP an error is `application/problem+json` with its `code`; the command line ends with the exit status.",
        "",
        "| code | HTTP | exit | retry | meaning |",
        "|---|---|---|---|---|",
    ]
    for kind in sorted(_kinds(GistmillError), key=lambda kind: kind.code):
        meaning = inspect.cleandoc(kind.__doc__ or "").split("\n")[0]
        retry = "yes" if kind.retryable else ""
        lines.append(f"| `{kind.code}` | {kind.http_status} | {kind.exit_code} | {retry} | {meaning} |")
    return "\n".join(lines) + "\n"


def _kinds(root: type[GistmillError]) -> Iterator[type[GistmillError]]:
    """Yield the errors of the core that a user can meet, wherever other modules are loaded."""
    for kind in root.__subclasses__():
        if kind is Stopped or kind.__module__ != "gistmill.errors":
            continue
        yield kind
        yield from _kinds(kind)


def commands_page() -> str:
    """Return the page of the command line."""
    command = typer.main.get_command(app)
    lines = ["# Commands", "", MADE, ""]
    lines += ["`gistmill api`, `gistmill worker` and `gistmill db` take `--help` of their own.", ""]
    for path, leaf in _leaves(command, "gistmill"):
        lines += [f"## {path}", "", inspect.cleandoc(leaf.help or ""), ""]
        rows = [row for parameter in leaf.params if (row := _parameter(parameter))]
        if rows:
            lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from _leaves(child, f"{path} {name}")


def _parameter(parameter: Any) -> str | None:
    if parameter.name == "help":
        return None
    is_argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if is_argument else ", ".join(parameter.opts)
    return f"| `{name}` | {getattr(parameter, 'help', None) or ''} |"


if __name__ == "__main__":
    main()
