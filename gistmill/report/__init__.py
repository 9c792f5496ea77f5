"""The report of an experiment in Markdown: what was asked, what came of it, how surely, and how to repeat it.

Every figure was measured and is in SQL; what is not done yet is named as such.
"""

from __future__ import annotations

from gistmill.report.document import as_markdown
from gistmill.report.material import Material

__all__ = ["Material", "as_markdown"]
