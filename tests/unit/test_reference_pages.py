"""The reference pages say what the code says."""

from __future__ import annotations

import pytest

from scripts.make_docs import REFERENCE, pages


@pytest.mark.parametrize("name", ["settings.md", "errors.md", "commands.md"])
def test_reference_page_is_current(name: str) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == pages()[name], "run: make docs"
