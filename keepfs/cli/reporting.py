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

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def in_one_line(name: str = "") -> Iterator[None]:
    """Turn expected failures into a message and exit code 1.

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
        raise click.ClickException(text) from error


def text_of(error: Exception) -> str:
    """Return the text of an expected failure, with the id of its message."""
    if isinstance(error, UnsavedError):
        return of_uploads.UNSAVED_DAMAGED(text=error)
    return failure_text(error)
