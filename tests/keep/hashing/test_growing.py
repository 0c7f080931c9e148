"""Growing digests: whichever kind, it is the MD5 that hashlib computes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs.keep.hashing import growing
from keepfs.keep.hashing.growing import (
    LARGE,
    DigestInCaller,
    DigestInThread,
    block_digest,
    md5_of,
)
from keepfs.keep.locator import KeepLocator
from tests.soak import hashing as soak

if TYPE_CHECKING:
    from collections.abc import Callable

    from keepfs.keep.hashing.growing import GrowingDigest

ROOT = Path(__file__).parent.parent.parent.parent
NEW = "keepfs.keep.hashing.growing.shared_digest()"


def random_source(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same in each run, not a secret


#: Round the ends of blocks of 64 bytes, and of the parts that threads hash at a time.
SIZES = sorted(
    {
        *range(200),
        *(64 * n + d for n in (4, 16, 256, 1024, 2048, 2049) for d in (-9, -8, -1, 0, 1, 55, 56)),
        *random_source(16).sample(range(300_000), 20),
    }
)

needs_extension = pytest.mark.skipif(
    growing.shared_digest is None, reason="the C extension wasn't built"
)


def md5(content: bytes | bytearray | memoryview) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def shared() -> GrowingDigest:
    assert growing.shared_digest is not None
    return growing.shared_digest()


@pytest.fixture(
    params=[DigestInCaller, DigestInThread, pytest.param(shared, marks=needs_extension)],
    ids=["caller", "thread", "shared"],
)
def new(request: pytest.FixtureRequest) -> Callable[[], GrowingDigest]:
    made: Callable[[], GrowingDigest] = request.param
    return made


def run(code: str) -> None:
    """Run code in a process of its own, which must exit with 0."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


def test_the_extension_was_built_where_a_compiler_is() -> None:
    compiler = str(sysconfig.get_config_var("CC") or "cc").split()[0]
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if shutil.which(compiler) is None or not header.exists():
        pytest.skip("there is no compiler, or no Python.h")

    assert growing.shared_digest is not None, "run scripts/setup"


def test_every_length_has_the_digest_of_hashlib(new: Callable[[], GrowingDigest]) -> None:
    content = random_source(1).randbytes(max(SIZES))

    wrong = []
    for size in SIZES:
        with contextlib.closing(new()) as digest:
            digest.extend(memoryview(content)[:size])
            if digest.hexdigest() != md5(content[:size]):
                wrong.append(size)

    assert wrong == []


def test_every_length_is_padded_with_zeros(new: Callable[[], GrowingDigest]) -> None:
    content = random_source(2).randbytes(200)

    wrong = []
    for size in (0, 1, 55, 56, 63, 64, 65, 127, 128, 200):
        for padded in (*range(size, 260), 4096, 4097, 70_000, 200_001):
            with contextlib.closing(new()) as digest:
                digest.extend(content[:size])
                if digest.hexdigest(padded) != md5(content[:size] + bytes(padded - size)):
                    wrong.append((size, padded))

    assert wrong == []


def test_bytes_come_in_any_pieces_and_move(new: Callable[[], GrowingDigest]) -> None:
    chance = random_source(3)
    content = chance.randbytes(3 * 2**20)

    with contextlib.closing(new()) as digest:
        got = 0
        while got < len(content):
            got = min(len(content), got + chance.choice((1, 63, 64, 1000, 65536, 300_000)))
            digest.extend(bytearray(content)[:got] if chance.random() < 0.5 else content[:got])

        assert digest.hexdigest() == md5(content)


@needs_extension
def test_a_digest_can_be_asked_for_in_between() -> None:
    content = random_source(4).randbytes(400_000)
    digest = shared()

    found = []
    for size in (0, 10, 64, 100_000, 400_000):
        digest.extend(content[:size])
        found.append(digest.hexdigest() == md5(content[:size]))

    assert found == [True] * 5


@needs_extension
@pytest.mark.parametrize("seed", range(3))
def test_many_digests_in_several_threads_do_not_mix(seed: int) -> None:
    assert soak.run(shared, 0.7, seed) > 0


