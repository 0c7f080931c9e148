"""Transfer: receive blocks, hashed on the way, and short texts.

A status of 200 does not prove that the copy is intact: keepstore sends it before it
detects a damaged block, then cuts the body short. So a body is accepted only if it is
complete, has the locator's size, and hashes to the locator's digest.

A body that is cut short has two causes: the copy is damaged, or the service or
the network failed. keepstore verifies a block before it sends the last piece of
it, so a damaged block lacks exactly that piece. Every other cut is a failure of the
exchange (`BodyCutError`).
"""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

import urllib3

from keepfs.keep.buffers import FreshAllocation
from keepfs.keep.hashing.growing import LARGE, block_digest
from keepfs.keep.http.wire import CutShortError, declared_length
from keepfs.keep.locator import MAX_BLOCK_SIZE, KeepLocator
from keepfs.keep.services.outcome import TRANSPORT_ERRORS, innermost
from keepfs.keep.store import ReadObserver

if TYPE_CHECKING:
    from keepfs.keep.buffers import Allocation
    from keepfs.keep.hashing.growing import GrowingDigest
    from keepfs.keep.http.pace import Pace, Watch
    from keepfs.keep.http.transport import Answer

#: Bytes that are received, then hashed: large enough that hashing releases the
#: interpreter's lock, small enough for the processor's cache.
_STEP = 256 * 1024
#: The same if another thread hashes: each step costs two thread switches.
_STEP_BESIDE = 512 * 1024
#: Bytes that keepstore reads, checks and sends at a time.
_PIECE = 64 * 1024
#: Seconds; a longer wait for memory doesn't count as silence of the service.
_LONG_WAIT = 1.0
#: Most bytes of an answer's text: a locator or an error.
MOST_TEXT = 4096


class BodyCutError(CutShortError):
    """The connection ended in the middle of a block.

    Args:
        got: Bytes received.
        size: Bytes expected, or None if unknown.
    """

    def __init__(self, got: int, size: int | None) -> None:
        of = "" if size is None else f" of {size}"
        super().__init__(f"the connection ended after {got}{of} bytes")


class PacedObserver(ReadObserver):
    """Passes the start of a block to the pace and the watch of its exchange.

    Args:
        observer: The call's observer; it is notified too, and provides the memory.
        pace: The pace of the exchange, or None.
        watch: The callbacks of the exchange, or None.
    """

    def __init__(self, observer: ReadObserver, pace: Pace | None, watch: Watch | None) -> None:
        self._observer = observer
        self._pace = pace
        self._watch = watch

    def began(self, size: int) -> None:
        """Start to measure the rate of the block."""
        if self._pace is not None:
            self._pace.expect(size)
        self._observer.began(size)

    def allocate(self, size: int) -> Allocation:
        """Return the memory of the caller's observer, when the watch admits the block. Blocks."""
        if self._watch is not None:
            self._watch.on_block()
        memory = self._observer.allocate(size)
        if self._pace is not None and self._pace.silent_for() > _LONG_WAIT:
            self._pace.resume()  # the wait for memory was no silence of the service
        return memory


