"""What keepfs is compared with: curl, md5sum, dd, and a file system in C."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.services import md5

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.services import Services

#: Where files lie in memory.
MEMORY = Path("/dev/shm")  # noqa: S108 - tmpfs is what is wanted


def curl_get(services: Services, locators: list[str]) -> float:
    """Get blocks with one curl and one connection, to /dev/null.

    Returns:
        The seconds of the transfers as curl counts them, without its start.
    """
    words: list[str] = []
    for locator in locators:
        words += ["-o", "/dev/null", f"{services.urls[0]}/{locator}"]
    return sum(_curl(services, words))


def curl_get_parallel(services: Services, locators: list[str]) -> float:
    """Get blocks with a curl each, all at once; return the seconds of the slowest."""
    running = [
        _start(services, ["-o", "/dev/null", f"{services.urls[0]}/{locator}"])
        for locator in locators
    ]
    return max(sum(_times(each)) for each in running)


def curl_md5sum(services: Services, locator: str) -> float:
    """Get a block with curl, hashed on the way by md5sum; return the seconds."""
    begin = time.perf_counter()
    curl = subprocess.Popen(
        ["curl", "-s", "-H", _token(services), f"{services.urls[0]}/{locator}"],
        stdout=subprocess.PIPE,
    )
    done = subprocess.run(["md5sum"], stdin=curl.stdout, capture_output=True, check=True)
    taken = time.perf_counter() - begin
    if curl.wait() or not done.stdout.startswith(locator[:32].encode()):
        raise RuntimeError("curl | md5sum got another block")
    return taken


def curl_put(services: Services, files: list[tuple[str, Path]]) -> float:
    """Put blocks to two services with a curl each, at once.

    Args:
        services: Where; the first two.
        files: Digest and file of each block.

    Returns:
        The seconds of the slower of both, without their start.
    """
    running = []
    for url in services.urls[:2]:
        words: list[str] = ["-H", "Expect:"]
        for digest, path in files:
            words += ["-o", "/dev/null", "-T", str(path), f"{url}/{digest}"]
        running.append(_start(services, words))
    return max(sum(_times(each)) for each in running)


def md5sum_then_curl_put(services: Services, path: Path) -> float:
    """Hash a file, then put it to two services at once; return the seconds."""
    begin = time.perf_counter()
    done = subprocess.run(["md5sum", str(path)], capture_output=True, text=True, check=True)
    hashed = time.perf_counter() - begin
    return hashed + curl_put(services, [(done.stdout[:32], path)])


def _token(services: Services) -> str:
    return f"Authorization: Bearer {services.token}"


def _start(services: Services, words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["curl", "-sfS", "-H", _token(services), "-w", "%{time_total}\n", *words],
        stdout=subprocess.PIPE,
    )


def _times(running: subprocess.Popen[bytes]) -> list[float]:
    output, _ = running.communicate()
    if running.returncode:
        raise RuntimeError(f"curl failed: {running.returncode}")
    return [float(line) for line in output.split()]


def _curl(services: Services, words: list[str]) -> list[float]:
    return _times(_start(services, words))


def read_file(path: Path, buffer: bytearray) -> float:
    """Read a file to its end, 1 MiB at a time into one buffer; return the seconds."""
    begin = time.perf_counter()
    file = os.open(path, os.O_RDONLY)
    try:
        while os.readv(file, [buffer]):
            pass
    finally:
        os.close(file)
    return time.perf_counter() - begin


def drop_pages(path: Path) -> None:
    """Have the kernel forget what it has of a file."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def dd(path: Path, size: int) -> float:
    """Write zeros to a file on a disk with dd, synced at the end; return the seconds."""
    begin = time.perf_counter()
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={size >> 20}", "conv=fsync"],
        stderr=subprocess.DEVNULL,
        check=True,
    )
    taken = time.perf_counter() - begin
    path.unlink()
    return taken


@contextmanager
def memfs(program: Path, mountpoint: Path, files: int, size: int, names: int) -> Iterator[Path]:
    """Mount the file system in C for a while, with the read-ahead that keepfs sets."""
    mountpoint.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen([program, mountpoint, str(files), str(size), str(names)])
    try:
        wait_mounted(process, mountpoint)
        device = mountpoint.stat().st_dev
        bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        if os.access(bdi, os.W_OK):
            bdi.write_text("1024")
        yield mountpoint
    finally:
        process.terminate()
        process.wait()


def wait_mounted(process: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """Wait until a process has mounted something.

    Raises:
        RuntimeError: It ended, or had a minute and didn't.
    """
    deadline = time.monotonic() + 60
    while not os.path.ismount(mountpoint):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nothing is mounted on {mountpoint}")
        time.sleep(0.005)


def file_in_memory(directory: Path, data: bytes | bytearray | memoryview) -> tuple[str, Path]:
    """Write a file into tmpfs; return its digest and where it is."""
    digest = md5(data)
    path = directory / digest
    path.write_bytes(data)
    return digest, path
