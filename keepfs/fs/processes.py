"""What /proc shows of the processes that use the mount: their groups, and pending fatal signals.

A thread with a pending fatal signal that does not run is in an uninterruptible
wait: for a request to the mount, or for a disk.
"""

from __future__ import annotations

import signal
from pathlib import Path

# Signals that don't end a process when nothing is done about them.
_HARMLESS = sum(
    1 << (number - 1)
    for number in (
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGURG,
        signal.SIGWINCH,
    )
)


def dies_of_a_signal(pid: int) -> bool:
    """Tell whether a signal that ends the process is waiting for it.

    A caller in another process namespace can't be looked at: False.
    """
    return _has_fatal_signal(_status(Path(f"/proc/{pid}")))


def dying_threads_in_fuse(pid: int) -> set[int]:
    """Return the threads of a process that wait for a mount, and end as soon as they needn't.

    Of a process that has ended or is stopped there are none: others may use its files.
    """
    if not dies_of_a_signal(pid):
        return set()
    try:
        return {int(it.name) for it in Path(f"/proc/{pid}/task").iterdir() if _dies_in_fuse(it)}
    except OSError:
        return set()


def supplementary_groups(pid: int) -> frozenset[int]:
    """Return the supplementary groups of a process; none if it is gone or in another namespace."""
    return frozenset(map(int, _status(Path(f"/proc/{pid}")).get("Groups", "").split()))


def _dies_in_fuse(thread: Path) -> bool:
    status = _status(thread)
    # After a fatal signal the wait for a mount is one that no signal ends.
    if not status.get("State", "").startswith("D") or not _has_fatal_signal(status):
        return False
    try:
        place = (thread / "wchan").read_text()
    except OSError:
        place = ""
    # Of other users' processes, and where the kernel has no symbols, it is 0.
    return place in {"", "0"} or "fuse" in place or "request" in place


def _status(process: Path) -> dict[str, str]:
    """Return the fields of a process's or thread's status file; none if it is gone."""
    try:
        # A program's name may be cut in the middle of a character.
        lines = (process / "status").read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _has_fatal_signal(status: dict[str, str]) -> bool:
    masks = {
        name: int(status.get(name, "0"), 16)
        for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")
    }
    survived = masks["SigBlk"] | masks["SigIgn"] | masks["SigCgt"] | _HARMLESS
    return bool((masks["SigPnd"] | masks["ShdPnd"]) & ~survived)