@needs_extension
def test_whole_blocks_side_by_side() -> None:
    blocks = [random_source(n).randbytes(2**20) * 8 for n in range(5)]
    found = [""] * len(blocks)

    def one(number: int) -> None:
        found[number] = md5_of(blocks[number])

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(blocks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [md5(block) for block in blocks]


@needs_extension
def test_digests_that_get_no_more_bytes_or_are_closed_do_not_delay_others() -> None:
    content = random_source(5).randbytes(2**20) * 8
    hanging = [shared() for _ in range(4)]
    for number, digest in enumerate(hanging):
        digest.extend(content[: 100 + 20_000 * number])  # and then their services are silent
    given_up = [shared() for _ in range(4)]
    for digest in given_up:
        digest.extend(content)
    with contextlib.closing(shared()) as wanted:
        wanted.extend(content)
        for digest in given_up:
            digest.close()

        assert wanted.hexdigest() == md5(content)
    assert [digest.hexdigest() for digest in hanging] == [
        md5(content[: 100 + 20_000 * number]) for number in range(4)
    ]


@needs_extension
def test_memory_is_released_by_close_and_with_the_digest() -> None:
    closed, dropped, moved = (bytearray(2**20) for _ in range(3))
    digest, other = shared(), shared()
    digest.extend(closed)
    other.extend(moved)
    other.extend(dropped)
    with pytest.raises(BufferError):
        closed.append(0)

    digest.close()
    other.hexdigest()
    moved.append(0)
    del other

    closed.append(0)
    dropped.append(0)


@needs_extension
def test_what_can_not_be_hashed_is_refused() -> None:
    digest = shared()
    digest.extend(b"four")

    with pytest.raises(ValueError, match="there are fewer bytes than before"):
        digest.extend(b"two")
    with pytest.raises(TypeError):
        digest.extend("text")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        digest.extend(memoryview(b"every second")[::2])
    with pytest.raises(TypeError):
        digest.hexdigest("size")  # type: ignore[arg-type]
    assert digest.hexdigest() == md5(b"four")

    digest.close()
    digest.close()
    with pytest.raises(ValueError, match="the digest is closed"):
        digest.extend(b"four and more")
    with pytest.raises(ValueError, match="the digest is closed"):
        digest.hexdigest()
    with pytest.raises(TypeError):
        type(digest)(1)  # type: ignore[call-arg]


@needs_extension
def test_a_digest_closed_while_another_thread_waits_for_it_fails_there() -> None:
    content = bytes(64 * 2**20)
    failures: list[str] = []

    def ask(digest: GrowingDigest) -> None:
        try:
            digest.hexdigest()
        except ValueError as error:
            failures.append(str(error))

    refused = ""
    for _ in range(50):  # until the thread asks before everything is hashed
        digest = shared()
        digest.extend(content)
        thread = threading.Thread(target=ask, args=(digest,))
        thread.start()
        while thread.is_alive() and not refused:
            try:
                digest.extend(content)
            except ValueError as error:
                refused = str(error)
        digest.close()
        thread.join()
        if failures:
            break

    assert refused == "the digest is being computed"
    assert failures == ["the digest is closed"]


@needs_extension
@pytest.mark.slow
def test_a_forked_child_hashes_on() -> None:
    run(f"""
import hashlib, os, keepfs.keep.hashing.growing
content = bytes(range(256)) * 2**17
digests = [{NEW} for _ in range(4)]
for digest in digests:
    digest.extend(content)
child = os.fork()
expected = hashlib.md5(content).hexdigest()
right = [digest.hexdigest() for digest in digests] == [expected] * 4
new = {NEW}
new.extend(content[:-1])
right = right and new.hexdigest() == hashlib.md5(content[:-1]).hexdigest()
if not child:
    os._exit(0 if right else 1)
assert right and os.waitpid(child, 0)[1] == 0
""")


@needs_extension
@pytest.mark.slow
def test_a_process_ends_while_its_threads_hash() -> None:
    run(f"""
import keepfs.keep.hashing.growing
digests = [{NEW} for _ in range(4)]
for digest in digests:
    digest.extend(bytes(2**26))
""")


@needs_extension
@pytest.mark.slow
def test_where_no_thread_can_be_started_the_caller_hashes() -> None:
    run(f"""
import hashlib, pathlib, resource, keepfs.keep.hashing.growing
content = bytes(range(256)) * 2**15
digests = [{NEW} for _ in range(4)]
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, -1))
for digest in digests:
    digest.extend(content)
found = [digest.hexdigest() for digest in digests]
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert len(list(pathlib.Path("/proc/self/task").iterdir())) == 1
assert found == [hashlib.md5(content).hexdigest()] * 4
""")


@pytest.mark.slow
def test_without_the_extension_hashlib_is_used() -> None:
    run("""
import hashlib, sys
sys.modules["keepfs.keep.hashing._md5"] = None
from keepfs.keep.hashing import growing
assert growing.shared_digest is None
block = bytes(range(256)) * 2**15
digest = growing.block_digest(len(block))
assert type(digest) is growing.DigestInThread
digest.extend(block)
assert digest.hexdigest() == growing.md5_of(block) == hashlib.md5(block).hexdigest()
""")


def test_a_small_block_is_hashed_in_the_callers_thread() -> None:
    assert type(block_digest(LARGE - 1)) is DigestInCaller
    assert type(block_digest(LARGE)) is not DigestInCaller


@pytest.mark.parametrize("size", [0, 3, LARGE - 1, LARGE, LARGE + 1])
def test_a_locator_has_the_digest_of_its_block(size: int) -> None:
    block = os.urandom(1000) * (size // 1000 + 1)

    locator = KeepLocator.of_block(memoryview(block)[:size])

    assert str(locator) == f"{md5(block[:size])}+{size}"
