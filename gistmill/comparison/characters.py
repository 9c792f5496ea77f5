"""Texts from anywhere made harmless for terminals and drawings."""

from __future__ import annotations

import re

# Control characters, which a terminal obeys and XML forbids; what turns the direction of text; and what is no character.
HARMFUL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def plain(text: str) -> str:
    """Return a text that is only shown: line breaks and tabs stay, other control characters become '\ufffd'."""
    return HARMFUL.sub("\ufffd", text.replace("\r\n", "\n"))
