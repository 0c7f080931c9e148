"""Expected failures as one line on standard error and an exit code."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from keepfs.fs.failure_text import failure_text
from keepfs.fs.upload.unsaved import UnsavedError
from keepfs.keep.errors import ArgumentError, KeepRequestError
from keepfs.messages import of_uploads
from keepfs.messages.message import MessageError
from keepfs.mount.daemon import exit_status_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class WrongSettingError(click.ClickException):
    """A setting can't be used, which only opening the store can find."""

    exit_code = 2


@contextlib.contextmanager
def in_one_line(name: str = "") -> Iterator[None]:
    """Turn expected failures into a message and exit code 1, or 2 for a wrong setting.

    Args:
        name: The file that the body is about: the message begins with it.

    Raises:
        click.ClickException: The body failed as can be expected; BrokenPipeError is passed on.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (KeepRequestError, ArgumentError, UnsavedError, MessageError, OSError) as error:
        is_named = isinstance(error, OSError) and error.filename is not None
        text = text_of(error) if is_named or not name else f"{name}: {text_of(error)}"
        kind = click.ClickException if exit_status_of(text) == 1 else WrongSettingError
        raise kind(text) from error


def text_of(error: Exception) -> str:
    """Return the text of an expected failure, with the id of its message."""
    if isinstance(error, UnsavedError):
        return of_uploads.UNSAVED_DAMAGED(text=error)
    return failure_text(error)
