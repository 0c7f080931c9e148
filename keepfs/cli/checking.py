"""keepfs check: tests the requirements of a mount, step by step, and gives advice."""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import functools
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from keepfs import __version__, renewing_store, stores
from keepfs.cli import settings, variables
from keepfs.cli.setting_sources import sources_of
from keepfs.cli.settings import store_settings
from keepfs.cli.steps import CheckResult, Step, as_text, exit_code, run_step, run_steps
from keepfs.fs.upload.snapshot import CATALOG, check_store
from keepfs.keep.errors import Cause
from keepfs.keep.http.timeouts import Timeouts
from keepfs.keep.locator import KeepLocator
from keepfs.keep.services.api import ApiError
from keepfs.messages import of_mounts, of_stores
from keepfs.messages.message import ids_in
from keepfs.mount import machine, mountpoint, runtime, units

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keepfs.config.options import StoreOptions
    from keepfs.keep.client import KeepClient
    from keepfs.keep.services.service import KeepService

#: Seconds by which the clock may differ from a service's, since expiries are compared with it.
_MOST_SKEW = 60.0
#: A block that doesn't exist.
_NOBODYS = KeepLocator("0" * 32 + "+1")
_EMPTY = KeepLocator("d41d8cd98f00b204e9800998ecf8427e+0")
#: Replaces a missing mount point in the arguments.
_NO_MOUNT_POINT = "/"


@dataclass
class _Told:
    """The settings, and the findings of earlier steps.

    Attributes:
        mountpoint: The mount point; None if none is given.
        store: Where the blocks are; None if the settings can't be used.
        others: The other options of a mount.
        skews: Seconds by which each service's clock is ahead of ours.
        written: Whether each service has stored the empty block, if it was sent.
        misuse: The error of an option that doesn't exist, or None.
        client: The client of the services; None until it is open.
    """

    mountpoint: Path | None = None
    store: StoreOptions | None = None
    others: dict[str, Any] = field(default_factory=dict)
    skews: dict[str, float] = field(default_factory=dict)
    written: dict[str, bool] = field(default_factory=dict)
    misuse: click.UsageError | None = None
    client: KeepClient | None = None


#: The context of a command whose argument is `words_argument`.
WITH_WORDS = {"ignore_unknown_options": True}
words_argument = click.argument(
    "words", metavar="[MOUNTPOINT] [OPTION]...", nargs=-1, type=click.UNPROCESSED
)
limit_option = click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Limit of each step.",
)


@click.command("check", context_settings=WITH_WORDS)
@words_argument
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")
@limit_option
@click.option("--no-write", is_flag=True, help="Store no empty block at each service.")
def check_command(
    words: tuple[str, ...], timeout: float, *, is_json: bool, no_write: bool
) -> None:
    """Check what a mount needs, step by step.

    OPTION are those of `keepfs mount`; the settings are read as mount reads them.
    Checks the configuration and where each value comes from, the token, FUSE,
    the kernel, the clock, and each service: its response time, and whether it
    stores. Exits with 0 if all is well, 1 if a step failed, and 3 if a step
    could not tell. Nothing here accesses a mount that is served.
    """
    steps = all_steps(words, timeout, is_writing=not no_write)
    code = exit_code(steps)
    if is_json:
        found = {"keepfs": __version__, "exit": code, "steps": [asdict(each) for each in steps]}
        click.echo(json.dumps(found))
    else:
        click.echo(as_text(steps))
    raise SystemExit(code)


