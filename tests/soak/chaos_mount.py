"""The mount of the chaos soak: made, ended in several ways, and looked at in /proc."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.mounted.mounts import KeepfsMount, is_zombie, keepfs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.soak.chaos_cluster import Cluster
    from tests.soak.chaos_findings import Findings

#: Seconds that are given to `keepfs mount` as options.
REQUEST_TIMEOUT = 12.0
DRAIN_TIMEOUT = 6.0
LOOKUP_WAIT = 1.0
#: Seconds beyond a bound that a busy machine may need.
SLACK = 6.0
#: Memory that is given as options, and what Python and one transfer take besides.
CACHE_SIZE, STAGING_SIZE = 192 << 20, 256 << 20
DISK_CACHE_SIZE = 256 << 20
_MOST_RESIDENT = CACHE_SIZE + STAGING_SIZE + (64 << 20) * 10 + (150 << 20)
#: Seconds after which a mount that doesn't end is killed.
_HOPELESS = 60.0
#: What a mount at rest may have more than when it was new.
_MORE_THREADS, _MORE_DESCRIPTORS = 16, 24
#: Idle connections that it may keep: 32 to each of five servers. Those in use are
#: looked for at the servers.
_MORE_CONNECTIONS = 5 * 32

#: What a mount prints that takes over two seconds to start: it may restore many files.
_SLOW_START = "keepfs: still waiting for"
#: Tracebacks that are known to do no harm, as regular expressions.
_HARMLESS: tuple[str, ...] = ()
_TRACEBACK = "Traceback (most recent call last)"
#: The end of a traceback that another one of the same failure follows: an exception that had
#: another as its cause, or an exception group, before each of its members.
_CHAINED = re.compile(
    r"^\W*(During handling of|The above exception was).*:[\s|]*\Z|^[ |]*\+[-+]+ \d+ -+[\s|]*\Z",
    re.MULTILINE,
)
#: Those of a mount that the soak has denied memory or threads.
#: CPython's SystemError stands for a MemoryError that there was no memory to make.
_OF_LIMITS = (
    "MemoryError",
    "Cannot allocate memory",
    "can't start new thread",
    "returned NULL without setting an exception",
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has.

    Attributes:
        threads: Their names, counted.
        descriptors: What they are open on, but for sockets; counted, without numbers.
        connections: Sockets that are connected over TCP.
        resident: Bytes in memory.
    """

    threads: collections.Counter[str]
    descriptors: collections.Counter[str]
    connections: int
    resident: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Look at a process; one that has ended has nothing."""
        process = Path(f"/proc/{pid}")
        threads: collections.Counter[str] = collections.Counter()
        descriptors: collections.Counter[str] = collections.Counter()
        sockets = set()
        with contextlib.suppress(OSError):
            for task in (process / "task").iterdir():
                with contextlib.suppress(OSError):
                    threads[(task / "comm").read_text().strip()] += 1
            for entry in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = os.readlink(entry)
                    if target.startswith("socket:"):
                        sockets.add(target)
                        continue
                    if "/disk-cache/" in target:  # closed some time after the last read
                        continue
                    descriptors[re.sub(r"[0-9]+", "", target)] += 1
        connections = sum(f"socket:[{inode}]" in sockets for inode in _connected())
        resident = 0
        with contextlib.suppress(OSError, IndexError):
            pages = int((process / "statm").read_text().split()[1])
            resident = pages * os.sysconf("SC_PAGE_SIZE")
        return cls(threads, descriptors, connections, resident)

    def excess(self, fresh: Usage) -> str:
        """Say what is more than it was; empty where that isn't much."""
        said = []
        if self.threads.total() > fresh.threads.total() + _MORE_THREADS:
            said.append(f"threads {dict(self.threads - fresh.threads)}")
        if self.descriptors.total() > fresh.descriptors.total() + _MORE_DESCRIPTORS:
            said.append(f"descriptors {dict(self.descriptors - fresh.descriptors)}")
        if self.connections > fresh.connections + _MORE_CONNECTIONS:
            said.append(f"{self.connections - fresh.connections} connections")
        if self.resident > _MOST_RESIDENT:
            said.append(f"{self.resident >> 20} MiB resident, {_MOST_RESIDENT >> 20} allowed")
        return "; ".join(said)


