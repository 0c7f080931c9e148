"""keepfs stat, verify and where: the state of blocks at the services."""

from __future__ import annotations

import functools
import json
import time
from typing import TYPE_CHECKING, TypeVar

import click

from keepfs.cli import clients, progress
from keepfs.cli.settings import store_settings
from keepfs.keep.errors import Cause, KeepRequestError
from keepfs.keep.survey import Sighting, survey
from keepfs.messages import of_stores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keepfs.config.options import StoreOptions
    from keepfs.keep.client import KeepClient
    from keepfs.keep.locator import KeepLocator

_T = TypeVar("_T")

_WORDS = {
    None: "ok",
    Cause.NOT_FOUND: "missing",
    Cause.CORRUPT: "DAMAGED",
    Cause.DENIED: "refused",
}


@click.command("stat")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@clients.json_option
@progress.progress_option
@store_settings
def stat_command(locators: tuple[str, ...], store: StoreOptions, *, is_json: bool) -> None:
    """Print the size and locator of each block.

    Exits with 1 if a block does not exist.
    """
    failed = clients.Failures()
    wanted = clients.locators_in(locators, failed)
    with clients.command_client(store) as client:
        for locator, size in _answers(client.head_block, wanted, failed):
            found = {"locator": str(locator), "size": size}
            clients.print_line(json.dumps(found) if is_json else f"{size}\t{locator}")
    failed.exit()


@click.command("verify")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@clients.json_option
@progress.progress_option
@store_settings
def verify_command(locators: tuple[str, ...], store: StoreOptions, *, is_json: bool) -> None:
    """Make every service check its copies.

    The blocks are not transferred. Prints one line per block and service: the
    result (ok, missing, DAMAGED, refused, remote or unknown), the service, and
    the locator. `remote` means that the service has no copy and gets the block
    from the cluster in the locator. With a local store, keepfs reads the file
    of the block.

    Exits with 1 if a copy is damaged or can't be checked, if a block has no
    good copy, or if it has fewer good copies than --copies. Copies behind a
    proxy are not counted.
    """
    failed = clients.Failures()
    wanted = clients.locators_in(locators, failed)
    with clients.command_client(store) as client:
        look = functools.partial(_sightings, client, store)
        for locator, sightings in _answers(look, wanted, failed):
            verdicts = [_verdict(each, locator) for each in sightings]
            if is_json:
                clients.print_line(_as_json(locator, sightings))
            for verdict, each in zip(verdicts, () if is_json else sightings, strict=not is_json):
                clients.print_line(f"{verdict}\t{each.root}\t{locator}")
            if not _is_sound(verdicts):
                failed.note()
            elif store.copies is not None and not any(each.is_proxy for each in sightings):
                copies = verdicts.count("ok")
                if copies < store.copies:
                    failed.note(
                        of_stores.COPIES_MISSING(
                            locator=locator.stripped(), found=copies, wanted=store.copies
                        )
                    )
    failed.exit()


@click.command("where")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@clients.json_option
@progress.progress_option
@store_settings
def where_command(locators: tuple[str, ...], store: StoreOptions, *, is_json: bool) -> None:
    """Show which services have each block.

    Lists the services in probe order, with the state of the block and the
    response time. `remote` means that the service has no copy and gets the block from the
    cluster in the locator. Exits with 1 if no service has a block.
    """
    failed = clients.Failures()
    wanted = clients.locators_in(locators, failed)
    with clients.command_client(store) as client:
        look = functools.partial(_sightings, client, store)
        for locator, sightings in _answers(look, wanted, failed):
            clients.print_line(_as_json(locator, sightings) if is_json else str(locator))
            for number, each in enumerate(() if is_json else sightings, 1):
                milliseconds = f"{each.seconds * 1000:.0f} ms"
                why = "" if each.cause is None else f"  ({each.reason})"
                verdict = _verdict(each, locator)
                clients.print_line(f"{number:3}  {verdict:8}{milliseconds:>10}  {each.root}{why}")
            if all(each.cause is not None for each in sightings):
                failed.note()
    failed.exit()


def _answers(
    question: Callable[[KeepLocator], _T], locators: list[KeepLocator], failed: clients.Failures
) -> Iterator[tuple[KeepLocator, _T]]:
    """Call `question` for the locators concurrently; yield the answers in order.

    A failure is noted, and its locator is left out.
    """

    def ask(locator: KeepLocator) -> _T | KeepRequestError:
        try:
            return question(locator)
        except KeepRequestError as error:
            return error

    answers = clients.side_by_side(ask, locators)
    for locator, answer in progress.counted(answers, "asking", len(locators)):
        if isinstance(answer, KeepRequestError):
            failed.note(clients.failure_of(locator, answer))
        else:
            yield locator, answer


def _sightings(client: KeepClient, store: StoreOptions, locator: KeepLocator) -> list[Sighting]:
    """Ask every service for a block; a local store counts as one service and reads the block."""
    if store.local_store is None:
        return survey(client, locator)
    begin, where = time.monotonic(), f"local:{store.local_store}"
    try:
        client.get_block(locator)
    except KeepRequestError as error:
        return [Sighting(where, error.cause, 0, str(error), time.monotonic() - begin)]
    return [Sighting(where, None, 0, "", time.monotonic() - begin)]


def _as_json(locator: KeepLocator, sightings: list[Sighting]) -> str:
    services = [
        {
            "service": each.root,
            "state": _verdict(each, locator),
            "seconds": round(each.seconds, 6),
            "reason": "" if each.cause is None else each.reason,
        }
        for each in sightings
    ]
    return json.dumps({"locator": str(locator), "services": services})


def _verdict(sighting: Sighting, locator: KeepLocator) -> str:
    if sighting.cause is None and locator.is_remote():
        return "remote"
    return _WORDS.get(sighting.cause, "unknown")


def _is_sound(verdicts: list[str]) -> bool:
    there = {"ok", "remote"}
    return not there.isdisjoint(verdicts) and there | {"missing"} >= set(verdicts)
