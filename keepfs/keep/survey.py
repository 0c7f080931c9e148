"""Survey: send HEAD for a block to every service concurrently, and time the answers.

keepstore answers HEAD after it has read and hashed the whole block, so this checks
each replica on its server without a transfer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keepfs.keep.errors import Cause
from keepfs.keep.http.timeouts import Timeouts
from keepfs.keep.threads import NoThreadError, Thread

if TYPE_CHECKING:
    from keepfs.keep.client import KeepClient
    from keepfs.keep.locator import KeepLocator
    from keepfs.keep.services.service import KeepService

#: Seconds to connect. Shorter than for reads: a failure is a result of the survey.
_CONNECT = 5.0
#: Seconds that a service may take to hash a block. Guessed: at 1 MB/s.
DEFAULT_TIMEOUT = 75.0


@dataclass(frozen=True, slots=True)
class Sighting:
    """The answer of one service about a block.

    Attributes:
        root: The service's base URL.
        cause: The cause of a failure; None if the service has the block intact.
        status: The HTTP status; 0 without an answer.
        reason: The status line, or a description of the failure.
        seconds: The time to the answer.
        is_proxy: Whether a keepproxy answered.
    """

    root: str
    cause: Cause | None
    status: int
    reason: str
    seconds: float
    is_proxy: bool = False


def survey(
    client: KeepClient, locator: KeepLocator, timeout: float = DEFAULT_TIMEOUT
) -> list[Sighting]:
    """Query every service concurrently; return the answers in probe order. Blocks.

    Args:
        client: The client whose services are queried.
        locator: The block's locator.
        timeout: Seconds that a service may take.

    Raises:
        NoKeepServersError: The services aren't known.
    """
    services: dict[str, KeepService] = {}
    roots = client.map_new_services(
        services, locator, force_rebuild=False, need_writable=False, headers={}
    )
    sightings: dict[str, Sighting] = {}
    patience = Timeouts(min(_CONNECT, timeout), timeout, 0)

    def ask(root: str) -> None:
        service, begin = services[root], time.monotonic()
        service.is_survey = True
        service.get(locator, "HEAD", patience)
        outcome, seconds = service.outcome(), time.monotonic() - begin
        if outcome is None:
            sightings[root] = Sighting(root, Cause.OTHER, 0, "not asked", seconds)
        else:
            is_proxy = "keepproxy" in outcome.headers.get("via", "")
            sightings[root] = Sighting(
                root, outcome.cause, outcome.status, outcome.reason, seconds, is_proxy
            )

    threads = []
    for root in roots:
        thread = Thread(target=ask, args=(root,), daemon=True)
        try:
            thread.start()
        except NoThreadError:
            ask(root)
        else:
            threads.append(thread)
    for thread in threads:
        thread.join()
    return [sightings[root] for root in roots]
