"""Values: the types of the values of options."""

from __future__ import annotations

import os
import sys
from typing import IO, Any

import click

from keepfs.config import options
from keepfs.messages import of_commands


def check_input() -> None:
    """Check that standard input was open when the command began.

    Raises:
        click.ClickException: It was closed.
    """
    if sys.stdin is None:
        raise click.ClickException(of_commands.NO_INPUT())


class Size(click.ParamType[int]):
    """A number of bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read a size."""
        try:
            return options.parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class DiskCacheSize(Size):
    """A number of bytes, or `auto` or `off`."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read a size."""
        if isinstance(value, int):
            return value
        word = str(value).strip().lower()
        if word in {"off", "auto"}:
            return 0 if word == "off" else options.AUTOMATIC
        try:
            return options.parse_size(word)
        except ValueError as error:
            self.fail(f"{error}, auto or off", param, ctx)


class FilledPath(click.Path):
    """A non-empty path; an empty one would mean the working directory."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Refuse an empty path."""
        if not os.fspath(value):
            self.fail("the path is empty; give a path", param, ctx)
        return super().convert(value, param, ctx)


class InputFile(click.File):
    """A text file that is read; `-` is standard input. Names in it may be undecodable."""

    def __init__(self) -> None:
        super().__init__(errors="surrogateescape")

    def convert(
        self,
        value: str | os.PathLike[str] | IO[Any],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> IO[Any]:
        """Open the file; refuse a closed standard input."""
        if value == "-":
            check_input()
        return super().convert(value, param, ctx)


class Octal(click.ParamType[int]):
    """File permissions, in octal."""

    name = "octal"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read permissions."""
        try:
            number = int(str(value), 8)
        except ValueError:
            number = -1
        if not 0 <= number <= 0o777:  # noqa: PLR2004 - rwxrwxrwx
            self.fail(f"{value!r} isn't an octal umask; write it as 022", param, ctx)
        return number


class Address(click.ParamType[tuple[str, int]]):
    """A host and a port: `HOST:PORT`; `PORT` on the loopback address; `:PORT` on all."""

    name = "address"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Read an address."""
        host, colon, port = str(value).rpartition(":")
        if colon and not host:
            host = "0.0.0.0"  # noqa: S104 - the user asks for all addresses
        number = int(port) if port.isascii() and port.isdecimal() else -1
        if not 0 <= number <= 65535:  # noqa: PLR2004 - a TCP port
            self.fail(f"{value!r} is no address; write PORT, HOST:PORT or [::1]:PORT", param, ctx)
        return host.strip("[]") or "127.0.0.1", number
