"""Errors of manifests: a text that is not a manifest, an entry that no manifest can hold."""

from __future__ import annotations


class ManifestError(ValueError):
    """A text is not a manifest.

    Args:
        reason: The flaw at that place.
        line: The line, counted from 1.
        column: The byte of the line in UTF-8, counted from 1.
    """

    def __init__(self, reason: str, line: int, column: int) -> None:
        super().__init__(reason, line, column)
        self.reason = reason
        self.line = line
        self.column = column

    def __str__(self) -> str:
        return f"not a manifest: line {self.line}, column {self.column}: {self.reason}"


class EntryError(ValueError):
    """A file, directory or range that no manifest can hold; the message has the reason."""


class ConflictError(EntryError):
    """A file and a directory have the same path.

    Args:
        path: The path, as messages show it.
        place: The `place` that was given to `Assembly` with the later of the two.
    """

    def __init__(self, path: str, place: int) -> None:
        super().__init__(path, place)
        self.path = path
        self.place = place

    def __str__(self) -> str:
        return f"{self.path!r} is a file and a directory"
