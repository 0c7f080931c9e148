"""What a test makes a server do wrong, and to which requests.

A `Fault` is a value that says how one exchange goes wrong; `Faults` holds the
rules by which requests come to their faults. Any thread may change the rules
while the server runs.
"""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.keepstore.wire import Answer


class Stage(enum.Enum):
    """A moment in an exchange."""

    BEFORE_READ = "before_read"  # the headers have come, no byte of the body is read
    BEFORE_STATUS = "before_status"  # the request is carried out, nothing is answered yet
    BEFORE_BODY = "before_body"  # status and headers are sent
    MID_BODY = "mid_body"  # half of the body is sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How one exchange goes wrong. Without arguments: not at all.

    Attributes:
        status: Answered in place of the right status.
        body: Sent in place of the right body; a wrong locator, for one.
        carry_out: Whether a request answered with `status` has its effect all
            the same. If not, its body is read and thrown away.
        unread: Leave even that: answer `status` before the body has come.
        length: Announced as the body's length; if that is more than there is,
            the connection closes after the body.
        headers: Added to the answer; one of the same name is replaced.
        drop_headers: Left out of the answer, such as
            `X-Keep-Storage-Classes-Confirmed` to be an old server.
        pause: Seconds to wait at each of these stages.
        hold: Wait at this stage until the test releases the request, or the
            server stops.
        close: Close the connection at this stage. Closing before the status
            loses the answer to a request that has been carried out.
        close_after: Close the connection after that many bytes of the body.
        reset: Close with a reset (RST) instead of an orderly end (FIN).
        send_rate: Bytes a second at which the answer's body is sent.
        receive_rate: Bytes a second at which the request's body is read.
        no_continue: Send no `100 Continue` although the client waits for it.
    """

    status: int | None = None
    body: bytes | None = None
    carry_out: bool = False
    unread: bool = False
    length: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_headers: tuple[str, ...] = ()
    pause: Mapping[Stage, float] = field(default_factory=dict)
    hold: Stage | None = None
    close: Stage | None = None
    close_after: int | None = None
    reset: bool = False
    send_rate: float | None = None
    receive_rate: float | None = None
    no_continue: bool = False

    @property
    def replaces(self) -> bool:
        """Tell whether the request is not carried out at all."""
        return self.status is not None and not self.carry_out

    @property
    def is_prompt(self) -> bool:
        """Tell whether head and body may leave together."""
        stops = self.pause or self.hold or self.close
        return not stops and self.send_rate is None and self.close_after is None

    def alter(self, answer: Answer) -> Answer:
        """Make the right answer the wrong one."""
        dropped = {name.lower() for name in self.drop_headers}
        kept = {name: text for name, text in answer.headers.items() if name.lower() not in dropped}
        kept.update(self.headers)
        altered = replace(answer, headers=kept)
        if self.status is not None:
            altered = replace(altered, status=self.status)
        if self.body is not None:
            altered = replace(altered, body=self.body, length=None)
        if self.length is not None:
            altered = replace(altered, length=self.length)
        return altered


#: An exchange as it should be.
NO_FAULT = Fault()


@dataclass(slots=True)
class _Rule:
    method: str | None
    target: str
    fault: Fault
    uses: int | None


class Faults:
    """The rules of one server, and the requests it holds back.

    The oldest rule that fits a request and isn't used up decides.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rules: list[_Rule] = []
        self._held = 0
        self._permits = 0
        self._stopped = False
        # Counts `heal`; each request's thread remembers when it met its fault.
        self._heals = 0
        self._met = threading.local()

    def script(self, *faults: Fault, method: str | None = None, target: str = "") -> None:
        """Give the next requests these faults, one each, in this order.

        Args:
            faults: `Fault()` lets a request pass unharmed.
            method: Only requests of this method count.
            target: Only requests whose target has this text in it count.
        """
        with self._changed:
            self._rules += [_Rule(method, target, fault, 1) for fault in faults]

    def always(self, fault: Fault, *, method: str | None = None, target: str = "") -> None:
        """Give every fitting request this fault, until the rules are cleared."""
        with self._changed:
            self._rules.append(_Rule(method, target, fault, None))

    def clear(self) -> None:
        """Forget all rules. Requests that are held stay so."""
        with self._changed:
            self._rules.clear()

    def heal(self) -> None:
        """Forget all rules, and hold no request that has met one of them, now or later."""
        with self._changed:
            self._rules.clear()
            self._heals += 1
            self._permits = 0
            self._changed.notify_all()

    def take(self, method: str, target: str) -> Fault:
        """Find a request's fault, and use up its rule if that works only once."""
        with self._changed:
            self._met.heals = self._heals
            for rule in self._rules:
                if rule.method in {None, method} and rule.target in target:
                    if rule.uses is not None:
                        self._rules.remove(rule)
                    return rule.fault
        return NO_FAULT

    def hold(self) -> None:
        """Wait until the test lets one request go on, or the server stops."""
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._permits > 0 or self._is_healed())
            self._held -= 1
            if not self._is_healed():
                self._permits -= 1
            self._changed.notify_all()

    def pause(self, seconds: float) -> bool:
        """Wait, until the fault is over at most; tell whether it is over."""
        with self._changed:
            return self._changed.wait_for(self._is_healed, seconds)

    def _is_healed(self) -> bool:
        """Tell whether what this thread's request has met is over."""
        return self._stopped or self._heals != getattr(self._met, "heals", self._heals)

    def release(self, requests: int | None = None) -> None:
        """Let that many held requests go on; None means all that are held now."""
        with self._changed:
            self._permits += self._held if requests is None else requests
            self._changed.notify_all()

    def wait_held(self, requests: int, timeout: float = 10.0) -> None:
        """Block until that many requests are held.

        Raises:
            TimeoutError: They were fewer for `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._held >= requests, timeout):
                raise TimeoutError(f"{self._held} of {requests} requests are held")

    def stop(self) -> None:
        """Let all requests go, now and later: the server ends."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
