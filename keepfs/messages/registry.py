"""The registry: every message by its id, and the explanation of a message."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from keepfs.messages import (
    of_commands,
    of_mounts,
    of_retention,
    of_running,
    of_stores,
    of_uploads,
)
from keepfs.messages.message import Message, ids_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

_MODULES = (of_commands, of_stores, of_mounts, of_running, of_uploads, of_retention)
#: Columns of an explanation.
_WIDTH = 88


def _of_module(module: ModuleType) -> list[Message]:
    return [each for each in vars(module).values() if isinstance(each, Message)]


#: Each message by its id.
MESSAGES: Mapping[str, Message] = {
    each.id: each for module in _MODULES for each in _of_module(module)
}


def sections() -> list[tuple[str, list[Message]]]:
    """Return the subjects of messages, each with its messages in alphabetical order."""
    return [
        (
            (module.__doc__ or "").partition("\n")[0].removeprefix("Messages about ").rstrip("."),
            sorted(_of_module(module), key=lambda each: each.id),
        )
        for module in _MODULES
    ]


def find_message(text: str) -> Message | None:
    """Return the message of an id, or of a text that contains an id; None if there is none."""
    text = text.strip()
    if text.strip("[]") in MESSAGES:
        return MESSAGES[text.strip("[]")]
    return next((MESSAGES[each] for each in ids_in(f" {text}") if each in MESSAGES), None)


def explanation(message: Message) -> str:
    """Return what `keepfs explain` prints about a message."""

    def filled(label: str, text: str) -> str:
        indent = " " * 10
        lines = [
            textwrap.fill(line, _WIDTH, initial_indent=indent, subsequent_indent=indent)
            for line in text.split("\n")
        ]
        return f"{label:10}{chr(10).join(lines).strip()}"

    return "\n".join(
        [
            message.id,
            filled("Message:", message.form() or "as it comes"),
            filled("Cause:", message.cause),
            filled("Cure:", message.cure),
        ]
    )
