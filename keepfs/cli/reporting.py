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
def in_one_line(what: str = "") -> Iterator[None]:
    """Turn expected failures into a message and exit code 1.

    Args:
        what: Prefix of the message.

    Raises:
        click.ClickException: The body failed as can be expected; BrokenPipeError is passed on.
    """
    try:
        yield
    except (KeepRequestError, ArgumentError, UnsavedError, MessageError) as error:
        text = f"{what}{text_of(error)}"
        raise click.ClickException(text) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        text = f"{what}{text_of(error)}"
        raise click.ClickException(text) from error


def text_of(error: Exception) -> str:
    """Return the text of an expected failure, with the id of its message."""
    if isinstance(error, UnsavedError):
        return of_uploads.UNSAVED_DAMAGED(text=error)
    return failure_text(error)
