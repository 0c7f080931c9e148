"""What the chaos soak must not find: the checks, each of which says what was expected.

A check is a method that gets what was seen; it reports a finding or nothing.
Any thread may call.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.soak.chaos_content import Content, Seen

_SEMANTICS = Path(__file__).parents[2] / "SEMANTICS.md"
#: Findings that are alike and printed in full, and all of one kind.
_MOST_ALIKE, _MOST_PRINTED = 2, 30
#: Seconds within which a mount answers whom no sick service concerns.
HEALTHY_BOUND = 5.0
#: Errors of a mount that has ended or is ending.
GONE = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV})


def documented_errnos() -> frozenset[int]:
    """Return the errnos of the table in SEMANTICS.md."""
    table = _SEMANTICS.read_text().partition("\n## errno\n")[2].partition("\n## ")[0]
    names = re.findall(r"^\| (E[A-Z0-9]+) \|", table, re.MULTILINE)
    return frozenset(getattr(errno, name) for name in names)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be.

    Attributes:
        kind: Which check found it.
        at: Seconds since the soak began.
        subject: A path, a block, or the mount.
        expected: What should have been.
        found: What was.
    """

    kind: str
    at: float
    subject: str
    expected: str
    found: str

    @property
    def likeness(self) -> str:
        """The kind and what was found, without numbers and names."""
        return f"{self.kind}: {re.sub('[0-9a-f]{8,}|[0-9]+', '', self.found)}"

    def __str__(self) -> str:
        return (
            f"{self.at:7.1f} s  {self.kind}: {self.subject}: expected {self.expected};"
            f" found {self.found}"
        )


class Late(NamedTuple):
    """The slowest of some calls."""

    seconds: float = 0.0
    what: str = ""


