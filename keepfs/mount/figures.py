"""Figures: the state of a mount at one time, for `keepfs status` and the metrics.

`figure_sources` makes these values. The field names are those of the JSON of `keepfs status`,
which is stable: fields may be added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keepfs.keep.counters import HistogramCounts


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """One request of the kernel that is not answered yet.

    Attributes:
        kind: The name of the handler of FUSE, such as `lookup`, `read` or `flush`.
        path: The path from the mount's root, its locators unsigned; empty if unknown.
        age: Seconds since its start.
        pid: The id of the process that waits; 0 if unknown.
    """

    kind: str
    path: str
    age: float
    pid: int


@dataclass(frozen=True, slots=True)
class WaitingFigures:
    """The requests of one kind that are not answered yet.

    Attributes:
        count: Their number.
        oldest: The oldest of them.
    """

    count: int
    oldest: RequestFigures


@dataclass(frozen=True, slots=True)
class OperationFigures:
    """The answered requests of one kind.

    Attributes:
        durations: The histogram of their durations.
        errors: Numbers of failed requests, by the name of the errno.
    """

    durations: HistogramCounts
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """One tier of the block cache.

    Attributes:
        size: Bytes of cached blocks. For the tier `disk`: bytes of all files when this mount
            last listed them, plus those that it added since; 0 before the first listing.
        capacity: Most bytes, blocks being fetched included.
        in_flight: Bytes reserved for blocks being fetched.
        blocks: Number of cached blocks; for the tier `disk` determined like `size`.
        hits: Calls that found their block.
        misses: Calls that did not.
        joined: Calls that waited for another call's fetch.
        refetched: Those of `misses` whose block had been evicted.
    """

    size: int
    capacity: int
    in_flight: int
    blocks: int
    hits: int
    misses: int
    joined: int
    refetched: int


@dataclass(frozen=True, slots=True)
class DiskCacheFigures:
    """The use of the disk cache by a mount, in addition to the figures of the tier `disk`.

    Attributes:
        directory: Its path.
        read: Bytes of blocks and parts read from it, all verified.
        added: Blocks written by this mount.
        written: Bytes of their files.
        skipped: Blocks not written: the disk was slower than the services, full, or failed.
        evictions: Blocks that this mount evicted.
        damaged: Damaged files that this mount removed.
        problem: The reason that the disk can't be used at the moment; empty if it can.
    """

    directory: str
    read: int
    added: int
    written: int
    skipped: int
    evictions: int
    damaged: int
    problem: str


@dataclass(frozen=True, slots=True)
class BlockFigures:
    """Calls for blocks.

    Attributes:
        gets: Calls that read a block, from the cache too.
        puts: Calls that stored a block.
        received: Bytes of verified blocks received.
        sent: Bytes of blocks sent, for each confirmed request.
        retries: Rounds of requests after the first of a call.
    """

    gets: int
    puts: int
    received: int
    sent: int
    retries: int


@dataclass(frozen=True, slots=True)
class FailedFigures:
    """A file that could not be stored.

    Attributes:
        path: The path from the mount's root.
        error: The reason.
    """

    path: str
    error: str


@dataclass(frozen=True, slots=True)
class UploadFigures:
    """Bytes and files of upload/ that are not stored.

    Attributes:
        staged: Bytes in memory.
        capacity: Most bytes; a faster writer waits.
        slots: Slots with staged bytes; each becomes a block.
        storing: The number of these slots that are being stored.
        unsaved: Files that could not be stored, and are retried.
        failed: The first of these files; at most 20.
    """

    staged: int
    capacity: int
    slots: int
    storing: int
    unsaved: int
    failed: tuple[FailedFigures, ...]


@dataclass(frozen=True, slots=True)
class RetentionFigures:
    """How stored files are kept.

    Attributes:
        mode: `collection`, `put`, `off`; or `local` for a local store.
        collections: Uuids of the collections that keep the blocks.
        last_update: Seconds since they were brought up to date; null if never.
        next_expiry: The time at which the first signature ends, in seconds since 1970; null if
            unknown.
        waiting: Stored files that no collection has yet.
        failures: Failed attempts in a row.
        lost: Files that can't be read any more.
    """

    mode: str
    collections: tuple[str, ...]
    last_update: float | None
    next_expiry: float | None
    waiting: int
    failures: int
    lost: int


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """One Keep service, or the local store.

    Attributes:
        root: Its base URL; `local:DIR` for a local store.
        requests: Requests sent to it.
        failures: Numbers of failed requests, by cause. `not_found` is no error of the service.
        corrupt: Copies it sent whose content does not match the locator.
        sent: Bytes of blocks that it confirmed.
        received: Bytes of verified blocks that it sent.
        answers: Times to the heads of its answers, by method. Those of PUT include the sending.
        last_failure: The text of its last failure; empty without one.
        last_failure_age: Seconds since the last failure; null without one.
    """

    root: str
    requests: int
    failures: dict[str, int]
    corrupt: int
    sent: int
    received: int
    answers: dict[str, HistogramCounts]
    last_failure: str
    last_failure_age: float | None


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """The age of the API token, and whether it is refused.

    Attributes:
        age: Seconds since it was read.
        refused: Seconds since the token was last refused, and no newer one was found; null if
            it wasn't, or a request was accepted since. A refused signature of a locator
            doesn't count.
    """

    age: float
    refused: float | None


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """The process of the mount.

    Attributes:
        pid: Its id.
        memory: Resident memory, in bytes.
        processor: Processor time, in seconds.
        threads: Its threads.
        descriptors: Its open descriptors.
    """

    pid: int
    memory: int
    processor: float
    threads: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class MountFigures:
    """All figures of a mount.

    Attributes:
        version: The version of keepfs.
        mountpoint: Its path.
        started: When the mount started, in seconds since 1970.
        uptime: Seconds since then.
        phase: `serving`, or `draining` when it ends and stores what is left.
        loop_stuck: Seconds for which the event loop has not run; 0.0 if it runs. While it is
            stuck no request is answered; the other figures are still read.
        deadline: Seconds after which a request fails with ETIMEDOUT.
        requests: Requests that are not answered yet, by kind.
        oldest: The oldest of them; null without any.
        operations: Answered requests, by kind.
        cache: The tiers of the block cache, by name: `memory`, and `disk` if there is one.
        disk_cache: Further figures of the disk cache; null if it is off.
        blocks: Calls for blocks.
        uploads: The files that are not stored.
        retention: How stored files are kept.
        services: The services.
        token: The API token; null with a local store.
        process: The process.
    """

    version: str
    mountpoint: str
    started: float
    uptime: float
    phase: str
    loop_stuck: float
    deadline: float
    requests: dict[str, WaitingFigures]
    oldest: RequestFigures | None
    operations: dict[str, OperationFigures]
    cache: dict[str, CacheFigures]
    disk_cache: DiskCacheFigures | None
    blocks: BlockFigures
    uploads: UploadFigures
    retention: RetentionFigures
    services: tuple[ServiceFigures, ...]
    token: TokenFigures | None
    process: ProcessFigures