def all_steps(words: Sequence[str], limit: float, *, is_writing: bool) -> list[Step]:
    """Run every step; each takes at most `limit` seconds.

    Args:
        words: The mount point, if any, and options of `keepfs mount`.
        limit: Seconds.
        is_writing: Whether an empty block is stored at each service.

    Raises:
        click.UsageError: There is no such option.
    """
    told = _Told()
    steps = run_steps({"configuration": functools.partial(_configuration, words, told)}, limit)
    if told.misuse is not None:
        raise click.UsageError(told.misuse.format_message())
    steps.append(_variables())
    if told.mountpoint is not None:
        mine = functools.partial(_service_variables, told.mountpoint)
        steps += run_steps({"service's variables": mine}, limit)
    steps += run_steps(_machine_steps(told), limit)
    if told.store is None:
        return steps
    if told.mountpoint is not None:
        work = functools.partial(_catalog, told.mountpoint, told.store, told.others)
        steps += run_steps({"catalog": work}, limit)
    if told.store.local_store is not None:
        return [*steps, run_step("local store", functools.partial(_local, told.store), limit)]
    return [*steps, *_cluster_steps(told, told.store, limit, is_writing=is_writing)]


def _configuration(words: Sequence[str], told: _Told) -> Step:
    """Read the settings as `keepfs mount` does."""
    from keepfs.cli.mounting import mount_command  # noqa: PLC0415 - of this command alone

    def note(**values: Any) -> None:  # noqa: ANN401 - the options of mount
        told.store = values.pop("store")
        told.others = values

    parameters = mount_command.params
    command = click.Command("mount", params=parameters, callback=store_settings(note))
    arguments = list(words)
    lenient = click.Context(command, resilient_parsing=True)
    parsed, _, _ = command.make_parser(lenient).parse_args(list(words))
    place = parsed.get("mountpoint_")  # without one, click 8.4 has a value of its own
    if not isinstance(place, str):
        arguments.append(_NO_MOUNT_POINT)
    else:
        told.mountpoint = mountpoint.resolve(Path(place))
    try:
        context = command.make_context("check", arguments)
    except click.NoSuchOption as error:
        told.misuse = error
        raise
    with context:
        command.invoke(context)
        sources = sources_of(context, parameters)
    return Step(
        "", CheckResult.OK, f"settings that are not the default: {len(sources)}", "", 0, sources
    )


def _variables() -> Step:
    unknown = variables.unknown(os.environ)
    if not unknown:
        return Step("variables", CheckResult.OK, "each KEEPFS_ variable is an option")
    return Step(
        "variables",
        CheckResult.FAILED,
        "; ".join(variables.text_of_unknown(each) for each in unknown),
        "correct or unset it: every command refuses to start",
    )


def _service_variables(path: Path) -> Step:
    """Look at the variables of the service of a mount point, which root's commands do not read."""
    file = units.variables_of_service(path)
    names = variables.names_in(file)
    if not names:
        return Step("", CheckResult.SKIPPED, f"there are none in {file}")
    unknown = variables.unknown(names)
    if unknown:
        said = "; ".join(variables.text_of_unknown(each) for each in unknown)
        return Step("", CheckResult.FAILED, f"{file}: {said}", "correct it, or the service fails")
    found = f"{file} sets {', '.join(names)}, for the service alone"
    if not variables.PLACES.isdisjoint(names):
        advice = "move them to config.toml and settings.conf: the other commands do not read it"
        return Step("", CheckResult.WARNING, found, advice)
    return Step("", CheckResult.OK, found)


def _machine_steps(told: _Told) -> dict[str, Callable[[], Step]]:
    checks = {
        "/dev/fuse": _fuse_device,
        "fusermount3": _fusermount,
        "user_allow_other": _allow_other,
        "AppArmor": _apparmor,
        "kernel time-out": _kernel_timeout,
        "mount point": _place,
    }
    return {name: functools.partial(check, told) for name, check in checks.items()}


def _fuse_device(_: _Told) -> Step:
    mountpoint.check_fuse()
    return Step("", CheckResult.OK, "/dev/fuse can be opened")


def _fusermount(_: _Told) -> Step:
    path = machine.fusermount()
    if path and "not setuid" not in path:
        return Step("", CheckResult.OK, path)
    is_needed = os.geteuid() != 0
    advice = "install the package fuse3"
    verdict = CheckResult.FAILED if is_needed else CheckResult.OK
    found = path or f"not found{'' if is_needed else '; root does not need it'}"
    return Step("", verdict, found, advice if is_needed else "")