@dataclass
class Figures:
    """What was done and measured.

    Attributes:
        operations: By kind.
        failures: Calls that failed with a documented errno, by its name.
        faults: By kind.
        ends: Of the mount, by kind.
        skipped: What couldn't be done here, and why.
        healthy: The longest wait of a call that no sick service concerns.
        longest: The longest wait of any call.
        checked: Files compared with what they must be.
        copies: Blocks whose copies were counted.
    """

    operations: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    ends: collections.Counter[str] = field(default_factory=collections.Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    healthy: Late = field(default_factory=Late)
    longest: Late = field(default_factory=Late)
    checked: int = 0
    copies: int = 0


class Findings:
    """The checks, what they found, and the figures.

    Args:
        seed: Of the soak, for the reports.
        bound: Seconds within which a call is answered, whatever happens.
        errnos: Those that are documented; None reads SEMANTICS.md.
    """

    def __init__(self, seed: int, bound: float, errnos: Iterable[int] | None = None) -> None:
        self.seed = seed
        self.bound = bound
        self.begin = time.monotonic()
        self.figures = Figures()
        self.found: list[Finding] = []
        self._errnos = documented_errnos() if errnos is None else frozenset(errnos)
        self._lock = threading.Lock()
        self._alike: collections.Counter[str] = collections.Counter()

    def log(self, text: str) -> None:
        """Print a line with its time."""
        click.echo(f"{time.monotonic() - self.begin:7.1f} s  {text}")

    def report(self, kind: str, subject: str, expected: str, found: str) -> None:
        """Report a finding; the first of those that are alike are printed at once."""
        finding = Finding(kind, time.monotonic() - self.begin, subject, expected, found)
        with self._lock:
            self.found.append(finding)
            self._alike[finding.likeness] += 1
            self._alike[kind] += 1
            is_new = self._alike[finding.likeness] <= _MOST_ALIKE
            is_new = is_new and self._alike[kind] <= _MOST_PRINTED
        if is_new:
            click.echo(f"FINDING (seed {self.seed}) {finding}")

    def count(self, what: str) -> None:
        """Count an operation."""
        with self._lock:
            self.figures.operations[what] += 1

    @contextlib.contextmanager
    def figuring(self) -> Iterator[Figures]:
        """Change the figures."""
        with self._lock:
            yield self.figures

    # --- the checks -------------------------------------------------------------

    def content(
        self,
        subject: str,
        seen: Seen | None,
        whole: Iterable[Content],
        partial: Iterable[Content] = (),
    ) -> bool:
        """Compare what a file has with what it may have; tell whether it is right.

        Args:
            subject: The file.
            seen: What it has; None: it isn't there.
            whole: What it may have.
            partial: Of these a first part would do as well.
        """
        with self.figuring() as figures:
            figures.checked += 1
        may, parts = list(whole), list(partial)
        if any(it.is_seen(seen) for it in may) or any(it.begins_with(seen) for it in parts):
            return True
        expected = " or ".join(
            [*map(str, may), *(f"a first part of {it}" for it in parts)] or ["nothing"]
        )
        kind = "a file is missing" if seen is None else "wrong bytes"
        part = next((f", a first part of {it}" for it in may if it.begins_with(seen)), "")
        self.report(kind, subject, expected, f"{seen or 'no file'}{part}")
        return False

    def answered(self, subject: str, call: str, seconds: float) -> None:
        """See that a call was answered in time."""
        with self.figuring() as figures:
            figures.longest = max(figures.longest, Late(seconds, f"{call} {subject}"))
        if seconds > self.bound:
            self.report("late answer", subject, f"{call} within {self.bound:.0f} s", _s(seconds))

    def healthy(self, subject: str, call: str, seconds: float, error: int = 0) -> None:
        """See that no sick service held up, or failed, a call that it doesn't concern."""
        with self.figuring() as figures:
            figures.healthy = max(figures.healthy, Late(seconds, f"{call} {subject}"))
        if error:
            self.report("a healthy call failed", subject, f"{call} to work", name_of(error))
        if seconds > HEALTHY_BOUND:
            expected = f"{call} within {HEALTHY_BOUND:.0f} s"
            self.report("a healthy call waited", subject, expected, _s(seconds))

    def failed(self, subject: str, call: str, error: int, text: str = "") -> None:
        """See that the errno of a failed call is a documented one."""
        with self.figuring() as figures:
            figures.failures[name_of(error)] += 1
        if error not in self._errnos:
            expected = f"{call} to fail with an errno of SEMANTICS.md's table"
            self.report(
                "undocumented errno", subject, expected, f"{name_of(error)} {text}".strip()
            )

    def copied(self, subject: str, digest: str, intact: int, spoilt: int, wanted: int) -> None:
        """See that a block has its copies.

        Args:
            subject: The file.
            digest: Of the block.
            intact: Services that hold it whole.
            spoilt: Copies that were spoilt on purpose.
            wanted: Copies there should be.
        """
        with self.figuring() as figures:
            figures.copies += 1
        if intact + spoilt < wanted:
            expected = f"{wanted} copies of {digest}, {spoilt} of them spoilt on purpose"
            self.report("missing copy", subject, expected, f"{intact} whole")


def name_of(error: int) -> str:
    """Name an errno."""
    return errno.errorcode.get(error, f"errno {error}")


def _s(seconds: float) -> str:
    return f"{seconds:.1f} s"


def table(findings: Findings) -> str:
    """Show the figures."""
    figures = findings.figures
    rows = [("operations", f"{figures.operations.total()}", _kinds(figures.operations))]
    rows.append(("failed calls", f"{figures.failures.total()}", _kinds(figures.failures)))
    rows.append(("faults", f"{figures.faults.total()}", _kinds(figures.faults)))
    rows.append(("mount ends", f"{figures.ends.total()}", _kinds(figures.ends)))
    rows.append(("longest healthy wait", _s(figures.healthy.seconds), figures.healthy.what))
    rows.append(("longest request", _s(figures.longest.seconds), figures.longest.what))
    rows.append(("files checked", f"{figures.checked}", ""))
    rows.append(("blocks whose copies were counted", f"{figures.copies}", ""))
    rows += [("skipped", "", f"{what}: {why}") for what, why in figures.skipped.items()]
    by_kind = collections.Counter(it.kind for it in findings.found)
    rows.append(("findings", f"{len(findings.found)}", _kinds(by_kind)))
    return "\n".join(f"{name:34} {number:>9}  {text}".rstrip() for name, number, text in rows)


def summary(findings: Findings) -> str:
    """Show the first of those findings that are alike, and how many there are."""
    first: dict[str, Finding] = {}
    for finding in findings.found:
        first.setdefault(finding.likeness, finding)
    counts = collections.Counter(it.likeness for it in findings.found)
    return "\n".join(f"{counts[it]:5} x {finding}" for it, finding in first.items())


def _kinds(counts: collections.Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
