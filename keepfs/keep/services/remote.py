"""RemoteStore: the Keep services as one store, used in rounds.

A round sends requests to the services that the locator's hints name, then to each
service that may still help, in probe order. `keepfs.keep.services.rounds` decides
whether there is another round.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Protocol

from keepfs.keep.background import Background
from keepfs.keep.errors import Cause, KeepReadError, KeepWriteError, NoKeepServersError
from keepfs.keep.http.timeouts import DEFAULT_PROXY_TIMEOUT, DEFAULT_TIMEOUT, Timeouts
from keepfs.keep.locator import EMPTY_BLOCK, MAX_BLOCK_SIZE, KeepLocator
from keepfs.keep.services.discovery import Access, Services, probe_order
from keepfs.keep.services.extras import Extras
from keepfs.keep.services.failures import read_error, write_error
from keepfs.keep.services.hedge import SILENCE, Hedge
from keepfs.keep.services.rounds import Rounds
from keepfs.keep.services.sluggish import Sluggish
from keepfs.keep.services.tokens import clean_token, salted_token
from keepfs.keep.services.writer_queue import Tally
from keepfs.keep.store import Found, Receipt
from keepfs.messages import of_stores

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from typing_extensions import Buffer

    from keepfs.keep.counters import Counters
    from keepfs.keep.errors import KeepRequestError
    from keepfs.keep.http.exchange import Exchanges
    from keepfs.keep.services.outcome import Outcome
    from keepfs.keep.services.roster import Defaults, Roster
    from keepfs.keep.services.service import KeepService
    from keepfs.keep.services.writers import KeepWriterThreadPool
    from keepfs.keep.store import CallOptions, ReadObserver, Wanted

_log = logging.getLogger(__name__)


#: Most threads that hedge silent or slow services. A mount has 16 readers and fetches 32
#: blocks in the background.
_MOST_HEDGES = 64
#: Bytes per second at which a service surely hashes a block and writes it to its disk before
#: it answers a PUT: a third of the rate of a hard disk.
_WRITING_RATE = 32 * 1024 * 1024
#: Seconds that `close` waits for these threads; their exchanges are cancelled.
_CLOSING = 5.0
#: Bytes; a nominal figure, as other network file systems report.
_PLENTY = 1 << 50


class Parts(Protocol):
    """The classes that a store uses: attributes of the client, so that they can be replaced."""

    @property
    def KeepService(self) -> type[KeepService]:  # noqa: N802 - the SDK's name
        """The class for requests to one service."""

    @property
    def KeepWriterThreadPool(self) -> type[KeepWriterThreadPool]:  # noqa: N802 - likewise
        """The class for the writes of one round."""


class RemoteStore:
    """Blocks at Keep services. Any thread may use it.

    Args:
        roster: The list of services.
        defaults: The cluster's defaults.
        exchanges: Provides the connections.
        counters: The client's counters.
        parts: The classes of its parts.
        api_token: The user's token; it may be replaced at any time, which affects
            later requests.
    """

    def __init__(
        self,
        roster: Roster,
        defaults: Defaults,
        exchanges: Exchanges,
        counters: Counters,
        parts: Parts,
        api_token: str = "",
    ) -> None:
        self.roster = roster
        self.defaults = defaults
        self.timeout = Timeouts.of(DEFAULT_TIMEOUT)
        self.proxy_timeout = Timeouts.of(DEFAULT_PROXY_TIMEOUT)
        self._exchanges = exchanges
        self._counters = counters
        self._parts = parts
        self._token = clean_token(api_token)
        #: Seconds of silence after which a request is sent to the next service too. A read's
        #: transfer counts as slow if it has lasted, and would still last, longer than this.
        self.silence = SILENCE
        self._hedges = Background(_MOST_HEDGES)
        self._sluggish = Sluggish()
        self._sluggish_writes = Sluggish()  # a service's disk may be able to read, not to write
        self._extras = Extras()
        self._closed = False
        self._warned_of_classes = False

    def __repr__(self) -> str:
        return f"RemoteStore({self.roster.known()!r})"

    @property
    def api_token(self) -> str:
        """The token that the next requests carry."""
        return self._token

    @api_token.setter
    def api_token(self, token: str) -> None:
        self._token = clean_token(token)

    def free_space(self) -> tuple[int, int]:
        """Report a nominal capacity: Keep services do not publish theirs."""
        return _PLENTY, _PLENTY

    def close(self) -> None:
        """Cancel the exchanges in progress, and close all connections. Blocks for up to 5 s."""
        self._closed = True
        self._hedges.close()
        self.roster.close()
        self.defaults.close()
        self._exchanges.close()
        self._hedges.wait_until_idle(_CLOSING)

    # --- reading ----------------------------------------------------------

    def read(self, locator: KeepLocator, call: CallOptions) -> bytes | memoryview:
        """Return a verified block. Blocks.

        Raises:
            NotFoundError: No service has it.
            KeepReadError: It couldn't be read; `cause` has the reason.
        """
        if locator.size is None and self._goes_through_proxies(call):
            # A keepproxy refuses a GET without a size (422), but answers a HEAD with it.
            size = self.find(locator, call).size
            locator = locator.with_size(size) if size else locator
        service = self._ask(locator, "GET", call)
        call.observer.received_from(service.root)
        outcome = service.outcome()
        return (outcome and outcome.block) or b""

    def find(self, locator: KeepLocator, call: CallOptions) -> Found:
        """Return a block's size, with HEAD; keepstore reads and verifies the block. Blocks.

        Raises:
            NotFoundError: No service has it.
            KeepReadError: No service reported its size; `cause` has the reason.
        """
        outcome = self._ask(locator, "HEAD", call).outcome()
        size = outcome.size if outcome and locator.size is None else locator.size
        return Found(size or 0, outcome.headers.get("x-keep-locator") if outcome else None)

    def _ask(self, locator: KeepLocator, method: str, call: CallOptions) -> KeepService:
        """Send requests in rounds until a service succeeds, and return it."""
        if not _can_be(locator):
            raise KeepReadError(
                f"{locator.stripped()} names no block: its size can't be", cause=Cause.CORRUPT
            )
        asked: dict[str, KeepService] = {}
        rounds = Rounds(
            self.roster, call, lambda: self._check_open(KeepReadError), self._counters.retries
        )
        for attempt, first in rounds:
            services = first
            while True:
                roots = self._add_services(asked, services, locator, Access.READ, call)
                timeouts = self.timeouts(services, Access.READ).for_attempt(attempt)
                answered = self._ask_each(asked, roots, locator, method, timeouts, call)
                if answered is not None:
                    return answered
                # The block may be on a service that isn't in the list yet.
                if not (self._nobody_has_it(asked) and self.roster.may_be_old(services)):
                    break
                services = rounds.refresh()
                if all(record.root in asked for record in services.allowing(Access.READ)):
                    break
            if not any(asked[root].usable() for root in roots):
                break
            self._doubt(asked, services)
        skipped = self._skipped_hints(rounds.services, locator)
        raise read_error(locator, call, _outcomes(asked), rounds.attempts, rounds.trouble, skipped)

    def _ask_each(
        self,
        asked: Mapping[str, KeepService],
        roots: Iterable[str],
        locator: KeepLocator,
        method: str,
        timeouts: Timeouts,
        call: CallOptions,
    ) -> KeepService | None:
        def ask(service: KeepService) -> bool:
            return service.get(locator, method, timeouts) is not None

        services = self._sluggish.last(
            [service for root in roots if (service := asked[root]).usable()]
        )
        answered = None
        while services and answered is None:
            hedge = Hedge(services, ask, call, self._hedges.spawn, self._extras, self.silence)
            answered = hedge.run()
            if answered is not None:
                self._sluggish.note([it.root for it in hedge.sluggish], [answered.root])
            # Retry the displaced services, since those that replaced them have failed.
            services = hedge.displaced if len(hedge.displaced) < len(services) else []
        return answered

    @staticmethod
    def _nobody_has_it(asked: Mapping[str, KeepService]) -> bool:
        outcomes = [service.outcome() for service in asked.values()]
        return bool(outcomes) and all(it and it.cause is Cause.NOT_FOUND for it in outcomes)

    # --- writing ----------------------------------------------------------

    def write(
        self, block: Buffer, locator: KeepLocator, wanted: Wanted, call: CallOptions
    ) -> Receipt:
        """Store a block at as many services as the requested copies need. Blocks.

        Raises:
            KeepWriteError: Too few copies are confirmed; `cause` has the reason.
        """
        classes = wanted.classes
        if classes is None:
            classes = self.defaults.storage_classes(call.remaining())
        tally = Tally(wanted.copies, classes)
        asked: dict[str, KeepService] = {}
        rounds = Rounds(
            self.roster, call, lambda: self._check_open(KeepWriteError), self._counters.retries
        )
        had_proxies: bool | None = None
        for attempt, services in rounds:
            has_proxies = services.has_proxies(Access.WRITE)
            if had_proxies not in {None, has_proxies}:
                # A proxy stores at the same services: its copies may be those counted before.
                tally, asked = Tally(wanted.copies, classes), {}
            had_proxies = has_proxies
            roots = self._add_services(asked, services, locator, Access.WRITE, call)
            pool = self._parts.KeepWriterThreadPool(
                data=block,
                data_hash=locator.stripped(),
                copies=wanted.copies,
                max_service_replicas=services.copies_per_service(),
                timeout=self.timeouts(services, Access.WRITE).for_attempt(attempt),
                classes=classes,
                tally=tally,
            )
            is_hedged = hasattr(pool, "hedge")  # a user's class may not be
            if is_hedged:
                silence = self.silence + memoryview(block).nbytes / _WRITING_RATE
                pool.hedge(silence, self._sluggish_writes)
            for service in self._sluggish_writes.last(asked[root] for root in roots):
                if not service.finished():
                    pool.add_task(service, service.root)
            before = _outcomes(asked)
            pool.join()
            after = {
                root: it for root, it in _outcomes(asked).items() if it is not before.get(root)
            }
            self._note_answers(after, pool.silent if is_hedged else (), call)
            if not tally.missing():
                return self._receipt(tally, locator)
            if all(asked[root].finished() for root in roots):
                break
            self._doubt(asked, services)
        raise write_error(
            locator,
            call,
            _outcomes(asked),
            rounds.attempts,
            tally,
            rounds.trouble,
            rounds.services,
        )

    def _note_answers(
        self, outcomes: Mapping[str, Outcome], silent: Collection[str], call: CallOptions
    ) -> None:
        timed_out = []
        if call.remaining():  # else a prompt service may have had too little time
            timed_out = [root for root, it in outcomes.items() if it.cause is Cause.TIMED_OUT]
        answered = [root for root, it in outcomes.items() if it.status and root not in silent]
        self._sluggish_writes.note(timed_out, answered)

    def _receipt(self, tally: Tally, locator: KeepLocator) -> Receipt:
        if tally.classes and not tally.is_tracking_classes and not self._warned_of_classes:
            self._warned_of_classes = True
            _log.warning("%s", of_stores.CLASSES_UNCONFIRMED())
        name = KeepLocator(tally.response) if tally.response else locator
        return Receipt(name, tally.copies, tuple(tally.roots), dict(tally.by_class))

    # --- which services ---------------------------------------------------

    def timeouts(self, services: Services | None, access: Access) -> Timeouts:
        """Return the timeouts for requests: those for proxies if any service is one."""
        return self.proxy_timeout if services and services.has_proxies(access) else self.timeout

    def roots(self, locator: KeepLocator, services: Services, access: Access) -> list[str]:
        """Return the roots in order: for reads those that hints name, then by probe order."""
        ranked = [each.root for each in probe_order(locator, services.allowing(access))]
        if access is Access.READ and locator.hints:
            ranked = [*(hint.root for hint in services.hinted(locator)), *ranked]
        return list(dict.fromkeys(ranked))

    def add_services(
        self,
        asked: dict[str, KeepService],
        services: Services,
        locator: KeepLocator,
        access: Access,
        headers: Mapping[str, str],
        *,
        deadline: float | None = None,
        observer: ReadObserver | None = None,
    ) -> list[str]:
        """Make a `KeepService` for each root that has none yet, and return the roots in order.

        A root of another cluster gets the token salted for that cluster. If the token
        can't be salted, the root is left out.
        """
        foreign = self._foreign_roots(services, locator) if locator.hints else {}
        given = _with_token(headers, self._token)
        roots = []
        for root in self.roots(locator, services, access):
            if root not in asked:
                salted = ""
                if root in foreign:
                    salted = self._foreign_token(foreign[root])
                    if not salted:
                        continue
                asked[root] = self._parts.KeepService(
                    root,
                    self._exchanges,
                    _with_token(headers, salted) if salted else given,
                    counters=self._counters,
                    deadline=deadline,
                    observer=observer,
                )
            roots.append(root)
        return roots

    def _add_services(
        self,
        asked: dict[str, KeepService],
        services: Services,
        locator: KeepLocator,
        access: Access,
        call: CallOptions,
    ) -> list[str]:
        headers = {**call.headers, "X-Request-Id": call.request_id}
        return self.add_services(
            asked,
            services,
            locator,
            access,
            headers,
            deadline=call.deadline,
            observer=call.observer,
        )

    @staticmethod
    def _foreign_roots(services: Services, locator: KeepLocator) -> dict[str, str]:
        """Return the clusters that a locator's hints name, by root; not those in the list."""
        named = {record.root for record in services.records}
        return {
            hint.root: hint.cluster_id
            for hint in services.hinted(locator)
            if hint.cluster_id is not None and hint.root not in named
        }

    def _skipped_hints(self, services: Services | None, locator: KeepLocator) -> list[str]:
        """Return a message for each cluster that a hint names and that was skipped."""
        skipped = []
        for hint in () if services is None else services.hinted(locator):
            if hint.cluster_id is not None and not self._foreign_token(hint.cluster_id):
                why = "needs an API token of the form v2/UUID/SECRET, not issued by that cluster"
                skipped.append(f"+K@{hint.cluster_id} {why}")
        return skipped

    def _goes_through_proxies(self, call: CallOptions) -> bool:
        with contextlib.suppress(NoKeepServersError):  # the request itself reports it
            return self.roster.current(call.remaining()).has_proxies(Access.READ)
        return False

    def _foreign_token(self, cluster_id: str) -> str:
        """Return the token salted for a cluster named by a locator; empty if impossible."""
        try:
            salted = salted_token(self._token, cluster_id)
        except ValueError as error:
            _log.info("not asking cluster %s, which a hint names: %s", cluster_id, error)
            return ""
        # A token of that cluster would be sent unsalted, to a host named only by a locator.
        return "" if salted == self._token else salted

    def _doubt(self, asked: Mapping[str, KeepService], services: Services) -> None:
        if any(service.last_status() == 0 for service in asked.values()):
            self.roster.doubt(services)

    def _check_open(self, failure: type[KeepRequestError]) -> None:
        if self._closed:
            raise failure("the client is closed")


_SECRET = "authorization"  # noqa: S105 - a header's name


def _with_token(headers: Mapping[str, str], token: str) -> dict[str, str]:
    """Return headers with this token and no other; without a token if it is empty."""
    given = {name: it for name, it in headers.items() if name.lower() != _SECRET}
    if token:
        given["Authorization"] = f"Bearer {token}"
    return given


def _can_be(locator: KeepLocator) -> bool:
    """Return whether a block can have this digest and this size."""
    if locator.size is None:
        return True
    is_empty = locator.md5sum == EMPTY_BLOCK.md5sum
    return locator.size <= MAX_BLOCK_SIZE and is_empty == (locator.size == 0)


def _outcomes(asked: Mapping[str, KeepService]) -> dict[str, Outcome]:
    found = {root: service.outcome() for root, service in asked.items()}
    return {root: outcome for root, outcome in found.items() if outcome is not None}
