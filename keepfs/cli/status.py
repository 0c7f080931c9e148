"""keepfs status: the state of running mounts, requested from their processes."""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keepfs.cli import reporting, values
from keepfs.messages import of_running
from keepfs.mount import mountpoint, runtime
from keepfs.mount.control_requests import ControlConnection, ControlError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds that the process of a mount may take to answer.
_PATIENCE = 1.5
#: A request that waits longer than this counts as one that hangs. Guessed: the retries through
#: all services take about a minute.
_HANGS_AFTER = 60.0
#: States of a process, as in proc_pid_stat(5), in words.
_STATES = {"D": "waits for a device", "Z": "has ended", "R": "runs", "S": "sleeps"}
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class MountStatus:
    """One mount, as `--json` prints it.

    Attributes:
        mountpoint: Its path.
        pid: The process id of the mount.
        state: `serving`; `draining`: it stores unstored files and ends; `starting`; `stuck`: its
            event loop does not run, or a request hangs for over a minute; `stopped`: the process
            is stopped by a signal or debugger; `silent`: it runs, and does not answer; `dead`:
            it has ended, and only the kernel's mount is left; `foreign`: it is the mount of
            another user, whose process this user can't ask.
        reason: Why it is `stuck`, `stopped`, `silent`, `dead` or `foreign`; else empty.
        kernel_waiting: Requests that the kernel waits for; null if it can't be read.
        log_file: The path of its log; empty for standard error.
        state_dir: Its state directory.
        figures: The figures that its process sent; null if it did not answer.
    """

    mountpoint: str
    pid: int
    state: str
    reason: str
    kernel_waiting: int | None
    log_file: str
    state_dir: str
    figures: dict[str, Any] | None

    @property
    def is_well(self) -> bool:
        """Whether it answers requests."""
        return not self.reason


@click.command("status")
@click.argument(
    "path",
    metavar="[MOUNTPOINT]",
    required=False,
    type=values.FilledPath(path_type=Path),
)
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object on a line.")
@click.option(
    "--watch",
    "interval",
    type=click.FloatRange(0.1),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Print it again after that long, until interrupted.  [default: 2]",
)
def status_command(path: Path | None, interval: float | None, *, is_json: bool) -> None:
    """Show what the mount on MOUNTPOINT does, or all mounts of this user.

    Asks the process of the mount, not the mount, so it works while the mount
    hangs. Exits with 1 if a mount does not answer requests: its process is
    stopped, stuck, silent or dead, or can't be asked, because the mount is of
    another user. docs/status.md describes the JSON.
    """
    with reporting.in_one_line():
        while True:
            found = list(_mounts(None if path is None else mountpoint.resolve(path)))
            if path is not None and not found:
                raise click.ClickException(of_running.NO_MOUNT_OF_USER(path=path))
            if interval is not None and not is_json and sys.stdout.isatty():
                click.clear()
            click.echo(_as_json(found) if is_json else _as_text(found))
            if interval is None:
                raise SystemExit(0 if all(each.is_well for each in found) else 1)
            sys.stdout.flush()
            time.sleep(interval)


def status_of(running: runtime.RunningMount) -> MountStatus:
    """Return the status of a mount, requested from its process. Blocks for 2 s at most."""
    figures: dict[str, Any] | None = None
    state, reason = "serving", ""
    if runtime.is_stopped(running.pid):
        state = "stopped"
        reason = f"process {running.pid} is stopped; continue it: kill -CONT {running.pid}"
    else:
        try:
            socket = runtime.control_socket(Path(running.mountpoint))
            with ControlConnection(socket, _PATIENCE) as connection:
                figures = connection.status()
            state, reason = _judged(figures)
        except ControlError as error:
            process = _STATES.get(runtime.process_state(running.pid), "is in an unknown state")
            state, reason = "silent", f"process {running.pid} {process}, but: {error}"
            if not running.device:
                state, reason = "starting", ""
    return MountStatus(
        running.mountpoint,
        running.pid,
        state,
        reason,
        mountpoint.waiting_requests(running.device) if running.device > 0 else None,
        running.log_file,
        running.state_dir,
        figures,
    )


def _mounts(path: Path | None) -> Iterator[MountStatus]:
    """Yield the status of each mount of this user, or of the mount at a resolved path."""
    running = runtime.find_all()
    if path is not None:
        running = [each for each in running if each.mountpoint == str(path)]
        entry = mountpoint.mounted_at(path)
        bound = None if entry is None else runtime.find_device(entry.device)
        if not running and bound is not None:
            running = [bound]
    for each in running:
        yield status_of(each)
    served = {f"0:{each.device}" for each in runtime.find_all()}
    without_device = {each.mountpoint for each in running if each.device <= 0}
    for entry in mountpoint.mounts():
        if entry.kind != mountpoint.FILE_SYSTEM_TYPE or entry.device in served:
            continue
        if str(entry.mountpoint) in without_device:
            continue  # its process is about to serve it, or to unmount it
        owner = mountpoint.other_owner(entry)
        if owner is None if path is None else entry.mountpoint == path:
            yield _without_process(entry, owner)


def _without_process(entry: mountpoint.MountEntry, owner: str | None) -> MountStatus:
    """Return the status of a mount that no process of this user serves.

    Args:
        entry: The mount.
        owner: The user that mounted it, if that is another one.
    """
    state, reason = "dead", f"its process was killed; clear it: keepfs unmount {entry.mountpoint}"
    if owner is not None:
        state, reason = "foreign", f"it is the mount of user {owner}; only {owner} can ask it"
    return MountStatus(
        str(entry.mountpoint),
        0,
        state,
        reason,
        mountpoint.waiting_requests(int(entry.device.partition(":")[2])),
        "",
        "",
        None,
    )