def _allow_other(told: _Told) -> Step:
    if machine.allows_other():
        return Step("", CheckResult.OK, "--allow-other is possible")
    is_wanted = bool(told.others.get("allow_other"))
    return Step(
        "",
        CheckResult.FAILED if is_wanted else CheckResult.OK,
        "--allow-other is not possible for this user",
        "add a line user_allow_other to /etc/fuse.conf" if is_wanted else "",
    )


def _apparmor(told: _Told) -> Step:
    why = machine.apparmor(told.mountpoint)
    advice = "mount below $HOME, /mnt or /media, or change /etc/apparmor.d/fusermount3"
    if why:
        return Step("", CheckResult.WARNING, why, advice)
    return Step("", CheckResult.OK, "no profile is in the way")


def _kernel_timeout(told: _Told) -> Step:
    found = machine.kernel_timeouts()
    wanted = float(told.others.get("request_timeout") or 600)
    low = {name: value for name, value in found.items() if value < wanted}
    if not low:
        return Step("", CheckResult.OK, "no limit is below --request-timeout")
    name, limit = min(low.items(), key=lambda each: each[1])
    said = of_mounts.KERNEL_TIMEOUT(
        limit=limit, name=name, deadline="fewer", wanted=f"{wanted:.0f}"
    )
    return Step("", CheckResult.WARNING, said, f"sysctl fs.fuse.{name}=0", 0, dict(found))


def _place(told: _Told) -> Step:
    if told.mountpoint is None:
        return Step("", CheckResult.SKIPPED, "no mount point is given")
    try:
        return Step("", CheckResult.OK, machine.state_of(told.mountpoint))
    except mountpoint.MountpointError as error:
        said = str(error)
        clear = f"keepfs unmount {told.mountpoint} clears it, and so does the next keepfs mount"
        advice = clear if of_mounts.DEAD_MOUNT.id in ids_in(said) else ""
        return Step("", CheckResult.FAILED, said, advice)


def _catalog(path: Path, store: StoreOptions, others: dict[str, Any]) -> Step:
    """Compare the store with that of the names in upload/, as a mount does."""
    running = runtime.find(path)
    if running is not None and running.state_dir:
        directory = Path(running.state_dir)
    else:
        directory = settings.absolute(others["state_dir"] or settings.default_state_dir(path))
    catalog = directory / CATALOG
    if not catalog.exists():
        return Step("", CheckResult.SKIPPED, f"there is none yet in {directory}")
    check_store(catalog, stores.identity(store))
    return Step("", CheckResult.OK, f"the names in {catalog} are of this store")


def _local(store: StoreOptions) -> Step:
    with stores.open_client(store) as client:
        stores.check_services(client, store)
    path = store.local_store
    assert path is not None  # noqa: S101 - for the type
    if os.access(path, os.W_OK | os.X_OK):
        return Step("", CheckResult.OK, f"{path} can be written")
    said = of_stores.LOCAL_STORE_FAILED(path=path, reason="this user may not write")
    return Step("", CheckResult.FAILED, said, "change its owner or mode")


def _cluster_steps(
    told: _Told, store: StoreOptions, limit: float, *, is_writing: bool
) -> list[Step]:
    with contextlib.ExitStack() as stack:

        def opening() -> Step:
            told.client = stack.enter_context(stores.open_client(store))
            return Step("", CheckResult.OK)

        opened = run_step("token", opening, limit)  # its file may be on a disk that hangs
        if told.client is None:
            return [opened]
        return _client_steps(told, store, told.client, limit, is_writing=is_writing)


