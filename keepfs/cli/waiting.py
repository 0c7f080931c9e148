"""What a command waits for, announced on standard error when it takes long."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import click

from keepfs.config.arvados import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keepfs.config.options import StoreOptions

#: Seconds without a word.
_SILENT = 2.0


def announce(store: StoreOptions) -> None:
    """Say whose answer is waited for; a local store is only slow, and nobody's answer."""
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
    """Say once what is waited for, if it takes longer than 2 seconds.

    Args:
        store: Where the blocks are.
        is_waiting: Asked then, whether there is still something to wait for.
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
