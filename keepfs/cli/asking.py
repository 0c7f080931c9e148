"""keepfs stat, verify and where: what the services say of blocks."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, TypeVar

import click

from keepfs.cli import clients
from keepfs.cli.settings import store_settings
from keepfs.keep.errors import Cause, KeepRequestError
from keepfs.keep.survey import Sighting, survey

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
@store_settings
def stat_command(locators: tuple[str, ...], store: StoreOptions) -> None:
    """Print each block's size and locator, if it is there; exit with 1 if any isn't."""
    failed = clients.Failures()
    wanted = clients.locators_in(locators, failed)
    with clients.open_client(store) as client:
        for locator, size in _answers(client.head_block, wanted, failed):
            clients.print_line(f"{size}\t{locator}")
    failed.exit()


@click.command("verify")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@store_settings
def verify_command(locators: tuple[str, ...], store: StoreOptions) -> None:
    """Have every service check its copy of each block, without a transfer.

    Prints, for each block and service: ok, missing, DAMAGED, refused, remote
    or unknown, the service, and the locator. `remote` is a block that the
    service has no copy of, and got from the cluster that the locator names.
    Exits with 1 if a copy is damaged or can't be checked, if a block has no
    sound copy at all, or fewer than --copies, where that is given (through a
    proxy copies can't be counted). A local store reads its file.
    """
    failed = clients.Failures()
    wanted = clients.locators_in(locators, failed)
    with clients.open_client(store) as client:
        look = functools.partial(_sightings, client, store)
        for locator, sightings in _answers(look, wanted, failed):
            verdicts = [_verdict(each, locator) for each in sightings]
            for verdict, each in zip(verdicts, sightings, strict=True):
                clients.print_line(f"{verdict}\t{each.root}\t{locator}")
            if not _is_sound(verdicts):
                failed.note()
            elif store.copies is not None and not any(each.is_proxy for each in sightings):
                copies = verdicts.count("ok")
                if copies < store.copies:
                    failed.note(f"{locator}: {copies} of {store.copies} copies")
    failed.exit()


@click.command("where")
@click.argument("locators", metavar="LOCATOR...", nargs=-1, required=True)
@store_settings
def where_command(locators: tuple[str, ...], store: StoreOptions) -> None:
    """Show which services have each block, in the order they are asked, and how fast they answer.

    `remote` is a block that the service has no copy of, and got from the
    cluster that the locator names. Exits with 1 if a block is nowhere.
    """
    failed = clients.Failures()
    wanted = clients.locators_in(locators, failed)
    with clients.open_client(store) as client:
        look = functools.partial(_sightings, client, store)
        for locator, sightings in _answers(look, wanted, failed):
            clients.print_line(str(locator))
            for number, each in enumerate(sightings, 1):
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
    """Ask of each locator, several at once; yield the answers in the locators' order.

    A question that fails is noted, and its locator left out.
    """

    def ask(locator: KeepLocator) -> _T | KeepRequestError:
        try:
            return question(locator)
        except KeepRequestError as error:
            return error

    for locator, answer in clients.side_by_side(ask, locators):
        if isinstance(answer, KeepRequestError):
            failed.note(str(answer))
        else:
            yield locator, answer


def _sightings(client: KeepClient, store: StoreOptions, locator: KeepLocator) -> list[Sighting]:
    """Ask every service for a block; a local store is one that reads it."""
    if store.local_store is None:
        return survey(client, locator)
    begin, where = time.monotonic(), f"local:{store.local_store}"
    try:
        client.get_block(locator)
    except KeepRequestError as error:
        return [Sighting(where, error.cause, 0, str(error), time.monotonic() - begin)]
    return [Sighting(where, None, 0, "", time.monotonic() - begin)]


def _verdict(sighting: Sighting, locator: KeepLocator) -> str:
    if sighting.cause is None and locator.is_remote():
        return "remote"
    return _WORDS.get(sighting.cause, "unknown")


def _is_sound(verdicts: list[str]) -> bool:
    there = {"ok", "remote"}
    return not there.isdisjoint(verdicts) and there | {"missing"} >= set(verdicts)
