"""Prompts: a text around a dialogue, named and versioned. Some are built in, users add others, and some show examples.

Head and tail are kept apart, because an example that stands in the head may itself hold "{dialogue}".
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gistmill.errors import InvalidInput, InvalidName, UnknownPrompt

PLACE = "{dialogue}"
Kind = Literal["one-shot", "few-shot"]
# With a version of nine digits behind it, a name is still a prompt that a job's spec takes.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,89}")
# Fifty times what a model of 512 tokens was trained to read.
MOST_CHARACTERS = 100_000
MOST_NAMED = 20
SHOWN = 120
# The kinds of prompts that show rows, each with a selection to name in messages.
SELECTIONS: dict[str, str] = {"one-shot": "[10]", "few-shot": "[10,20,30]"}


class Example(NamedTuple):
    """A dialogue and the summary that a person wrote of it."""

    dialogue: str
    summary: str


@dataclass(frozen=True)
class PromptTemplate:
    """A version of a named text with one place for the dialogue: between head and tail."""

    name: str
    version: int
    head: str
    tail: str

    @property
    def label(self) -> str:
        """Return name@version."""
        return f"{self.name}@{self.version}"

    @property
    def is_built_in(self) -> bool:
        """True when it is part of Gistmill."""
        return self.name in BUILT_IN

    @property
    def reference(self) -> str:
        """What means this very version for ever: the name of a built-in one, else name@version."""
        return self.name if self.is_built_in else self.label

    @property
    def template(self) -> str:
        """The text for people to read, with {dialogue} where the dialogue stands."""
        return self.head + PLACE + self.tail

    @property
    def digest(self) -> str:
        """The sha256 of the text, as 64 hex digits; what gives equal texts for every dialogue is an equal prompt."""
        return digest_of(self.head, self.tail)

    def render(self, dialogue: str) -> str:
        """Return the text that the model reads: a dialogue, like an example, is never read as a template."""
        return self.head + dialogue + self.tail


def digest_of(head: str, tail: str) -> str:
    """Return the sha256 of a prompt's text.

    Where examples hold "{dialogue}" themselves, a byte that no text has marks the place: otherwise two prompts with the
    place at different ends of an example would look alike, and jobs would share summaries that differ.
    """
    place = b"\xff" if PLACE in head or PLACE in tail else PLACE.encode()
    return hashlib.sha256(head.encode() + place + tail.encode()).hexdigest()


def split(template: str) -> tuple[str, str]:
    """Return what stands before and behind the one {dialogue} of a template.

    Raises:
        InvalidInput: it is empty, too long, or has no place for the dialogue, or several.
    """
    if not template.strip():
        raise InvalidInput(f"The template is empty. Write a text with {PLACE} where the dialogue belongs.")
    places = template.count(PLACE)
    if places != 1:
        found = "no place" if places == 0 else f"{places} places"
        raise InvalidInput(f"The template has {found} for the dialogue. Write {PLACE} exactly once, where it belongs.")
    head, _, tail = template.partition(PLACE)
    check_text(head, tail)
    return head, tail


def show(examples: Sequence[Example]) -> tuple[str, str]:
    """Return head and tail of a prompt that shows these examples, then the dialogue in the same form without a summary.

    Raises:
        InvalidInput: the text becomes too long.
    """
    shown = "".join(f"Dialogue:\n{dialogue}\nSummarize the dialogue.\n{summary}\n\n" for dialogue, summary in examples)
    head, tail = f"{shown}Dialogue:\n", "\nSummarize the dialogue.\n"
    check_text(head, tail)
    return head, tail


def check_text(head: str, tail: str) -> None:
    """Make sure that a prompt is no longer than any model reads, and can be stored.

    Raises:
        InvalidInput: it cannot.
    """
    text = head + tail
    check_length(len(text))
    if "\x00" in text:
        raise InvalidInput("The prompt holds a NUL character, which databases cannot store.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"The prompt holds half of a surrogate pair at character {error.start + 1}.") from error


def check_length(characters: int) -> None:
    """Make sure that a prompt without its dialogue has no more characters than allowed.

    Raises:
        InvalidInput: it has.
    """
    if characters > MOST_CHARACTERS:
        raise InvalidInput(f"The prompt has {characters} characters without a dialogue; {MOST_CHARACTERS} are allowed.")


def check_name(name: str) -> str:
    """Return the name unchanged.

    Raises:
        InvalidName: it has characters that names may not have, or too many.
    """
    if not NAME.fullmatch(name) or ".." in name:
        raise InvalidName(f"'{name[:SHOWN]}' is not a name: use letters, digits, '.', '_' and '-', at most 90, no '..'.")
    return name


BUILT_IN = {
    prompt.name: prompt
    for prompt in (
        PromptTemplate("none", 1, "", ""),
        PromptTemplate("instruction", 1, "Summarize the following conversation.\n\n", "\n\nSummary: "),
        PromptTemplate("instruction-dialogue", 1, "Summarize the following dialogue.\n", "\nSummary:\n"),
    )
}


def find_built_in(reference: str) -> PromptTemplate | None:
    """Return the built-in prompt of this name or name@version, or None."""
    found = BUILT_IN.get(reference.partition("@")[0])
    return found if found is not None and reference in (found.name, found.label) else None


def get(reference: str) -> PromptTemplate:
    """Return the built-in prompt of this name.

    Raises:
        UnknownPrompt: there is none; the message lists those that exist and the nearest.
    """
    found = find_built_in(reference)
    if found is None:
        raise unknown(reference)
    return found


def unknown(reference: str, added: Iterable[str] = ()) -> UnknownPrompt:
    """Return the error that names the nearest prompt, or how to make one that shows examples; `added` are the user's names."""
    name = reference.partition("@")[0]
    if name in SELECTIONS:
        return UnknownPrompt(
            f"There is no prompt '{name}' yet: it shows rows of your data that have a summary. Make one with:"
            f' gistmill prompts add {name} --kind {name} --data FILE --select "{SELECTIONS[name]}"'
        )
    names = [*BUILT_IN, *sorted(added)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UnknownPrompt(f"There is no prompt '{reference[:SHOWN]}'. There are: {', '.join(names[:MOST_NAMED])}.{hint}")