def _client_steps(
    told: _Told, store: StoreOptions, client: KeepClient, limit: float, *, is_writing: bool
) -> list[Step]:
    services: dict[str, KeepService] = {}
    writable: dict[str, KeepService] = {}

    def listed() -> Step:
        for roots, need_writable in ((services, False), (writable, True)):
            client.map_new_services(
                roots, _NOBODYS, force_rebuild=False, need_writable=need_writable, headers={}
            )
        if not services:
            return Step("", CheckResult.FAILED, "there are none", "name some: --keep-services")
        return Step("", CheckResult.OK, f"{len(services)} services, {len(writable)} writable")

    steps = [
        run_step("token", functools.partial(_token, store, client), limit),
        run_step("list of services", listed, limit),
    ]
    steps += run_steps(
        {
            f"service {root}": functools.partial(
                _service, told, service, limit, is_writing=is_writing and root in writable
            )
            for root, service in services.items()
        },
        limit,
    )
    if services and is_writing:
        steps.append(_writability(told, len(writable)))
    steps.append(_clock(told))
    return steps


def _token(store: StoreOptions, client: KeepClient) -> Step:
    api = stores.open_api(store, client.api_token)
    if api is None:
        return Step("", CheckResult.SKIPPED, "no API server is set, which could check it")
    source = renewing_store.token_source(store)
    try:
        user = api.users().current().execute()
    except ApiError as error:
        if error.status_code == 403:  # noqa: PLR2004 - a scoped token may be good for Keep alone
            return Step("", CheckResult.WARNING, f"limited to some requests ({source})")
        if error.cause is Cause.DENIED:
            said = of_stores.TOKEN_REFUSED(source=source, reason=error)
            return Step("", CheckResult.FAILED, said, f"write a valid token to {source}")
        said = of_stores.API_UNREACHABLE(reason=error, settings=source)
        return Step("", CheckResult.FAILED, said, "check ARVADOS_API_HOST and the network")
    finally:
        api.close()
    return Step("", CheckResult.OK, f"of user {user.get('uuid', '?')} ({source})")


def _service(told: _Told, service: KeepService, limit: float, *, is_writing: bool) -> Step:
    patience = Timeouts(limit, limit, 0)
    begin = time.monotonic()
    service.get(_NOBODYS, "HEAD", patience)
    seconds, outcome = time.monotonic() - begin, service.outcome()
    if outcome is None or not outcome.status:
        said = of_stores.UNREACHABLE(text=outcome.reason if outcome else "not asked")
        advice = "check its address, the network and firewalls; is it running?"
        return Step("", CheckResult.FAILED, said, advice)
    if "date" in outcome.headers:
        moment = email.utils.parsedate_to_datetime(outcome.headers["date"])
        told.skews[service.root] = (moment - dt.datetime.now(dt.UTC)).total_seconds()
    found = f"answers in {seconds * 1000:.0f} ms"
    if not is_writing:
        return Step("", CheckResult.OK, found, details={"milliseconds": round(seconds * 1000, 1)})
    told.written[service.root] = service.put(
        _EMPTY.md5sum, b"", patience, {"X-Keep-Desired-Replicas": "1"}
    )
    details = {"milliseconds": round(seconds * 1000, 1), "stores": told.written[service.root]}
    if told.written[service.root]:
        return Step("", CheckResult.OK, f"{found}, stores", details=details)
    refusal = service.outcome()
    why = "" if refusal is None else refusal.reason
    said = of_stores.REQUEST_FAILED(text=f"{found}, does not store: {why}")
    return Step("", CheckResult.WARNING, said, "is it full, or read-only?", details=details)


def _writability(told: _Told, count: int) -> Step:
    good = sum(told.written.values())
    if good:
        return Step("writability", CheckResult.OK, f"{good} of {count} services store")
    verdict = CheckResult.FAILED if told.written or not count else CheckResult.UNKNOWN
    advice = "ask the operator of the services: uploads will fail"
    return Step("writability", verdict, f"none of {count} services stores", advice)


def _clock(told: _Told) -> Step:
    if not told.skews:
        return Step("clock", CheckResult.UNKNOWN, "no service told its time")
    root, skew = max(told.skews.items(), key=lambda each: abs(each[1]))
    found = f"{skew:+.0f} s at {root} at most"
    if abs(skew) <= _MOST_SKEW:
        return Step("clock", CheckResult.OK, found)
    advice = "set the clocks by NTP: signatures end at a time, which keepfs compares with ours"
    return Step("clock", CheckResult.WARNING, found, advice)
