"""Provokes the messages that a mount logs and no other test provokes."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from prometheus_client import CollectorRegistry

from keepfs import stores
from keepfs.cli import servicing
from keepfs.config.options import MountOptions, StoreOptions
from keepfs.fs.nodes import Metadata, directory_mode, file_mode
from keepfs.fs.upload.catalog import ROOT, Catalog
from keepfs.fs.upload.stored import StoredBytes
from keepfs.keep.errors import KeepRequestError
from keepfs.keep.locator import KeepLocator
from keepfs.keep.store import Receipt
from keepfs.mount import fuse, metrics_output, runtime, serve
from keepfs.mount.control_requests import ControlConnection, ControlError
from keepfs.mount.control_server import ControlServer
from keepfs.mount.retaining import Keeping
from keepfs.renewing_store import RenewingStore
from keepfs.retention import losses, put_again, signatures
from keepfs.retention.keeper import Keeper
from keepfs.retention.kept import Mode
from keepfs.retention.ledger import KEY, Ledger
from tests.fakes.disk import full_disk
from tests.fakes.threads import wait_until
from tests.keepstore import Fault
from tests.messages.provoking import provokes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.test_cli import Shell
    from tests.keepstore import ApiControls, KeepstoreControls


@contextlib.contextmanager
def catalog_of(directory: Path, *locators: str) -> Iterator[Catalog]:
    """Make a catalog with a file for each locator."""
    with contextlib.closing(Catalog(directory / "catalog.sqlite")) as catalog:
        catalog.add_root(Metadata(directory_mode(0o755), 0, 0, 0))
        with catalog.change():
            for number, locator in enumerate(locators):
                stored = StoredBytes.of_blocks([Receipt(KeepLocator(locator), 1, ())])
                owner = Metadata(file_mode(0o644), 0, 0, 0)
                catalog.add_file(ROOT, f"file{number}", owner, stored)
        yield catalog


# --- retention --------------------------------------------------------------------------


@provokes("more-files-lost")
def test_many_files_are_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> str:
    names = [f"{number:032x}+3" for number in range(30)]
    with catalog_of(tmp_path, *names) as catalog:
        numbers = [
            catalog.child(ROOT, f"file{each}").number  # type: ignore[union-attr] # it is there
            for each in range(30)
        ]
        losses.mark(catalog, dict.fromkeys(numbers, "it is gone"))
    return caplog.text


@provokes("not-stored-again")
def test_a_block_is_not_stored_again(
    over: Shell, keepstore: KeepstoreControls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> str:
    assert over is not None
    locator = keepstore.store_block(b"foo")
    keepstore.always(Fault(status=403), method="GET")
    options = StoreOptions(retries=0)
    with catalog_of(tmp_path, locator), stores.open_client(options) as client:
        store = RenewingStore(client, options)
        path = tmp_path / "catalog.sqlite"
        fresh = signatures.Signatures()
        assert not put_again.store_missing(store, path, 1, fresh)
    return caplog.text


@provokes("retention-record-damaged", "lost-not-forgotten", "lost-not-recorded")
def test_the_catalog_of_retention_is_damaged(
    over: Shell, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> str:
    assert over is not None
    options = StoreOptions(retries=0)
    mount_options = MountOptions(mountpoint=tmp_path, store=options, state_dir=tmp_path)
    with catalog_of(tmp_path) as catalog, stores.open_client(options) as client:
        catalog.set_about(KEY, "no JSON")
        store = RenewingStore(client, options)
        Keeping(mount_options, catalog, store, 1)
        keeper = Keeper(Mode.PUT, catalog, tmp_path / "catalog.sqlite", store, 1, Ledger())
        with full_disk():
            keeper.renew_now()
            keeper.missing(ROOT, "no service has it")
    return caplog.text


# --- the process of a mount -------------------------------------------------------------


@provokes("request-abandoned")
def test_a_request_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> str:
    async def fail(**_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pyfuse3.main", fail)  # a library
    loop = fuse.KernelLoop()
    for _ in range(2):  # the second start finds no device of a mount to send to
        with pytest.raises(MemoryError):
            trio.run(loop.run)
    return caplog.text


@provokes("metrics-not-written")
def test_the_directory_of_the_metrics_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> str:
    monkeypatch.setattr(metrics_output, "_WRITE_INTERVAL", 0.01)
    folder = tmp_path / "metrics"
    folder.mkdir()
    options = MountOptions(
        mountpoint=tmp_path,
        store=StoreOptions(local_store=tmp_path),
        state_dir=tmp_path,
        metrics_file=folder / "keepfs.prom",
    )
    figures = cast("Any", lambda: None)
    monkeypatch.setattr("keepfs.mount.metrics.registry_of", lambda _: CollectorRegistry())
    with metrics_output.exporting(figures, options):
        shutil.rmtree(folder)
        wait_until(lambda: bool(caplog.messages))
    return caplog.text


@provokes("metrics-not-removed")
def test_the_metrics_file_becomes_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> str:
    path = tmp_path / "keepfs.prom"
    options = MountOptions(
        mountpoint=tmp_path,
        store=StoreOptions(local_store=tmp_path),
        state_dir=tmp_path,
        metrics_file=path,
    )
    monkeypatch.setattr("keepfs.mount.metrics.registry_of", lambda _: CollectorRegistry())
    with metrics_output.exporting(cast("Any", lambda: None), options):
        path.unlink()
        path.mkdir()
    return caplog.text


@contextlib.contextmanager
def served(path: Path) -> Iterator[None]:
    """Serve a control socket that answers each request with a refusal."""

    async def main(ready: threading.Event, ended: threading.Event) -> None:
        token = trio.lowlevel.current_trio_token()

        def refuse(_request: dict[str, Any]) -> dict[str, Any]:
            return {"error": "it is read-only"}

        server = ControlServer(path, cast("Any", dict), refuse, token)
        with server.serving():
            ready.set()
            await trio.to_thread.run_sync(ended.wait)

    ready, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: trio.run(main, ready, ended))
    thread.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        ended.set()
        thread.join()


@provokes("no-control-socket", "control-refused", "control-unanswered")
def test_control_requests_that_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> str:
    texts = []
    with served(tmp_path / "socket"), ControlConnection(tmp_path / "socket") as connection:
        with pytest.raises(ControlError) as refused:
            connection.unstored("")
        texts.append(str(refused.value))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "silent"))
        listening.listen()
        with ControlConnection(tmp_path / "silent") as connection:
            listening.accept()[0].close()
            with pytest.raises(ControlError) as unanswered:
                connection.status()
        texts.append(str(unanswered.value))
    with served(tmp_path / ("x" * 120)):
        pass
    return "\n".join([*texts, caplog.text])


@provokes("control-request-lost")
def test_there_is_no_thread_for_a_control_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> str:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with served(tmp_path / "socket"), monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with (
            ControlConnection(tmp_path / "socket") as connection,
            pytest.raises(ControlError),
        ):
            connection.status()
        wait_until(lambda: bool(caplog.messages))  # the connection is closed first
    return caplog.text


@provokes("catalog-not-written")
def test_the_log_of_the_catalog_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> str:
    monkeypatch.setattr(serve, "_CHECKPOINT_INTERVAL", 0.01)
    with catalog_of(tmp_path) as catalog:
        with (tmp_path / "catalog.sqlite-wal").open("r+b") as log:
            log.truncate(5 * 2**20)
        (tmp_path / "catalog.sqlite").unlink()
        (tmp_path / "catalog.sqlite").mkdir()
        mount = serve._Mount.__new__(serve._Mount)  # noqa: SLF001 - one task of it
        mount._catalog = catalog  # noqa: SLF001

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount._keep_catalog_short)  # noqa: SLF001
                await trio.to_thread.run_sync(wait_until, lambda: bool(caplog.messages))
                nursery.cancel_scope.cancel()

        trio.run(run)
    return caplog.text


def test_a_mount_that_does_not_answer_fails_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_READY_TIMEOUT", 0.05)
    release = threading.Event()

    class Hanging:
        """A mount point whose mount answers nothing."""

        def stat(self) -> None:
            """Wait."""
            release.wait(20)

    mount = serve._Mount.__new__(serve._Mount)  # noqa: SLF001 - one task of it
    options = MountOptions(
        mountpoint=cast("Any", Hanging()), store=StoreOptions(), state_dir=tmp_path
    )
    mount._options = options  # noqa: SLF001
    try:
        with pytest.raises(fuse.MountError, match="did not answer within 0 s"):
            trio.run(mount._announce)  # noqa: SLF001
    finally:
        release.set()


def test_a_mount_that_is_unmounted_before_it_is_ready_leaves_the_device_below_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[int] = []
    monkeypatch.setattr(fuse, "set_read_ahead", lambda device, _: changed.append(device))
    monkeypatch.setattr(fuse, "allow_background", changed.append)
    mount = serve._Mount.__new__(serve._Mount)  # noqa: SLF001 - one task of it
    # Nothing is mounted there any more: a stat is answered for the directory.
    mount._options = MountOptions(  # noqa: SLF001
        mountpoint=tmp_path, store=StoreOptions(), state_dir=tmp_path
    )

    with runtime.claim(tmp_path, None) as claim:
        mount._claim = claim  # noqa: SLF001
        with pytest.raises(fuse.MountError, match="was unmounted before it was ready"):
            trio.run(mount._announce)  # noqa: SLF001
        running = runtime.find(tmp_path)

    assert running is not None
    assert running.device == 0
    assert changed == []


# --- services, and the commands ---------------------------------------------------------


@provokes("user-unknown")
def test_the_user_of_a_scoped_token(api: ApiControls, caplog: pytest.LogCaptureFixture) -> str:
    api.always(Fault(status=403), target="users/current")
    options = StoreOptions(retries=0)
    with stores.open_client(options) as client:
        stores.check_token(client, options)
    return caplog.text


@provokes("classes-unreadable")
def test_storage_classes_that_can_not_be_read(
    over: Shell, keepstore: KeepstoreControls, caplog: pytest.LogCaptureFixture
) -> str:
    assert over is not None
    odd = {"X-Keep-Storage-Classes-Confirmed": "default=many"}
    keepstore.always(Fault(headers=odd), method="PUT")
    options = StoreOptions(retries=0)
    with stores.open_client(options) as client, contextlib.suppress(KeepRequestError):
        client.put_block(b"foo", copies=1, classes=["default"])
    return caplog.text


@provokes("program-changeable")
def test_a_program_that_others_can_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> str:
    (tmp_path / "keepfs").touch()
    (tmp_path / "keepfs").chmod(0o777)
    servicing._warn_of_owner(str(tmp_path / "keepfs"))  # noqa: SLF001 - else it installs a unit
    return capsys.readouterr().err
