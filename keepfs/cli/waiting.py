"""A notice on standard error if a command waits for a server for over 2 seconds."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import click

from keepfs.config.arvados import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keepfs.config.options import StoreOptions

#: Seconds before the notice.
_SILENT = 2.0


def announce(store: StoreOptions) -> None:
    """Print the servers that the command waits for; nothing with a local store."""
    if store.local_store is not None:
        return
    settings = load_settings()
    services = store.keep_services or settings.keep_services or settings.keep_proxy
    if services:
        whom = f"the Keep services {services}"
    else:
        whom = f"the API server {settings.api_host}, or the Keep services"
    click.echo(f"keepfs: still waiting for {whom}", err=True)


@contextlib.contextmanager
def announced(
    store: StoreOptions, is_waiting: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Print the notice once, if the body takes longer than 2 seconds.

    Args:
        store: Where the blocks are.
        is_waiting: Called after 2 seconds; False suppresses the notice.
    """

    def look() -> None:
        if is_waiting():
            announce(store)

    timer = threading.Timer(_SILENT, look)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
