"""Failures a user sees: one line on standard error, and an exit code."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from keepfs.keep.errors import ArgumentError, KeepRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTHING_CONFIGURED = """\
nothing to mount: keepfs needs a place for the blocks.
  On this machine:      keepfs mount --local-store DIR MOUNTPOINT   (or KEEP_LOCAL_STORE=DIR)
  An Arvados cluster:   comes with the next version of keepfs"""


@contextlib.contextmanager
def in_one_line(what: str = "") -> Iterator[None]:
    """Turn what can be expected to fail into a message and exit code 1.

    Args:
        what: Goes before the message, where that doesn't say it.
    """
    try:
        yield
    except (KeepRequestError, ArgumentError) as error:
        raise click.ClickException(f"{what}{error}") from error
    except BrokenPipeError:
        raise
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        raise click.ClickException(f"{what}{name}{error.strerror or error}") from error
