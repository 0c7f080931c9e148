"""get_view and get_into: blocks in reused memory, and in buffers of callers."""

from __future__ import annotations

import array
import ctypes
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from keepfs.keep import KeepBlockCache, KeepClient
from keepfs.keep.errors import ArgumentError, KeepReadError, NotFoundError
from keepfs.keep.locator import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Buffer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def client(directory: Path) -> Iterator[KeepClient]:
    directory.mkdir()
    with KeepClient(local_store=directory, block_cache=KeepBlockCache(1)) as it:
        yield it


def address(view: memoryview) -> int:
    """Return where a read-only view begins."""
    pointer = ctypes.c_void_p()
    size = ctypes.c_ssize_t()
    ask = ctypes.pythonapi.PyObject_AsReadBuffer
    ask.argtypes = [ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p]
    ask(view, ctypes.byref(pointer), ctypes.byref(size))
    return pointer.value or 0


def test_a_view_is_read_only_and_has_the_block(client: KeepClient) -> None:
    view = client.get_view(client.put(b"foo"))

    assert bytes(view) == b"foo"
    assert view.readonly


def test_a_list_of_locators_is_refused_with_the_text_that_is_wanted(client: KeepClient) -> None:
    locators: Any = [client.put(b"foo"), client.put(b"bar")]
    buffer = bytearray(6)

    for call in (client.get, client.head, client.get_view, lambda it: client.get_into(it, buffer)):
        with pytest.raises(TypeError, match="one str joined by commas; not list"):
            call(locators)

    assert client.get_into(",".join(locators), buffer) == 6
    assert buffer == b"foobar"


@pytest.mark.slow
def test_memory_is_used_again_when_its_last_view_is_gone_and_not_before(
    client: KeepClient,
) -> None:
    base = bytearray(os.urandom(1024)) * (MAX_BLOCK_SIZE // 1024)
    names = []
    for number in range(3):
        base[0] = number
        names.append(client.put(base))

    kept = client.get_view(names[0])
    view = client.get_view(names[1])
    second = address(view)
    assert second != address(kept)
    part = view[:1]
    del view
    view = client.get_view(names[2])
    assert address(view) != second  # `part` is still there
    del view, part
    view = client.get_view(names[1])

    assert kept[0] == 0
    assert view[0] == 1
    assert kept[1:] == view[1:]
    del view
    seen = set()
    for name in names * 2:
        view = client.get_view(name)
        seen.add(address(view))
        del view
    assert len(seen) <= 2


@pytest.mark.parametrize("text", ["no locator", "", f"{'a' * 32}+3", f"{'a' * 32},{'a' * 32}"])
def test_a_view_of_a_missing_block_is_not_found(client: KeepClient, text: str) -> None:
    with pytest.raises(NotFoundError):
        client.get_view(text)


@pytest.mark.parametrize("room", [6, 7, 100])
def test_a_list_is_written_to_the_start_of_a_buffer(client: KeepClient, room: int) -> None:
    buffer = bytearray(b"." * room)

    size = client.get_into(f"{client.put(b'foo')},{client.put(b'bar')}", buffer)

    assert size == 6
    assert bytes(buffer) == b"foobar" + b"." * (room - 6)
    buffer.append(0)  # no view of it is left


def test_a_buffer_of_another_type_has_its_bytes_counted(client: KeepClient) -> None:
    numbers = array.array("I", [0, 7])

    assert client.get_into(client.put(b"\x01\0\0\0"), numbers) == 4

    assert numbers[0].to_bytes(4, "little" if numbers.tobytes()[0] else "big") == b"\x01\0\0\0"
    assert numbers[1] == 7


@pytest.mark.parametrize("has_size", [True, False])
def test_a_buffer_that_is_too_small_stays_as_it_is(client: KeepClient, *, has_size: bool) -> None:
    locator = client.put(b"foo")
    buffer = bytearray(b"..")

    with pytest.raises(ArgumentError, match="has 2 bytes, the blocks have 3: give a larger one"):
        client.get_into(locator if has_size else locator[:32], buffer)

    assert buffer == b".."


@pytest.mark.parametrize("buffer", [b"...", memoryview(bytearray(6))[::2], "..."])
def test_a_buffer_that_cannot_be_written_to_is_a_type_error(
    client: KeepClient, buffer: Buffer
) -> None:
    with pytest.raises(TypeError):
        client.get_into(client.put(b"foo"), buffer)


def test_damaged_bytes_never_reach_the_buffer(client: KeepClient, directory: Path) -> None:
    good, bad = client.put(b"foo"), client.put(b"bar")
    (path,) = [it for it in directory.rglob("*") if it.is_file() and bad[:32] in it.name]
    path.chmod(0o600)
    path.write_bytes(b"baz")
    buffer = bytearray(b"......")

    with pytest.raises(KeepReadError):
        client.get_into(bad, buffer)
    assert buffer == b"......"

    with pytest.raises(KeepReadError):
        client.get_into(f"{good},{bad}", buffer)
    assert buffer == b"foo..."


def test_closing_ends_the_call_and_leaves_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARVADOS_API_TOKEN", "any")
    buffer = bytearray(b"...")
    failures: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        client = KeepClient(proxy=url, api_token="any", local_store="")  # noqa: S106 - any

        def get() -> None:
            try:
                client.get_into(f"{'a' * 32}+3", buffer)
            except KeepReadError as error:
                failures.append(error)

        caller = threading.Thread(target=get)
        caller.start()
        connection, _ = server.accept()
        assert connection.recv(4096).startswith(b"GET /")
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab")
        client.close()
        caller.join(30)
        connection.close()

    assert len(failures) == 1
    assert buffer == b"..."
