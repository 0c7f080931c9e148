"""Writes docs/troubleshooting.md from the registry of messages."""

from __future__ import annotations

import sys

from keepfs.messages.registry import sections

_HEAD = """\
# Troubleshooting

Made by `scripts/troubleshooting` from the registry of messages (`keepfs/messages/`).

A message of keepfs ends with its id in brackets, such as `[not-mounted]`. `keepfs explain ID`
prints what this page says of it, and `keepfs explain` lists all ids. An id never changes. In the
messages below, words in capitals stand for what varies.
"""


def document() -> str:
    """Return the text of the document."""
    lines = [_HEAD]
    for subject, messages in sections():
        lines.append(f"## {subject[0].upper()}{subject[1:]}\n")
        for each in messages:
            lines.append(f"### {each.id}\n")
            if form := each.form():
                lines.append(f"```text\n{form}\n```\n")
            lines += [f"**Cause.** {each.cause}\n", f"**Cure.** {each.cure}\n"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(document())
