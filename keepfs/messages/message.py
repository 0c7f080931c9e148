"""A message: the text of a failure that a user can see, with an id, a cause and a cure."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

#: The id of a message in a text: ` [not-mounted]`, usually at the end of its first line.
_MARK = re.compile(r" \[([a-z]+(?:-[a-z]+)*)\](?=\n|\Z|[;:,. )])")


class MessageError(Exception):
    """An expected failure whose text is a message: one line with what failed, why, and the id.

    Commands print the text of every class made of this one (`keepfs.cli.reporting`).
    """


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the registry. Calling it makes the text that the user sees.

    Attributes:
        id: Words joined by dashes. It never changes, and is never used for another message.
        text: What failed, why, and what to do; `{name}` stands for a field.
        cause: Its causes, for `keepfs explain` and docs/troubleshooting.md.
        cure: What to do about it.
    """

    id: str
    text: str
    cause: str
    cure: str

    def __call__(self, **fields: object) -> str:
        """Return the text with its fields and its id.

        The id of another message in a field is left out: a text has one id.

        Args:
            fields: A value for each field of the text, and no other.
        """
        text = self.text.format(**{name: without_ids(str(it)) for name, it in fields.items()})
        return marked(text, self)

    def form(self) -> str:
        """Return the text with each field as its name in capitals; empty if it is one field."""
        form = ""
        for fixed, name, _, _ in string.Formatter().parse(self.text):
            form += fixed
            if name is not None:
                form += f"{' ' if form[-1:].isalnum() else ''}{name.upper()}"
        return form if any(fixed for fixed, *_ in string.Formatter().parse(self.text)) else ""

    def fields(self) -> set[str]:
        """Return the names of the fields of the text."""
        return {name for _, name, _, _ in string.Formatter().parse(self.text) if name}

    def pattern(self) -> re.Pattern[str]:
        """Return an expression that matches the texts of this message without its id."""
        parts = [
            re.escape(fixed) + (".*" if name is not None else "")
            for fixed, name, _, _ in string.Formatter().parse(self.text)
        ]
        return re.compile("".join(parts), re.DOTALL)


def marked(text: str, message: Message) -> str:
    """Return a text with the id of a message at the end of its first line."""
    first, newline, rest = text.partition("\n")
    return f"{first} [{message.id}]{newline}{rest}"


def without_ids(text: str) -> str:
    """Return a text without the ids of messages in it."""
    return _MARK.sub("", text)


def ids_in(text: str) -> list[str]:
    """Return what looks like an id of a message in a text, in order."""
    return _MARK.findall(text)
