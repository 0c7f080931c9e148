"""Expected failures as one line on standard error and an exit code."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from keepfs.fs.upload.unsaved import UnsavedError
from keepfs.keep.errors import ArgumentError, KeepRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTHING_CONFIGURED = """\
no setting says where the blocks are. Use either
  an Arvados cluster:  set ARVADOS_API_HOST and ARVADOS_API_TOKEN, in the environment
                       or in ~/.config/arvados/settings.conf
  or this machine:     --local-store DIR   (or KEEP_LOCAL_STORE=DIR); needs no cluster"""


@contextlib.contextmanager
def in_one_line(what: str = "") -> Iterator[None]:
    """Turn expected failures into a message and exit code 1.

    Args:
        what: Prefix of the message.
    """
    try:
        yield
    except (KeepRequestError, ArgumentError, UnsavedError) as error:
        raise click.ClickException(f"{what}{error}") from error
    except BrokenPipeError:
        raise
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        raise click.ClickException(f"{what}{name}{error.strerror or error}") from error
