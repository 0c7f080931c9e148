"""Figure sources: the owners of a mount's counters, from which its figures are read.

All figures of a mount are read here; the owner of a counter counts. `FigureSources.read` may
be called from any thread but the trio thread. It does not access the mount. What the trio thread
owns it takes from `loop_figures`, which waits for that thread for 0.5 s at most, so it works
while the event loop is stuck. The other counters have locks of their own, or are one attribute
with an immutable value, so that one read is consistent.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from keepfs import __version__
from keepfs.mount.figures import (
    BlockFigures,
    CacheFigures,
    DiskCacheFigures,
    MountFigures,
    OperationFigures,
    ProcessFigures,
    RetentionFigures,
    ServiceFigures,
    TokenFigures,
    UploadFigures,
)

if TYPE_CHECKING:
    from keepfs.keep.caching.cache_statistics import CacheStatistics
    from keepfs.keep.caching.disk.disk_cache import DiskStatistics
    from keepfs.mount.loop_figures import LoopCopies, LoopFigures
    from keepfs.mount.watchdog import Watchdog
    from keepfs.renewing_store import RenewingStore


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureSources:
    """The owners of the counters of a mount.

    Attributes:
        mountpoint: Its path.
        deadline: Seconds after which a request is answered ETIMEDOUT.
        store: The client, with its caches, counters and token.
        loop: Copies what the trio thread owns.
        watchdog: Watches the event loop.
        started_ns: When the mount started, in nanoseconds since 1970.
        started: The same on the monotonic clock, in seconds.
    """

    mountpoint: str
    deadline: float
    store: RenewingStore
    loop: LoopCopies
    watchdog: Watchdog
    started_ns: int = field(default_factory=time.time_ns)
    started: float = field(default_factory=time.monotonic)

    def read(self) -> MountFigures:
        """Return the figures. For any thread but the trio thread; blocks for 0.5 s at most."""
        loop = self.loop.latest(is_stuck=self.watchdog.loop_stuck() > 0)
        waiting = loop.waiting
        oldest = max((it.oldest for it in waiting.values()), key=lambda it: it.age, default=None)
        counters = self.store.counters
        disk = self.store.block_cache.disk
        tiers = {"memory": _tier(self.store.block_cache.statistics())}
        more = None
        if disk is not None:
            counted = disk.statistics()
            tiers["disk"] = _disk_tier(counted)
            more = _disk_cache(str(disk.directory), counted)
        return MountFigures(
            version=__version__,
            mountpoint=self.mountpoint,
            started=self.started_ns / 1e9,
            uptime=time.monotonic() - self.started,
            phase="draining" if loop.is_draining else "serving",
            loop_stuck=self.watchdog.loop_stuck(),
            deadline=self.deadline,
            requests=waiting,
            oldest=oldest,
            operations={
                kind: OperationFigures(
                    each.durations,
                    {
                        errno.errorcode.get(number, str(number)): count
                        for number, count in each.errors.items()
                    },
                )
                for kind, each in loop.operations.items()
            },
            cache=tiers,
            disk_cache=more,
            blocks=BlockFigures(
                counters.gets.get(),
                counters.puts.get(),
                counters.download.get(),
                counters.upload.get(),
                counters.retries.get(),
            ),
            uploads=_uploads(loop),
            retention=_retention(loop),
            services=self._services(),
            token=self._token(),
            process=_process(),
        )

    def _services(self) -> tuple[ServiceFigures, ...]:
        counters = self.store.counters
        requests, corrupt = counters.requests.get(), counters.bad_copies.get()
        sent, received = counters.sent.get(), counters.received.get()
        causes, last = counters.failures.by_cause(), counters.failures.last()
        answers, now = counters.answers.get(), time.monotonic()
        return tuple(
            ServiceFigures(
                root,
                requests.get(root, 0),
                {
                    cause: number
                    for (name, cause), number in sorted(causes.items())
                    if name == root
                },
                corrupt.get(root, 0),
                sent.get(root, 0),
                received.get(root, 0),
                {method: each for (name, method), each in sorted(answers.items()) if name == root},
                last[root].reason if root in last else "",
                now - last[root].at if root in last else None,
            )
            for root in sorted({*self.store.known_services(), *requests})
        )

    def _token(self) -> TokenFigures | None:
        token, now = self.store.statistics(), time.monotonic()
        if token is None:
            return None
        refused = token.refused_at
        return TokenFigures(now - token.read_at, None if refused is None else now - refused)


def _uploads(loop: LoopFigures) -> UploadFigures:
    staging = loop.staging
    return UploadFigures(
        staging.currsize,
        staging.maxsize,
        staging.slots,
        staging.storing,
        loop.unsaved,
        loop.failed,
    )


def _retention(loop: LoopFigures) -> RetentionFigures:
    kept = loop.retention
    return RetentionFigures(
        kept.mode,
        kept.collections,
        loop.updated,
        kept.next_expiry,
        kept.waiting,
        kept.failures,
        loop.lost,
    )


def _tier(cache: CacheStatistics) -> CacheFigures:
    return CacheFigures(
        cache.currsize,
        cache.maxsize,
        cache.in_flight,
        cache.blocks,
        cache.hits,
        cache.misses,
        cache.joined,
        cache.refetched,
    )


def _disk_tier(disk: DiskStatistics) -> CacheFigures:
    return CacheFigures(
        size=disk.currsize,
        capacity=disk.maxsize,
        in_flight=0,
        blocks=disk.blocks,
        hits=disk.hits,
        misses=disk.misses,
        joined=disk.joined,
        refetched=0,
    )


def _disk_cache(directory: str, disk: DiskStatistics) -> DiskCacheFigures:
    return DiskCacheFigures(
        directory,
        disk.hit_bytes,
        disk.added,
        disk.added_bytes,
        disk.skipped,
        disk.evictions,
        disk.damaged,
        disk.problem,
    )


def _process() -> ProcessFigures:
    times = os.times()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return ProcessFigures(
        os.getpid(),
        pages * os.sysconf("SC_PAGE_SIZE"),
        times.user + times.system,
        len(os.listdir("/proc/self/task")),  # noqa: PTH208 - names only
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names only
    )