def _judged(figures: dict[str, Any]) -> tuple[str, str]:
    """Return the state that the figures of a mount show, and the reason if it is bad."""
    stuck, oldest = figures["loop_stuck"], figures["oldest"]
    if stuck:
        return "stuck", f"the event loop has not run for {stuck:.0f} s; see the log"
    if oldest and oldest["age"] > _HANGS_AFTER:
        where = f" of {oldest['path']}" if oldest["path"] else ""
        return "stuck", f"a {oldest['kind']}{where} waits for {oldest['age']:.0f} s"
    return figures["phase"], ""


def _as_json(found: list[MountStatus]) -> str:
    return json.dumps({"mounts": [asdict(each) for each in found]})


def _as_text(found: list[MountStatus]) -> str:
    if not found:
        return "no keepfs mounts of this user"
    return "\n\n".join("\n".join(_lines(each)) for each in found)


def _lines(each: MountStatus) -> Iterator[str]:
    yield f"{each.mountpoint}: {each.state}" + (f": {each.reason}" if each.reason else "")
    if each.pid:
        log = each.log_file or "standard error"
        yield f"  process    {each.pid}, log {log}, state {each.state_dir}"
    if each.kernel_waiting:
        yield f"  kernel     waits for {each.kernel_waiting} requests"
    it = each.figures
    if it is None:
        return
    process = it["process"]
    yield (
        f"  up         {_duration(it['uptime'])}, keepfs {it['version']},"
        f" {process['memory'] // _MIB} MiB of memory, {process['threads']} threads"
    )
    yield from _request_lines(it)
    for tier, cache in it["cache"].items():
        asked = cache["hits"] + cache["misses"]
        share = f"{100 * cache['hits'] // asked} % of {asked} found" if asked else "not used yet"
        yield (
            f"  cache      {tier}: {_bytes(cache['size'])} of {_bytes(cache['capacity'])},"
            f" {cache['blocks']} blocks, {share}, {cache['refetched']} fetched again"
        )
    yield from _disk_cache_lines(it.get("disk_cache"))
    blocks = it["blocks"]
    yield (
        f"  blocks     received {_bytes(blocks['received'])}, sent {_bytes(blocks['sent'])},"
        f" {blocks['retries']} retries"
    )
    uploads = it["uploads"]
    yield (
        f"  uploads    {_bytes(uploads['staged'])} of {_bytes(uploads['capacity'])} staged,"
        f" {uploads['storing']} blocks being stored,"
        + (f" {uploads['unsaved']} files UNSAVED" if uploads["unsaved"] else " nothing unsaved")
    )
    for failed in uploads["failed"]:
        yield f"             {failed['path']}: {failed['error']}"
    yield from _retention_lines(it["retention"])
    for service in it["services"]:
        yield from _service_lines(service)
    if it["token"] is not None:
        refused = it["token"]["refused"]
        said = "" if refused is None else f", REFUSED {_duration(refused)} ago"
        yield f"  token      read {_duration(it['token']['age'])} ago{said}"


def _request_lines(it: dict[str, Any]) -> Iterator[str]:
    answered = sum(each["durations"]["count"] for each in it["operations"].values())
    waiting = sum(each["count"] for each in it["requests"].values())
    yield f"  requests   {waiting} in progress, {answered} answered"
    for kind, each in it["requests"].items():
        oldest = each["oldest"]
        yield (
            f"             {each['count']} {kind}, the oldest for {_duration(oldest['age'])}:"
            f" {oldest['path'] or '?'}" + (f" (pid {oldest['pid']})" if oldest["pid"] else "")
        )


def _retention_lines(it: dict[str, Any]) -> Iterator[str]:
    if it["mode"] != "local":
        updated = it["last_update"]
        yield (
            f"  retention  {it['mode']} {' '.join(it['collections'])}".rstrip()
            + (f", updated {_duration(updated)} ago" if updated is not None else "")
            + (f", {it['waiting']} files wait" if it["waiting"] else "")
            + (f", {it['failures']} failures in a row" if it["failures"] else "")
            + (f", first expiry {_when(it['next_expiry'])}" if it["next_expiry"] else "")
        )
    if it["lost"]:
        yield f"  LOST       {it['lost']} files; keepfs uploads --lost lists them"


def _service_lines(it: dict[str, Any]) -> Iterator[str]:
    errors = {cause: count for cause, count in it["failures"].items() if cause != "not_found"}
    yield (
        f"  service    {it['root']}: {it['requests']} requests,"
        f" {sum(errors.values())} errors, {it['corrupt']} corrupt copies"
        + "".join(
            f", {method} {1000 * each['mean']:.1f} ms" for method, each in it["answers"].items()
        )
    )
    if errors and it["last_failure"]:
        ago = _duration(it["last_failure_age"])
        yield f"             last failure {ago} ago: {it['last_failure']}"


def _duration(seconds: float) -> str:
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    days, hours = minutes // 1440, minutes % 1440 // 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {int(seconds) % 60} s"


def _bytes(number: int) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number} B"


def _when(seconds: float) -> str:
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _disk_cache_lines(it: dict[str, Any] | None) -> Iterator[str]:
    if it is None:
        return
    yield (
        f"  disk cache {it['directory']}: read {_bytes(it['read'])}, wrote {it['added']} blocks,"
        f" {it['skipped']} skipped, {it['evictions']} evicted, {it['damaged']} damaged"
    )
    if it["problem"]:
        yield f"  disk cache can't be used, blocks come from the services: {it['problem']}"
