"""What a service manager is told, over real sockets."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from keepfs.mount import systemd

if TYPE_CHECKING:
    from pathlib import Path


def test_without_a_service_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    assert not systemd.notify("READY=1")


def test_a_socket_in_the_file_system_is_notified(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)

        assert systemd.notify("READY=1\nSTATUS=Serving /mnt/keep")
        assert manager.recv(1000) == b"READY=1\nSTATUS=Serving /mnt/keep"


def test_an_abstract_socket_is_notified(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"keepfs-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")

        assert systemd.notify("STOPPING=1")
        assert manager.recv(1000) == b"STOPPING=1"


def test_a_mount_point_need_not_be_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)

        assert systemd.notify(os.fsdecode(b"STATUS=Serving /mnt/\xff"))
        assert manager.recv(1000) == b"STATUS=Serving /mnt/\xff"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/nowhere/notify", "/" * 200])
def test_an_address_without_a_listener_is_ignored(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)

    assert not systemd.notify("READY=1")
