"""Processes that use the mount, as /proc shows them: groups and pending fatal signals.

A thread with a pending fatal signal that does not run is in an uninterruptible
wait: for a request to the mount, or for a disk.
"""

from __future__ import annotations

import signal
from pathlib import Path

# Signals whose default action doesn't end the process.
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
    """Return whether a signal that ends the process is pending.

    False for a process in another PID namespace, which /proc doesn't show.
    """
    return _has_fatal_signal(_status(Path(f"/proc/{pid}")))


def dying_threads_in_fuse(pid: int) -> set[int]:
    """Return the threads of a process that wait for a mount and have a fatal signal pending.

    Empty if the process has ended or is stopped: other processes may use its files.
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
    # After a fatal signal the thread waits for the mount uninterruptibly (state D).
    if not status.get("State", "").startswith("D") or not _has_fatal_signal(status):
        return False
    try:
        place = (thread / "wchan").read_text()
    except OSError:
        place = ""
    # wchan is 0 for other users' processes, and if the kernel has no symbols.
    return place in {"", "0"} or "fuse" in place or "request" in place


def _status(process: Path) -> dict[str, str]:
    """Return the fields of a process's or thread's status file; none if it is gone."""
    try:
        # The kernel may cut a program's name in the middle of a character.
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
