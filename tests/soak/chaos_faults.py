"""Faults of the chaos soak: how each is begun and ended at running servers and a running mount."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from tests.keepstore import TEST_TOKEN, Fault, ServiceEntry, Stage
from tests.soak.chaos_cluster import OTHER_TOKEN, Cluster
from tests.soak.chaos_plan import ALL, SERVICES, Planned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.keepstore import KeepstoreControls
    from tests.soak.chaos_findings import Findings

_UNREACHABLE = "http://127.0.0.1:1"
#: Bytes that a mount under a memory limit may take beyond what it has.
_ALLOWANCE = 64 << 20
#: Files of the disk cache that are damaged at a time.
_SPOILT = 30
_PIDS = Path("/sys/fs/cgroup/pids")

#: What a server does wrong, by the fault's name: (method or None, how).
_RULES: Mapping[str, tuple[tuple[str | None, Fault], ...]] = {
    "slow": (
        (
            None,
            Fault(pause={Stage.BEFORE_STATUS: 1.5}, send_rate=40_000, receive_rate=40_000),
        ),
    ),
    "stalled in a body": (("GET", Fault(hold=Stage.MID_BODY)),),
    "hung PUTs": (("PUT", Fault(hold=Stage.BEFORE_STATUS)),),
    "hung PUTs, unread": (("PUT", Fault(hold=Stage.BEFORE_READ)),),
    "hung": ((None, Fault(hold=Stage.BEFORE_STATUS)),),
    "reset": ((None, Fault(close=Stage.BEFORE_STATUS, reset=True)),),
    "reset in a body": (("GET", Fault(close_after=100, reset=True)),),
    "wrong bytes": (("GET", Fault(body=b"these are not the bytes that were asked for")),),
    "wrong length": (("GET", Fault(length=1 << 20)), ("PUT", Fault(length=1 << 20))),
    "lost answers": (("PUT", Fault(close=Stage.BEFORE_STATUS)),),
    "answers 503 to PUTs": (("PUT", Fault(status=503)),),
    **{
        f"answers {status}": ((None, Fault(status=status)),)
        for status in (403, 404, 422, 429, 500, 502, 503)
    },
}


class Faulty:
    """Begins and ends faults. One thread calls.

    Args:
        cluster: The servers.
        token_file: What the mount reads its token from.
        findings: For the log and the figures.
        pid: Returns the mount's process, or None if there is none now.
        disk_cache: The directory of the mount's disk cache, which need not exist.
    """

    def __init__(
        self,
        cluster: Cluster,
        token_file: Path,
        findings: Findings,
        pid: Callable[[], int | None],
        disk_cache: Path,
    ) -> None:
        self._cluster = cluster
        self._token_file = token_file
        self._findings = findings
        self._pid = pid
        self._disk_cache = disk_cache
        self._active: dict[Planned, contextlib.ExitStack] = {}
        self._token = TEST_TOKEN
        self.write_token(TEST_TOKEN)

    def begin(self, planned: Planned) -> None:
        """Begin a fault."""
        self._findings.log(f"fault begins: {planned}")
        with contextlib.ExitStack() as ends:
            if planned.target in SERVICES:
                self._service(planned, self._cluster.stores[planned.target], ends)
            elif planned.target == ALL:
                for store in self._cluster.stores:
                    self._service(planned, store, ends)
            else:
                lane, _, kind = planned.name.partition(": ")
                {
                    "API server": self._api,
                    "list": self._list,
                    "token": self._tokens,
                    "connections": self._connections,
                    "disk cache": self._disk_caches,
                    "limits": self._limits,
                }[lane](kind, planned, ends)
            self._active[planned] = ends.pop_all()
        with self._findings.figuring() as figures:
            figures.faults[planned.name] += 1

    def end(self, planned: Planned) -> None:
        """End a fault, unless it has ended."""
        ends = self._active.pop(planned, None)
        if ends is not None:
            self._findings.log(f"fault ends: {planned}")
            ends.close()

    def end_all(self) -> None:
        """End all faults there are."""
        for planned in list(self._active):
            self.end(planned)

    def write_token(self, text: str) -> None:
        """Replace the token file, and have the mount read it."""
        new = self._token_file.with_suffix(".new")
        new.write_text(text)
        new.rename(self._token_file)
        self.hang_up()

    def hang_up(self) -> None:
        """Send SIGHUP to the mount."""
        self.tell(signal.SIGHUP)

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the mount, if there is one."""
        pid = self._pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    # --- services ---------------------------------------------------------------

    def _service(
        self, planned: Planned, store: KeepstoreControls, ends: contextlib.ExitStack
    ) -> None:
        name = planned.name
        if name in _RULES:
            ends.callback(store.heal)
            for method, fault in _RULES[name]:
                store.always(fault, method=method)
        elif name == "dead":
            store.go_down()
            ends.callback(store.come_back)
        elif name == "full":
            store.configure_volume(capacity=0)
            ends.callback(store.configure_volume, capacity=None)
        elif name == "read-only":
            store.configure_volume(read_only=True)
            ends.callback(store.configure_volume, read_only=False)
        elif name == "corrupt copies":
            count = self._cluster.spoil_some(planned.target, planned.draw)
            self._findings.log(f"spoilt {count} copies on service {planned.target}")
        else:
            raise ValueError(name)

    # --- others -----------------------------------------------------------------

    def _api(self, kind: str, _planned: Planned, ends: contextlib.ExitStack) -> None:
        api = self._cluster.api
        if kind == "down":
            api.go_down()
            ends.callback(api.come_back)
            return
        ends.callback(api.heal)
        fault = {"hanging": Fault(hold=Stage.BEFORE_STATUS), "answers 500": Fault(status=500)}
        api.always(fault[kind])

    def _list(self, kind: str, planned: Planned, ends: contextlib.ExitStack) -> None:
        cluster, entries = self._cluster, self._cluster.entries
        lists = {
            "empty": [],
            "senseless": [ServiceEntry(uuid="", service_host="", service_port=0)],
            "smaller": [it for i, it in enumerate(entries) if i != planned.draw],
            "with a stranger": [*entries, ServiceEntry.of(_UNREACHABLE, 7)],
            "a proxy": [ServiceEntry.of(cluster.proxy.url, 9, kind="proxy")],
        }
        ends.callback(cluster.api.list_services, list(entries))
        cluster.api.list_services(lists[kind])

    def _tokens(self, kind: str, _planned: Planned, ends: contextlib.ExitStack) -> None:
        if kind == "replaced":
            self._token = OTHER_TOKEN if self._token == TEST_TOKEN else TEST_TOKEN
            self.write_token(f"{self._token}\n")
        elif kind == "damaged file":
            ends.callback(self.write_token, f"{self._token}\n")
            self.write_token(f"{self._token}\na stray line\n")
        else:  # the API server and the proxy know it no more; keepstores ask nobody
            ends.callback(self._accept, (TEST_TOKEN, OTHER_TOKEN))
            self._accept(())

    def _accept(self, tokens: tuple[str, ...]) -> None:
        self._cluster.api.configure(tokens=tokens)
        self._cluster.proxy.configure(tokens=tokens)

    def _connections(self, _kind: str, _planned: Planned, _ends: contextlib.ExitStack) -> None:
        for server in self._cluster.servers:
            server.cut_connections()

    def _disk_caches(self, kind: str, planned: Planned, ends: contextlib.ExitStack) -> None:
        place, away = self._disk_cache, self._disk_cache.with_suffix(".away")
        if kind == "removed":
            shutil.rmtree(place, ignore_errors=True)  # the mount may make it again meanwhile
        elif kind == "a link in its place":
            if place.exists():
                place.rename(away)
                place.symlink_to(away)
                ends.callback(_put_back, away, place)
        else:
            draw = random.Random(planned.draw)  # noqa: S311 - places, not secrets
            files = sorted(place.glob("blocks-*/???/*"))
            for path in draw.sample(files, min(len(files), _SPOILT)):
                with contextlib.suppress(OSError, ValueError):  # evicted, or empty
                    where = draw.randrange(path.stat().st_size)
                    if kind == "cut off":
                        os.truncate(path, where)
                    else:
                        _flip(path, where)

    def _limits(self, kind: str, _planned: Planned, ends: contextlib.ExitStack) -> None:
        pid = self._pid()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it may end any moment
            limit = self._limit_memory if kind == "memory" else self._limit_threads
            limit(pid, ends)

    def _limit_memory(self, pid: int, ends: contextlib.ExitStack) -> None:
        # Not RLIMIT_AS: malloc's heaps could grow in the address space that they have reserved.
        data = Path(f"/proc/{pid}/status").read_text().partition("VmData:")[2].split()[0]
        size = int(data) * 1024 + _ALLOWANCE
        hard = resource.prlimit(pid, resource.RLIMIT_DATA)[1]
        ends.callback(_lift_memory_limit, pid, hard)
        resource.prlimit(pid, resource.RLIMIT_DATA, (size, hard))

    def _limit_threads(self, pid: int, ends: contextlib.ExitStack) -> None:
        reason = why_no_thread_limit()
        if reason is not None:
            with self._findings.figuring() as figures:
                figures.skipped["thread limit"] = reason
            return
        group = _PIDS / f"keepfs-chaos-{os.getpid()}"
        group.mkdir(exist_ok=True)
        ends.callback(_lift_thread_limit, group, pid)
        (group / "cgroup.procs").write_text(str(pid))
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        (group / "pids.max").write_text(str(threads + 1))


def _put_back(away: Path, place: Path) -> None:
    place.unlink()
    away.rename(place)


def _flip(path: Path, where: int) -> None:
    """Invert a byte."""
    with path.open("r+b", buffering=0) as file:
        file.seek(where)
        byte = file.read(1)
        file.seek(where)
        file.write(bytes([byte[0] ^ 0xFF]))


def why_no_thread_limit() -> str | None:
    """Say why the threads of a process can't be limited here, or None where they can."""
    if not (_PIDS / "cgroup.procs").exists():
        return "there is no pids cgroup (v1), and RLIMIT_NPROC does not bind root"
    if not os.access(_PIDS, os.W_OK):
        return "the pids cgroup can't be written"
    return None


def _lift_memory_limit(pid: int, hard: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_DATA, (hard, hard))


def _lift_thread_limit(group: Path, pid: int) -> None:
    with contextlib.suppress(OSError):
        (group / "pids.max").write_text("max")
    with contextlib.suppress(OSError):  # it may have ended
        (_PIDS / "cgroup.procs").write_text(str(pid))
    with contextlib.suppress(OSError):
        group.rmdir()