def receive_block(
    answer: Answer,
    locator: KeepLocator,
    declared: int | None,
    observer: ReadObserver,
    probe: int = 0,
) -> tuple[str, bytes | memoryview]:
    """Receive a block and hash it on the way. Blocks.

    Args:
        answer: The answer, with its body still to be read.
        locator: The block's locator.
        declared: The Content-Length of the answer, or None.
        observer: Notified of the size before the block is received; allocates the memory
            that it is received into.
        probe: Bytes that are received into separate memory first; a block of at most this
            size needs no other.

    Returns:
        The flaw of the block as text, empty if it is intact, and its bytes.

    Raises:
        BodyCutError: The connection ended too early, and not where a damaged copy ends.
        http.client.HTTPException: The body isn't valid HTTP; or an `OSError`.
    """
    size = declared if locator.size is None else locator.size
    if declared is not None and declared != size:
        return f"{declared} bytes announced for a block of {size}", b""
    if size is not None and size > MAX_BLOCK_SIZE:
        return f"{size} bytes, more than a block has", b""
    if size is not None:
        observer.began(size)
    # Without a Content-Length allow one byte more, to detect a body that is too long.
    capacity = MAX_BLOCK_SIZE + 1 if size is None else size + (declared is None)
    begun = min(probe, capacity)
    memory: Allocation = FreshAllocation(begun) if begun else observer.allocate(capacity)
    digest = block_digest(capacity)
    try:
        step = _STEP if capacity < LARGE else _STEP_BESIDE
        got, is_cut = _receive_into(memory.view, 0, answer, digest, step)
        if got == begun < capacity and not is_cut and begun:
            first, memory = memory.view, observer.allocate(capacity)
            memory.view[:begun] = first
            got, is_cut = _receive_into(memory.view, begun, answer, digest, step)
        md5sum = "" if is_cut else digest.hexdigest()
    finally:
        digest.close()
    # Without a length or chunks the end of the connection ends the body, early or not.
    has_end = declared is not None or "transfer-encoding" in answer.headers
    if is_cut or (size is not None and got < size and not has_end):
        if not got or size is None or got != _sent_of_a_damaged_block(size):
            raise BodyCutError(got, size)
        return f"the service sent {got} of {size} bytes, then closed the connection", b""
    flaw = _body_flaw(locator, size, got, md5sum)
    return flaw, b"" if flaw else memory.first(got)


def _body_flaw(locator: KeepLocator, size: int | None, got: int, md5sum: str) -> str:
    """Return the flaw of a complete body, as text; empty if it is intact."""
    if size is not None and got != size:
        more = "more than " if got > size else ""
        return f"{more}{min(got, size)} of {size} bytes came, then the end"
    if got > MAX_BLOCK_SIZE:
        return "more bytes than a block has"
    return "" if md5sum == locator.md5sum else f"its MD5 is {md5sum}"


def _sent_of_a_damaged_block(size: int) -> int:
    """Return the bytes of a block that keepstore sends before it detects damage."""
    return max(0, size - 1) // _PIECE * _PIECE


def _receive_into(
    view: memoryview, begin: int, answer: Answer, digest: GrowingDigest, step: int
) -> tuple[int, bool]:
    """Receive bytes into a view from `begin` on, at most `step` at a time, and hash them.

    Returns:
        The end of the bytes in the view, and whether the connection ended before the body did.
    """
    got = begin
    while got < view.nbytes:
        try:
            count = _read_into(answer, view[got : got + step])
        except CutShortError:
            return got, True
        if not count:
            break
        got += count
        digest.extend(view[:got])
    return got, False


def receive_text(answer: Answer) -> bytes:
    """Receive a short answer: at most 4,096 bytes of it."""
    return bytes(answer.raw.read(MOST_TEXT) or b"")


def receive_complaint(answer: Answer) -> bytes:
    """Receive the text of an error, so that the connection can be reused.

    Empty if it is too long or incomplete: the status is sufficient.
    """
    length = content_length(answer)
    if length is None or length > MOST_TEXT:
        return b""
    try:
        return receive_text(answer)
    except TRANSPORT_ERRORS:
        return b""


def content_length(answer: Answer) -> int | None:
    """Return the Content-Length of an answer, or None."""
    return declared_length(answer.headers)


def _read_into(answer: Answer, view: memoryview) -> int:
    """Receive bytes into a view; return their number, 0 at the end."""
    try:
        return int(answer.raw.readinto(view) or 0)
    except urllib3.exceptions.ProtocolError as error:
        happened = innermost(error)
        if isinstance(happened, http.client.IncompleteRead):  # of a user's session
            raise CutShortError(str(happened)) from error
        raise
