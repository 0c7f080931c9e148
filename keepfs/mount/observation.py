"""Observation: the figures, control socket, watchdog and metrics of a mount, as one part."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import trio

from keepfs.mount import metrics_output, runtime
from keepfs.mount.control_server import ControlServer
from keepfs.mount.figure_sources import FigureSources
from keepfs.mount.loop_figures import LoopCopies, LoopOwners
from keepfs.mount.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.config.options import MountOptions
    from keepfs.fs.operations import Operations
    from keepfs.fs.requests import Requests
    from keepfs.fs.upload.catalog import Catalog
    from keepfs.fs.upload.drain import Drain
    from keepfs.fs.upload.failed import FailedFiles
    from keepfs.fs.upload.staging import Staging
    from keepfs.mount.control import Control
    from keepfs.mount.retaining import Keeping
    from keepfs.renewing_store import RenewingStore


class ObservedOwners(NamedTuple):
    """The parts of a mount that have counters or state for the figures."""

    requests: Requests
    operations: Operations
    store: RenewingStore
    staging: Staging
    failed: FailedFiles
    keeping: Keeping
    drain: Drain


class Observation:
    """Makes the state of a mount available to other processes. Make it in the trio thread.

    Args:
        options: The options of the mount.
        catalog: The catalog of the mount.
        owners: The parts from which the figures are read.
        control: Carries out control requests other than the status.
    """

    def __init__(
        self, options: MountOptions, catalog: Catalog, owners: ObservedOwners, control: Control
    ) -> None:
        self._options = options
        copies = LoopCopies(
            LoopOwners(
                owners.requests,
                owners.operations,
                owners.staging,
                owners.failed,
                owners.keeping.statistics,
                lambda: owners.drain.has_begun,
                catalog.count_lost,
            )
        )
        #: Its `run` is a task of the mount.
        self.watchdog = Watchdog(owners.requests, copies.renew)
        self._sources = FigureSources(
            mountpoint=str(options.mountpoint),
            deadline=owners.requests.deadline,
            store=owners.store,
            loop=copies,
            watchdog=self.watchdog,
        )
        self._server = ControlServer(
            runtime.control_socket(options.mountpoint),
            self._sources.read,
            control.answer,
            trio.lowlevel.current_trio_token(),
        )

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Answer control requests and export metrics until exit.

        Raises:
            MetricsError: The metrics can't be exported.
        """
        with (
            metrics_output.exporting(self._sources.read, self._options),
            self._server.serving(),
        ):
            yield
