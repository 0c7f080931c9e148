"""KeepService: requests to one Keep service within one call, and their outcomes.

It never raises for a failure of a service: each request sets an `Outcome`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from keepfs import __version__
from keepfs.keep.counters import Counters
from keepfs.keep.errors import Cause
from keepfs.keep.http.exchange import Exchange
from keepfs.keep.http.pace import CancelledError, Pace
from keepfs.keep.http.timeouts import DEFAULT_TOTAL_TIMEOUT, Timeouts
from keepfs.keep.locator import MAX_BLOCK_SIZE
from keepfs.keep.retry import Verdict
from keepfs.keep.services.outcome import (
    TRANSPORT_ERRORS,
    Outcome,
    cause_of_error,
    cause_of_read,
    cause_of_write,
    flaw_of_written,
    innermost,
    is_keepstores,
    release_frames,
    verdict_is_permanent,
)
from keepfs.keep.services.tokens import without_token
from keepfs.keep.services.transfer import (
    MOST_TEXT,
    BodyCutError,
    PacedObserver,
    content_length,
    receive_block,
    receive_complaint,
    receive_text,
)
from keepfs.keep.store import ReadObserver
from keepfs.messages import of_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from typing_extensions import Buffer

    from keepfs.keep.http.exchange import Exchanges
    from keepfs.keep.http.pace import Watch
    from keepfs.keep.http.transport import Answer, Sent
    from keepfs.keep.locator import KeepLocator

_log = logging.getLogger(__name__)

#: Seconds to wait for the text of an error, which is optional.
_BRIEF = 1.0
#: Seconds for the HEAD that checks why a block was cut short.
_WHY_CUT = 10.0
_NOT_ALLOWED, _BAD_GATEWAY = 405, 502
_COMMON_HEADERS = {"User-Agent": f"keepfs/{__version__}", "Accept-Encoding": "identity"}


class KeepService:
    """One service within one call.

    One thread makes the requests. Any thread may call `cancel`, `interrupt`, `silent_for`,
    `time_left` and `rate`.

    Args:
        root: Base URL, with its slash.
        exchanges: Provides the connections.
        headers: Headers of each request, such as the token and the request's id.
        counters: The client's counters.
        deadline: The end of the call, on the monotonic clock, in seconds.
        observer: Notified of the blocks that it reads, and provides their memory; None:
            the memory is newly allocated.

    Attributes:
        is_survey: Whether the requests only find out how the service answers. An error
            status isn't counted as a failure then; a missing answer is.
    """

    def __init__(
        self,
        root: str,
        exchanges: Exchanges,
        headers: Mapping[str, str],
        counters: Counters | None = None,
        deadline: float | None = None,
        observer: ReadObserver | None = None,
    ) -> None:
        self.root = root
        self.is_survey = False
        self._exchanges = exchanges
        self._headers = {**_COMMON_HEADERS, **headers}
        self._counters = counters or Counters()
        if deadline is None:
            deadline = time.monotonic() + DEFAULT_TOTAL_TIMEOUT
        self._deadline = deadline
        self._observer = observer or ReadObserver()
        self._outcome: Outcome | None = None
        self._pace: Pace | None = None
        self._cancelled = False
        self._watch: Watch | None = None

    def __repr__(self) -> str:
        return f"KeepService({self.root!r})"

    # --- outcomes ----------------------------------------------------------

    @property
    def _token(self) -> str:
        return self._headers.get("Authorization", "").removeprefix("Bearer ")

    def usable(self) -> bool:
        """Return whether a further request to it may succeed."""
        return self._outcome is None or not self._outcome.is_permanent

    def finished(self) -> bool:
        """Return whether it has succeeded or failed permanently."""
        return self._outcome is not None and (
            self._outcome.cause is None or self._outcome.is_permanent
        )

    def outcome(self) -> Outcome | None:
        """Return the outcome of the last request, or None before the first."""
        return self._outcome

    def has_succeeded(self) -> bool:
        """Return whether the last request succeeded."""
        return self._outcome is not None and self._outcome.cause is None

    def last_status(self) -> int | None:
        """Return the last answer's status; 0 if none came; None before the first request."""
        return None if self._outcome is None else self._outcome.status

    def last_result(self) -> dict[str, Any]:
        """Return the last outcome in the SDK's form, which `KeepWriterThread` reads too."""
        outcome = self._outcome
        if outcome is None:
            return {"error": None, "status_code": None, "headers": {}, "body": None}
        return {
            "error": False if outcome.cause is None else outcome.error(),
            "status_code": outcome.status,
            "headers": dict(outcome.headers),
            "body": outcome.text if outcome.block is None else outcome.block,
        }

    def cancel(self) -> None:
        """Cancel the request in progress and all later ones. For any thread."""
        self._cancelled = True
        pace = self._pace
        if pace is not None:
            pace.cancel()

    def interrupt(self, reason: OSError) -> None:
        """End the request in progress, if any, with `reason`; others may follow.

        For any thread.
        """
        pace = self._pace
        if pace is not None:
            pace.cancel(reason)

    def silent_for(self) -> float:
        """Return the seconds since the last byte of the current request; 0 without one."""
        pace = self._pace
        return 0.0 if pace is None else pace.silent_for()

    def time_left(self) -> float:
        """Return the seconds that the rest of a block takes at its current rate.

        0 if none is being received. For any thread.
        """
        pace = self._pace
        return 0.0 if pace is None else pace.time_left()

    def rate(self) -> float:
        """Return the rate of the current transfer, in bytes per second; 0 without a request."""
        pace = self._pace
        return 0.0 if pace is None else pace.rate()

    def watch(self, watch: Watch | None) -> None:
        """Set the callbacks for further requests; None: no callbacks."""
        self._watch = watch

    # --- requests ---------------------------------------------------------

    def get(
        self,
        locator: KeepLocator,
        method: str = "GET",
        timeout: Timeouts | float | tuple[float, ...] = Timeouts(),  # noqa: B008 - immutable
    ) -> bytes | memoryview | Literal[True] | str | None:
        """Send one GET or HEAD for a block. Blocks.

        Returns:
            For a GET, the verified block; for a HEAD, the locator in the answer, or
            True if it has none; None if the request failed: see `outcome`.
        """
        patience = Timeouts.of(timeout)
        if method == "HEAD":
            patience = patience.for_head(MAX_BLOCK_SIZE if locator.size is None else locator.size)
        self._begin(
            method,
            str(locator),
            {"Accept": "application/octet-stream"},
            None,
            patience,
            lambda answer: self._read_answer(answer, method, locator),
        ).finish()
        if method == "GET" and locator.size is None and self.last_status() == _NOT_ALLOWED:
            sized = self._sized(locator, timeout)
            return None if sized is None else self.get(sized, method, timeout)
        if self._outcome is not None and self._outcome.is_cut:
            self._ask_why_cut(locator, Timeouts.of(timeout))
        outcome = self._outcome
        if outcome is None or outcome.cause is not None:
            return None
        if method == "GET":
            return outcome.block
        return outcome.headers.get("x-keep-locator") or True

    def _ask_why_cut(self, locator: KeepLocator, timeouts: Timeouts) -> None:
        """Find out by HEAD, which verifies the copy, whether a cut-off block is damaged."""
        cut = self._outcome
        self.get(
            locator, "HEAD", replace(timeouts, read=min(timeouts.read, _WHY_CUT), bandwidth=0)
        )
        why = self._outcome
        # A keepproxy's 502 means damage too, since the GET started successfully.
        if cut is not None and why is not None and why.status == _BAD_GATEWAY:
            cut = replace(cut, cause=Cause.CORRUPT, is_permanent=True)
            if why.cause is not Cause.CORRUPT:
                self._report_bad_copy(locator, cut.reason)
        self._outcome = cut

    def _sized(
        self, locator: KeepLocator, timeout: Timeouts | float | tuple[float, ...]
    ) -> KeepLocator | None:
        """Return the locator with the block's size, found by HEAD; None if that fails.

        keepstore refuses a GET without a size. Signatures don't cover the size.
        """
        refused = self._outcome
        if self.get(locator, "HEAD", timeout) is None:
            return None
        size = None if self._outcome is None else self._outcome.size
        if size is None:
            self._outcome = refused
            return None
        return locator.with_size(size)

    def put(
        self,
        hash_s: str,
        body: Buffer,
        timeout: Timeouts | float | tuple[float, ...] = Timeouts(),  # noqa: B008 - immutable
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """Send one PUT of a block, without a copy in memory. Blocks.

        Args:
            hash_s: The block's digest or locator.
            body: The block; it must not change meanwhile.
            timeout: The timeouts of the request.
            headers: Headers of this request only.

        Returns:
            Whether the service confirms that it stored this block.
        """
        return self.begin_put(hash_s, body, timeout, headers).finish()

    def sends_at_once(self, size: int) -> bool:
        """Return whether `begin_put` sends a block of `size` bytes without blocking.

        False if `put` is overridden.
        """
        is_ours = getattr(self.put, "__func__", None) is _PUT
        return is_ours and self._exchanges.sends_at_once(self.root, size)

    def begin_put(
        self,
        hash_s: str,
        body: Buffer,
        timeout: Timeouts | float | tuple[float, ...] = Timeouts(),  # noqa: B008 - immutable
        headers: Mapping[str, str] | None = None,
    ) -> Exchange:
        """Send a PUT as `put` does; don't wait for the answer. May block while sending."""
        md5sum = hash_s[:32]
        view = memoryview(body).cast("B")
        return self._begin(
            "PUT",
            md5sum,
            {"Accept": "*/*", **(headers or {})},
            view,
            Timeouts.of(timeout),
            lambda answer: self._write_answer(answer, md5sum, view.nbytes),
        )

    def _begin(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        timeouts: Timeouts,
        read: Callable[[Answer], Outcome],
    ) -> Exchange:
        """Send one request."""
        pace = Pace(timeouts, self._deadline)
        if self._watch is not None:
            pace.watch(self._watch)
        steps = self._steps(pace, method, path, headers, body, timeouts, read)
        return Exchange(pace, steps, self.has_succeeded)

    def _steps(
        self,
        pace: Pace,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: memoryview | None,
        timeouts: Timeouts,
        read: Callable[[Answer], Outcome],
    ) -> Generator[Sent, float | None]:
        """Make one request and set its outcome; raise for bugs only. See `Exchange`."""
        self._pace = pace
        if self._cancelled:
            pace.cancel()
        self._counters.requests.add(self.root)
        begun = time.monotonic()
        try:
            now = pace.check()
            left = max(0.001, self._deadline - now)
            with self._exchanges.begin(pace).send(
                method,
                self.root,
                path,
                {**self._headers, **headers},
                body,
                (min(timeouts.connect, left), min(timeouts.read, left)),
                pace,
            ) as sent:
                while (rest := (yield sent)) is not None:
                    if sent.has_begun():
                        pace.resume()
                        pace.hurry(rest, f"the rest of the answer didn't come in {rest:g} s")
                        break
                with sent.receive() as answer:
                    self._counters.answers.add(self.root, method, time.monotonic() - begun)
                    outcome = read(answer)
        except TRANSPORT_ERRORS as error:
            outcome = self._failed(pace, error)
            release_frames(error)
        finally:
            self._exchanges.end(pace)
            self._pace = None
            if pace.failure is not None:
                release_frames(pace.failure)
        self._outcome = outcome
        if outcome.cause is None and body is not None:
            self._counters.sent.add(self.root, body.nbytes)
        elif outcome.cause is not None and not (self.is_survey and outcome.status):
            self._counters.failures.add(self.root, outcome.cause.name.lower(), outcome.reason)
            _log.debug("%s of %s at %s: %s", method, path[:32], self.root, outcome.reason)

    def _failed(self, pace: Pace, error: BaseException) -> Outcome:
        """Return the outcome of an exchange without a complete answer."""
        happened: BaseException = pace.failure or innermost(error)
        cause = cause_of_error(happened if pace.failure is not None else error)
        if isinstance(happened, CancelledError):
            cause = Cause.OTHER
        text = str(happened) or type(happened).__name__
        if cause is Cause.TIMED_OUT and pace.failure is None:
            text = f"no answer in time ({text})"
        is_cut = isinstance(happened, BodyCutError)
        return Outcome(0, without_token(text, self._token), cause, is_cut=is_cut)

    # --- answers ----------------------------------------------------------

    def _read_answer(self, answer: Answer, method: str, locator: KeepLocator) -> Outcome:
        status, headers = answer.status, answer.headers
        reason = without_token(answer.status_line(), self._token)
        if Verdict.of(status) is not Verdict.SUCCESS:
            text = self._complaint(answer)
            cause = cause_of_read(
                status,
                # A HEAD has no text; keepstore answers 502 for damaged copies only.
                is_corrupt=b"checksum mismatch" in text
                or (method == "HEAD" and is_keepstores(headers)),
            )
            if cause is Cause.CORRUPT:
                self._report_bad_copy(locator, "the service reports it")
            # A damaged copy stays damaged: don't fetch it again in the next round.
            is_permanent = cause is Cause.CORRUPT or verdict_is_permanent(status)
            return Outcome(status, reason, cause, headers, is_permanent=is_permanent)
        declared = content_length(answer)
        if method == "HEAD":
            receive_text(answer)  # empty; makes the connection reusable
            # 0 is not compared: some servers of HTTP send it with every answer to a HEAD.
            if declared and locator.size not in {None, declared}:
                self._report_bad_copy(locator, f"it has {declared} bytes")
                reason = f"it has {declared} bytes, not {locator.size}"
                return Outcome(0, reason, Cause.CORRUPT, headers, is_permanent=True)
            return Outcome(status, reason, headers=headers, size=declared)
        probe = 0 if self._watch is None else self._watch.probe
        observer = PacedObserver(self._observer, self._pace, self._watch)
        flaw, block = receive_block(answer, locator, declared, observer, probe)
        if self._pace is not None and self._pace.failure is not None:
            raise self._pace.failure
        if flaw:
            # Permanent, although it may have been damaged in transit: TCP and TLS make that
            # rare, and the same round tries the other services.
            self._report_bad_copy(locator, flaw)
            reason = f"a bad copy: {flaw}"
            return Outcome(0, reason, Cause.CORRUPT, headers, is_permanent=True)
        self._counters.received.add(self.root, len(block))
        return Outcome(status, reason, headers=headers, block=block, size=len(block))

    def _write_answer(self, answer: Answer, md5sum: str, size: int) -> Outcome:
        status, headers = answer.status, answer.headers
        reason = without_token(answer.status_line(), self._token)
        if Verdict.of(status) is not Verdict.SUCCESS:
            self._complaint(answer)
            cause = cause_of_write(status, headers)
            return Outcome(
                status, reason, cause, headers, is_permanent=verdict_is_permanent(status)
            )
        raw = receive_text(answer)
        if len(raw) < min(content_length(answer) or 0, MOST_TEXT):
            return Outcome(0, "the answer was cut short", Cause.UNREACHABLE, headers)
        text = raw.decode("utf-8", "replace").strip()
        flaw = flaw_of_written(text, md5sum, size)
        if not flaw:
            return Outcome(status, reason, headers=headers, text=text)
        return Outcome(0, f"{reason}, {flaw}", Cause.OTHER, headers, is_permanent=True)

    def _complaint(self, answer: Answer) -> bytes:
        """Read the text of an error, within a second."""
        if self._pace is not None:
            self._pace.hurry(_BRIEF)
        return receive_complaint(answer)

    def _report_bad_copy(self, locator: KeepLocator, flaw: str) -> None:
        self._counters.bad_copies.add(self.root)
        _log.warning(
            "%s",
            of_stores.BAD_COPY(service=self.root, locator=locator.stripped(), reason=flaw),
        )


#: The original method, to detect an overridden one.
_PUT = KeepService.put
