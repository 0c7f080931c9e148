"""Metrics: the definitions of all metrics, each with its function of a mount's figures.

Counters are elsewhere: a scrape reads `figures.MountFigures` once. docs/metrics.md is made
from `METRICS` by scripts/document-metrics.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from keepfs.keep.counters import BOUNDS, HistogramCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from keepfs.mount.figures import MountFigures

    _Value = float | HistogramCounts | None
    _Samples = Iterable[tuple[tuple[str, ...], _Value]]


class MetricKind(enum.Enum):
    """The types of metrics of Prometheus that are used."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """One metric.

    Attributes:
        name: The name that Prometheus shows; a counter ends in `_total`.
        kind: Its type.
        help: One sentence, with the unit.
        labels: The names of its labels, without `mountpoint`, which every metric has.
        read: Returns samples: (values of the labels, value); a value of None is left out.
    """

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...]
    read: Callable[[MountFigures], _Samples]

    def family(self, figures: MountFigures) -> Metric:
        """Return the metric with the samples of a mount."""
        labels = ("mountpoint", *self.labels)
        samples = [
            ((figures.mountpoint, *values), value)
            for values, value in self.read(figures)
            if value is not None
        ]
        if self.kind is MetricKind.HISTOGRAM:
            histogram = HistogramMetricFamily(self.name, self.help, labels=labels)
            for values, durations in samples:
                if isinstance(durations, HistogramCounts):
                    histogram.add_metric(values, _buckets(durations), durations.total)
            return histogram
        kind = CounterMetricFamily if self.kind is MetricKind.COUNTER else GaugeMetricFamily
        family = kind(self.name, self.help, labels=labels)
        for values, value in samples:
            if isinstance(value, (int, float)):
                family.add_metric(values, value)
        return family


def _buckets(durations: HistogramCounts) -> list[tuple[str, float]]:
    found, below = [], 0
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), durations.counts, strict=True):
        below += count
        found.append((bound, float(below)))
    return found


def _one(read: Callable[[MountFigures], float | None]) -> Callable[[MountFigures], _Samples]:
    """Make a reader of a metric without labels."""
    return lambda figures: [((), read(figures))]


def _operations(figures: MountFigures) -> _Samples:
    for kind, each in figures.operations.items():
        yield (kind, "OK"), each.durations.number - sum(each.errors.values())
        for name, count in each.errors.items():
            yield (kind, name), count


def _caches(field: str) -> Callable[[MountFigures], _Samples]:
    return lambda figures: [
        ((tier,), getattr(each, field)) for tier, each in figures.cache.items()
    ]


def _disk_cache(field: str) -> Callable[[MountFigures], _Samples]:
    return _one(lambda it: None if it.disk_cache is None else getattr(it.disk_cache, field))


def _services(field: str) -> Callable[[MountFigures], _Samples]:
    return lambda figures: [((each.root,), getattr(each, field)) for each in figures.services]


def _failures(figures: MountFigures) -> _Samples:
    for each in figures.services:
        for cause, count in each.failures.items():
            yield (each.root, cause), count


def _answers(figures: MountFigures) -> _Samples:
    for each in figures.services:
        for method, durations in each.answers.items():
            yield (each.root, method), durations


_C, _G, _H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
_TIER, _SERVICE = ("tier",), ("service",)

#: All metrics, in the order of docs/metrics.md.
METRICS = tuple(
    MetricDefinition(*each)
    for each in (
        (
            "keepfs_info",
            _G,
            "Always 1; the label has the version of keepfs.",
            ("version",),
            lambda it: [((it.version,), 1)],
        ),
        (
            "keepfs_start_time_seconds",
            _G,
            "When the mount started, in seconds since 1970.",
            (),
            _one(lambda it: it.started),
        ),
        (
            "keepfs_draining",
            _G,
            "1 while the mount ends and stores what is left, else 0.",
            (),
            _one(lambda it: it.phase == "draining"),
        ),
        (
            "keepfs_loop_stuck_seconds",
            _G,
            "For how long the event loop has not run; 0 if it runs.",
            (),
            _one(lambda it: it.loop_stuck),
        ),
        (
            "keepfs_operations_total",
            _C,
            "Answered requests of the kernel, by kind and errno (OK: without one).",
            ("operation", "errno"),
            _operations,
        ),
        (
            "keepfs_operation_seconds",
            _H,
            "Durations of answered requests, in seconds.",
            ("operation",),
            lambda it: [((kind,), each.durations) for kind, each in it.operations.items()],
        ),
        (
            "keepfs_requests_in_progress",
            _G,
            "Requests of the kernel that are not answered yet.",
            ("operation",),
            # A kind keeps its sample after its last request, so that 0 is seen.
            lambda it: [
                ((kind,), it.requests[kind].count if kind in it.requests else 0)
                for kind in sorted({*it.operations, *it.requests})
            ],
        ),
        (
            "keepfs_oldest_request_seconds",
            _G,
            "Age of the oldest request that is not answered yet; 0 without any.",
            (),
            _one(lambda it: it.oldest.age if it.oldest else 0.0),
        ),
        (
            "keepfs_request_deadline_seconds",
            _G,
            "Age at which a request fails with ETIMEDOUT.",
            (),
            _one(lambda it: it.deadline),
        ),
        ("keepfs_cache_bytes", _G, "Bytes of cached blocks.", _TIER, _caches("size")),
        (
            "keepfs_cache_capacity_bytes",
            _G,
            "Most bytes of a tier, blocks being fetched included.",
            _TIER,
            _caches("capacity"),
        ),
        (
            "keepfs_cache_in_flight_bytes",
            _G,
            "Bytes reserved for blocks that are being fetched.",
            _TIER,
            _caches("in_flight"),
        ),
        ("keepfs_cache_blocks", _G, "Cached blocks.", _TIER, _caches("blocks")),
        *(
            (f"keepfs_cache_{each}_total", _C, text, _TIER, _caches(each))
            for each, text in (
                ("hits", "Calls that found their block."),
                ("misses", "Calls that did not find their block."),
                ("joined", "Calls that waited for another call's fetch."),
                (
                    "refetched",
                    "Misses of blocks that had been evicted: a larger cache would have had them.",
                ),
            )
        ),
        *(
            (f"keepfs_disk_cache_{each}_total", _C, text, (), _disk_cache(each.split("_")[0]))
            for each, text in (
                ("read_bytes", "Bytes read from the disk cache, all verified."),
                ("written_bytes", "Bytes of files that this mount wrote to the disk cache."),
                ("skipped", "Blocks not written: the disk was too slow, full, or failed."),
                ("evictions", "Blocks that this mount evicted from the disk cache."),
                ("damaged", "Damaged files that this mount found in the disk cache."),
            )
        ),
        (
            "keepfs_disk_cache_failing",
            _G,
            "1 while the disk of the disk cache can't be used, else 0.",
            (),
            _one(lambda it: None if it.disk_cache is None else bool(it.disk_cache.problem)),
        ),
        (
            "keepfs_block_gets_total",
            _C,
            "Calls that read a block, from the cache too.",
            (),
            _one(lambda it: it.blocks.gets),
        ),
        (
            "keepfs_block_puts_total",
            _C,
            "Calls that stored a block.",
            (),
            _one(lambda it: it.blocks.puts),
        ),
        (
            "keepfs_retries_total",
            _C,
            "Rounds of requests to the services after the first of a call.",
            (),
            _one(lambda it: it.blocks.retries),
        ),
        (
            "keepfs_service_requests_total",
            _C,
            "Requests sent to a Keep service, or calls of the local store.",
            _SERVICE,
            _services("requests"),
        ),
        (
            "keepfs_service_failures_total",
            _C,
            "Failed ones, by cause; not_found is no error of the service.",
            ("service", "cause"),
            _failures,
        ),
        (
            "keepfs_service_answer_seconds",
            _H,
            "Times to the heads of answers, in seconds; of a PUT with the sending of the block.",
            ("service", "method"),
            _answers,
        ),
        (
            "keepfs_service_received_bytes_total",
            _C,
            "Bytes of verified blocks that a service sent.",
            _SERVICE,
            _services("received"),
        ),
        (
            "keepfs_service_sent_bytes_total",
            _C,
            "Bytes of blocks that a service confirmed.",
            _SERVICE,
            _services("sent"),
        ),
        (
            "keepfs_corrupt_replicas_total",
            _C,
            "Copies that did not match their locator, by the service that has them.",
            _SERVICE,
            _services("corrupt"),
        ),
        (
            "keepfs_staged_bytes",
            _G,
            "Bytes in memory that are not stored.",
            (),
            _one(lambda it: it.uploads.staged),
        ),
        (
            "keepfs_staging_capacity_bytes",
            _G,
            "Most of these bytes; a faster writer waits.",
            (),
            _one(lambda it: it.uploads.capacity),
        ),
        (
            "keepfs_storing_blocks",
            _G,
            "Blocks that are being stored.",
            (),
            _one(lambda it: it.uploads.storing),
        ),
        (
            "keepfs_unsaved_files",
            _G,
            "Files that could not be stored, and are retried.",
            (),
            _one(lambda it: it.uploads.unsaved),
        ),
        (
            "keepfs_lost_files",
            _G,
            "Files of upload/ that can't be read any more.",
            (),
            _one(lambda it: it.retention.lost),
        ),
        (
            "keepfs_unretained_files",
            _G,
            "Stored files that no collection has yet.",
            (),
            _one(lambda it: it.retention.waiting),
        ),
        (
            "keepfs_retention_failures",
            _G,
            "Failed attempts in a row to keep what is stored.",
            (),
            _one(lambda it: it.retention.failures),
        ),
        (
            "keepfs_retention_updated_seconds",
            _G,
            "Seconds since the collections were brought up to date; no sample if never.",
            (),
            _one(lambda it: it.retention.last_update),
        ),
        (
            "keepfs_next_expiry_time_seconds",
            _G,
            "When the first signature ends, in seconds since 1970; no sample if unknown.",
            (),
            _one(lambda it: it.retention.next_expiry),
        ),
        (
            "keepfs_token_age_seconds",
            _G,
            "Seconds since the token was read; no sample with a local store.",
            (),
            _one(lambda it: it.token.age if it.token else None),
        ),
        (
            "keepfs_token_refused",
            _G,
            "1 if the token is refused, until a new one is read or a request is accepted; else 0.",
            (),
            _one(lambda it: None if it.token is None else it.token.refused is not None),
        ),
        (
            "keepfs_resident_memory_bytes",
            _G,
            "Resident memory of the process.",
            (),
            _one(lambda it: it.process.memory),
        ),
        (
            "keepfs_processor_seconds_total",
            _C,
            "Processor time of the process.",
            (),
            _one(lambda it: it.process.processor),
        ),
        (
            "keepfs_threads",
            _G,
            "Threads of the process.",
            (),
            _one(lambda it: it.process.threads),
        ),
        (
            "keepfs_open_descriptors",
            _G,
            "Open descriptors of the process.",
            (),
            _one(lambda it: it.process.descriptors),
        ),
    )
)


class _FiguresCollector:
    """Makes the samples at each scrape."""

    def __init__(self, read: Callable[[], MountFigures]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Return nothing: then the registry does not read the figures when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        figures = self._read()
        for each in METRICS:
            yield each.family(figures)


def registry_of(read: Callable[[], MountFigures]) -> CollectorRegistry:
    """Return a registry of the metrics of a mount.

    Args:
        read: Returns the figures; called for each scrape, in its thread.
    """
    registry = CollectorRegistry()
    registry.register(_FiguresCollector(read))
    return registry


def table() -> str:
    """Return the metrics as a table of Markdown."""
    rows = [
        f"| `{each.name}` | {each.kind.value} | {', '.join(each.labels) or 'none'} | {each.help} |"
        for each in METRICS
    ]
    return "\n".join(("| Metric | Type | Labels | |", "|---|---|---|---|", *rows))
