"""The built-in prompts: templates around a dialogue, named and versioned."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass

from gistmill.errors import UnknownPrompt

PLACE = "{dialogue}"


@dataclass(frozen=True)
class PromptTemplate:
    """A named text with one place for the dialogue."""

    name: str
    version: int
    template: str

    @property
    def digest(self) -> str:
        """The sha256 of the template, as 64 hex digits; equal templates are equal prompts."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    def render(self, dialogue: str) -> str:
        """Return the text that the model reads. Only the first place is filled: a dialogue is never read as a template."""
        head, _, tail = self.template.partition(PLACE)
        return head + dialogue + tail


BUILT_IN = {
    prompt.name: prompt
    for prompt in (
        PromptTemplate("none", 1, PLACE),
        PromptTemplate("instruction", 1, f"Summarize the following conversation.\n\n{PLACE}\n\nSummary: "),
        PromptTemplate("instruction-dialogue", 1, f"Summarize the following dialogue.\n{PLACE}\nSummary:\n"),
    )
}


def get(name: str) -> PromptTemplate:
    """Return the built-in prompt of this name.

    Raises:
        UnknownPrompt: there is none; the message lists those that exist and the nearest.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    near = difflib.get_close_matches(name, BUILT_IN, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise UnknownPrompt(f"There is no prompt '{name}'. There are: {', '.join(BUILT_IN)}.{hint}")
