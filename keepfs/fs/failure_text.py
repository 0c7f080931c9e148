"""The text of an expected failure, for people: with the id of its message."""

from __future__ import annotations

import os

from keepfs.keep.errors import ArgumentError, KeepRequestError
from keepfs.messages import of_commands, of_stores
from keepfs.messages.message import ids_in


def failure_text(error: BaseException) -> str:
    """Return the text of a failure in one line, with the file's name if it has one.

    The id of a message is added, except for exceptions of other parts than the client and the
    operating system.
    """
    text = str(error)
    if ids_in(text):
        return text
    match error:
        case KeepRequestError():
            return of_stores.BY_CAUSE[error.cause.name](text=text)
        case ArgumentError():
            return of_stores.BAD_ARGUMENT(text=text)
        case OSError():
            return _of_system(error, text)
        case _:
            return text


def _of_system(error: OSError, text: str) -> str:
    if isinstance(error, FileNotFoundError) and not error.filename and _is_in_removed_directory():
        return of_commands.NO_WORKING_DIRECTORY()
    if isinstance(error.strerror, str):
        name = f"{error.filename}: " if error.filename is not None else ""
        text = f"{name}{error.strerror}"
    return of_commands.FILE_FAILED(text=text)


def _is_in_removed_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() does the same
    except FileNotFoundError:
        return True
    return False