def _connected() -> list[str]:
    """List the inodes of TCP connections that are established."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "01":
            found.append(words[9])
    return found


class Life:
    """The mount, from one start to the next end.

    Args:
        base: A directory of the soak's own.
        cluster: The services.
        findings: Gets what is wrong.
    """

    def __init__(self, base: Path, cluster: Cluster, findings: Findings) -> None:
        self.token_file = base / "token"
        self.mount = KeepfsMount(base / "keep", is_local=False)
        self.mount.env = {
            "ARVADOS_API_HOST": cluster.api.host,
            "SSL_CERT_FILE": str(cluster.trusted),
        }
        self.mount.options = (
            *("--token-file", str(self.token_file), "--retries", "1"),
            *("--request-timeout", f"{REQUEST_TIMEOUT}", "--drain-timeout", f"{DRAIN_TIMEOUT}"),
            *("--lookup-wait", f"{LOOKUP_WAIT}", "--log-level", "INFO"),
            *("--cache-size", str(CACHE_SIZE), "--staging-size", str(STAGING_SIZE)),
        )
        # Every other mount has a disk cache, that of the mounts before.
        self.disk_cache = base / "disk-cache"
        size = ("--disk-cache", str(DISK_CACHE_SIZE))
        with_cache = (*self.mount.options, *size, "--disk-cache-dir", str(self.disk_cache))
        self._options = itertools.cycle((self.mount.options, with_cache))
        self._findings = findings
        self._read_to = 0
        self._lock = threading.Lock()
        self._ended_at: float | None = time.monotonic()
        #: Whether it has been denied memory or threads.
        self.is_limited = False
        #: Whether it was told to end the last time, and not just killed.
        self.was_told = False
        #: What `keepfs unmount` said last, if it failed.
        self.unmount_said = ""
        #: The process; None while nothing is mounted, or is being ended.
        self.pid: int | None = None
        self.fresh: Usage | None = None

    def process(self) -> int | None:
        """Return the process that serves, if it does."""
        return self.pid

    def was_up(self, since: float) -> bool:
        """Tell whether the mount has been up from then to now."""
        with self._lock:
            return self.pid is not None and (self._ended_at is None or self._ended_at < since)

    def is_there(self) -> bool:
        """Tell whether the process runs and the mount is there: what it says is its answer."""
        pid = self.pid
        return pid is not None and not has_ended(pid) and self.mount.is_mounted()

    def start(self) -> bool:
        """Mount; tell whether that worked."""
        with contextlib.suppress(OSError):  # a dead mount is on it: mounting clears that
            self.mount.path.mkdir(parents=True, exist_ok=True)
        self.mount.options = next(self._options)
        begin = time.monotonic()
        try:
            done = self.mount.try_mount()
        except subprocess.TimeoutExpired:
            self._findings.report("no mount", "the mount", "an answer", "none for a minute")
            return False
        text = done.stderr.decode(errors="replace").strip()
        if done.returncode or (text and not text.startswith(_SLOW_START)):
            self._findings.report("no mount", "the mount", "it to be made", text)
            return False
        self._findings.log(f"mounted in {time.monotonic() - begin:.1f} s")
        pid = self.mount.pid()
        with self._lock:
            self.pid = pid
            self.fresh = None
        self.is_limited = False
        return True

    def kill(self) -> None:
        """Kill a mount that hangs; `died` reports it."""
        pid = self.pid
        if pid is not None:
            _send(pid, signal.SIGKILL)

    def died(self) -> bool:
        """Report a mount that has ended by itself; tell whether it has."""
        pid = self.pid
        if pid is None or not has_ended(pid):
            return False
        self._gone()
        tail = self._log_tail()
        self._findings.report("the mount ended by itself", "the mount", "it to serve on", tail)
        self.check_log()
        return True

    def end(self, kind: str, patience: float) -> bool:
        """End the mount; tell whether it had the time to put aside what isn't stored.

        Args:
            kind: One of `chaos_plan.ENDS`.
            patience: Seconds until what comes second in the kinds that have two steps.
        """
        pid = self.pid
        assert pid is not None
        self._gone()
        self.was_told = self.was_told or kind != "SIGKILL"
        self._findings.log(f"the mount ends: {kind}")
        with self._findings.figuring() as figures:
            figures.ends[kind] += 1
        begin, bound = time.monotonic(), DRAIN_TIMEOUT + SLACK
        if kind == "unmount":
            orderly = self._unmount()
        else:
            number = signal.SIGKILL if kind == "SIGKILL" else signal.SIGTERM
            orderly = number == signal.SIGTERM
            _send(pid, number)
            if kind in {"two SIGTERM", "SIGKILL while it drains"} and not _ends(pid, patience):
                number = signal.SIGTERM if kind == "two SIGTERM" else signal.SIGKILL
                orderly = orderly and number == signal.SIGTERM
                _send(pid, number)
                bound = patience + SLACK
        in_time = _ends(pid, bound - (time.monotonic() - begin))
        if not in_time:
            _ends(pid, _HOPELESS - (time.monotonic() - begin))
            seconds = time.monotonic() - begin
            state = (
                f"{seconds:.0f} s" if has_ended(pid) else f"it still runs after {seconds:.0f} s"
            )
            self._findings.report("a late end", kind, f"the end within {bound:.0f} s", state)
            if not has_ended(pid):
                orderly = False
                _send(pid, signal.SIGKILL)
                _ends(pid, _HOPELESS)
        self.check_log()
        return orderly

    def check_log(self) -> None:
        """Report tracebacks that have come into the log."""
        if not self.mount.log_file.exists():
            return
        with self.mount.log_file.open(errors="replace") as log:
            log.seek(self._read_to)
            text = log.read()
            self._read_to = log.tell()
        for found in tracebacks(text, _OF_LIMITS if self.is_limited else ()):
            self._findings.report("traceback", "the log", "none", found)

    def take_fresh(self) -> None:
        """Remember what the mount has while it is new, and at rest."""
        if self.pid is not None and self.fresh is None:
            self.fresh = Usage.of(self.pid)

    def check_leaks(self, patience: float) -> None:
        """Report what a mount at rest has too much of, after `patience` seconds at most."""
        pid, fresh = self.pid, self.fresh
        if pid is None or fresh is None:
            return
        deadline = time.monotonic() + patience
        while (excess := Usage.of(pid).excess(fresh)) and time.monotonic() < deadline:
            time.sleep(0.5)
        if excess:
            self._findings.report("a leak", "the mount at rest", "what a new one has", excess)

    def unsaved(self) -> list[str]:
        """Return what `keepfs unsaved list` says, by lines."""
        state = self.mount.base / "state"
        done = keepfs(
            "unsaved", "list", "--state-dir", state, self.mount.path, env=self.mount.environment
        )
        return done.stdout.decode(errors="replace").splitlines()

    def _gone(self) -> None:
        with self._lock:
            self.pid, self._ended_at = None, time.monotonic()

    def _unmount(self) -> bool:
        try:
            done = self.mount.unmount()
        except subprocess.TimeoutExpired:
            return False
        self.unmount_said = done.stderr.decode(errors="replace").strip()
        if done.returncode:
            text = self.unmount_said
            self._findings.log(f"unmount exits with {done.returncode}: {text}")
            if "LOST" in text:
                self._findings.report("lost at unmount", "the mount", "nothing lost", text)
        return True

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return " | ".join(self.mount.log_file.read_text().splitlines()[-3:])
        return "no log"


def tracebacks(log: str, allowed: Sequence[str] = ()) -> list[str]:
    """Return the tracebacks of a log that aren't known as harmless, each in one line.

    Args:
        log: Its text.
        allowed: Regular expressions of more that do no harm.
    """
    found = []
    chain: list[str] = []
    for part in log.split(_TRACEBACK)[1:]:
        # To the line that names the error: the first one that isn't indented.
        lines = part.splitlines()[1:]
        ends = [i for i, line in enumerate(lines) if line and not line.startswith((" ", "\t"))]
        last = ends[0] if ends else len(lines) - 1
        chain.append(" | ".join(line.strip() for line in lines[max(0, last - 4) : last + 1]))
        if _CHAINED.search(part):
            continue  # the next one is of the same failure
        text = " ... ".join(chain)
        chain = []
        if not any(re.search(pattern, text) for pattern in (*_HARMLESS, *allowed)):
            found.append(text)
    return found


def has_ended(pid: int) -> bool:
    """Tell whether a process has ended."""
    return not Path(f"/proc/{pid}/cmdline").exists() or is_zombie(pid)


def _ends(pid: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not has_ended(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
