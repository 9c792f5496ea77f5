"""What is generated from the code is current."""

from __future__ import annotations

from pathlib import Path

from gistmill.db.views import document

ROOT = Path(__file__).parents[2]


def test_reference_of_the_views_is_current() -> None:
    written = (ROOT / "docs/reference/views.md").read_text()
    assert written == document(), "run: python -m gistmill.admin document-views > docs/reference/views.md"
