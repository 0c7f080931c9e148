"""ContentReader: reads of a file of upload/, with new signatures when a service refuses one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.fs.reading import BlockReader
from keepfs.fs.upload.staged import zeros
from keepfs.keep.errors import Cause, KeepReadError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keepfs.fs.upload.content import Content
    from keepfs.fs.upload.staging import Staging
    from keepfs.fs.upload.stored import StoredRange
    from keepfs.keep.locator import KeepLocator


class ContentReader:
    """Reads the stored and unstored bytes of a file.

    For the trio thread only.

    Args:
        content: The bytes of the file.
        staging: Holds unstored bytes.
    """

    def __init__(self, content: Content, staging: Staging) -> None:
        self._content = content
        self._staging = staging
        self._blocks = BlockReader(staging.blocks, content.locator_of)

    def read_nowait(self, offset: int, size: int) -> memoryview | None:
        """Return what `read` would, if it is of one stored block in memory; else None."""
        content = self._content
        end = min(offset + size, content.size)
        part = content.stored_at(offset) if offset < end else None
        if part is None or part.length < end - offset:
            return None
        return self._blocks.read_nowait(
            content.block_at(offset),
            part.locator,
            part.locator.size or 0,
            part.offset,
            part.offset + end - offset,
        )

    async def read(self, offset: int, size: int, file_number: int | None) -> bytes | memoryview:
        """Return the bytes from `offset` on, `size` at most, unstored ones included.

        Args:
            offset: The first byte.
            size: The number of bytes.
            file_number: The number of the file in the catalog; None if it has none.

        Raises:
            KeepReadError: A block couldn't be read; `Cause.OTHER` if no service has it.
        """
        end = min(offset + size, self._content.size)
        pieces = []
        while offset < end:
            piece = await self._read_at(offset, end, file_number)
            pieces.append(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def change(
        self, number: int, change: Callable[[], Awaitable[None]], file_number: int | None
    ) -> None:
        """Change a slot, which may read its stored bytes; repeat it once if that helps.

        Args:
            number: The number of the slot.
            change: Changes it.
            file_number: See `read`.

        Raises:
            KeepReadError: A block couldn't be read; `Cause.OTHER` if no service has it.
        """
        before = self._content.locators(number)
        try:
            return await change()
        except KeepReadError as error:
            await self._renewed(error, before, self._content.locators(number), file_number)
        return await change()

    async def _read_at(self, offset: int, end: int, file_number: int | None) -> bytes | memoryview:
        """Return the bytes from `offset` up to `end`, or to the end of their block or slot."""
        part = self._content.stored_at(offset)
        try:
            return await self._read_part(offset, end, part)
        except KeepReadError as error:
            before = [] if part is None else [part.locator]
            part = self._content.stored_at(offset)
            now = [] if part is None else [part.locator]
            await self._renewed(error, before, now, file_number)
        return await self._read_part(offset, end, self._content.stored_at(offset))

    async def _read_part(
        self, offset: int, end: int, part: StoredRange | None
    ) -> bytes | memoryview:
        content = self._content
        if part is not None:
            last = part.offset + min(part.length, end - offset)
            block, size = content.block_at(offset), part.locator.size or 0
            return await self._blocks.read(block, part.locator, size, part.offset, last)
        block_size = self._staging.block_size
        number, begin = divmod(offset, block_size)
        stop = min(block_size, begin + end - offset)
        if not content.may_have_bytes(number):
            return zeros(stop - begin)
        return await content.slot(number).read(begin, stop)

    async def _renewed(
        self,
        error: KeepReadError,
        before: list[KeepLocator],
        now: list[KeepLocator],
        file_number: int | None,
    ) -> None:
        """Return when there are new signatures after a refusal; raise if nothing helps.

        Args:
            error: The failure of a read.
            before: The locators of its blocks when it began.
            now: Those that they have now.
            file_number: See `read`.

        Raises:
            KeepReadError: There are none, or the error is another; `Cause.OTHER` if no service
                has the block.
        """
        renewal = self._staging.renewal
        if error.cause is Cause.NOT_FOUND:
            renewal.missing(file_number, str(error))
            raise KeepReadError(f"a block is lost: {error}", cause=Cause.OTHER) from error
        if error.cause is not Cause.DENIED:
            raise error
        if now == before:
            # The error doesn't say which was refused; most likely all are of another token.
            asked = [await renewal.refused(each, file_number) for each in before]
            if not any(asked):
                raise error
