"""Lookups and reads over services that fail for a while, or hang."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.keepstore import TEST_TOKEN, Fault, KeepstoreControls, Stage
from tests.mounted.mounts import PATIENCE, KeepfsMount, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

HUNG = Fault(hold=Stage.BEFORE_STATUS)


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    """One keepstore."""
    with KeepstoreControls() as it:
        yield it
        it.heal()


@pytest.fixture
def over(unmounted: KeepfsMount, store: KeepstoreControls) -> Iterator[KeepfsMount]:
    """A mount over it, not made yet."""
    unmounted.is_local = False
    unmounted.env = {"ARVADOS_KEEP_SERVICES": store.url, "ARVADOS_API_TOKEN": TEST_TOKEN}
    unmounted.options = ("--copies", "1", "--request-timeout", "60")
    yield unmounted
    store.heal()
    unmounted.clean_up()


def stat_errno(path: Path) -> int:
    """Return the errno that stat fails with; 0 if it doesn't."""
    try:
        path.stat()
    except OSError as error:
        return error.errno or 0
    return 0


# --- what may be over in a moment ---


@pytest.mark.parametrize("status", [503, 429, 500])
def test_a_service_that_fails_once_fails_no_cold_read(
    over: KeepfsMount, store: KeepstoreControls, status: int
) -> None:
    locators = [store.store_block(b"cold %d" % number) for number in range(3)]
    for locator in locators:
        store.script(Fault(status=status), method="GET", target=locator[:32])
    over.mount()

    read = [(over.by_id / locator).read_bytes() for locator in locators]

    assert read == [b"cold 0", b"cold 1", b"cold 2"]


def test_a_service_that_restarts_fails_no_cold_read(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    locator = store.store_block(b"later")
    over.mount()
    store.go_down()
    client = subprocess.Popen(["cat", over.by_id / locator], stdout=subprocess.PIPE)
    wait_until(lambda: "trusts the name" in over.log_file.read_text())

    store.come_back()

    assert client.communicate(timeout=PATIENCE)[0] == b"later"
    assert client.returncode == 0


def test_a_permanent_failure_fails_a_lookup(over: KeepfsMount, store: KeepstoreControls) -> None:
    present, missing = store.store_block(b"there"), store.sign("0" * 32 + "+5")
    bare = present.partition("+A")[0]
    forged = f"{bare}+A{'0' * 40}@{present[-8:]}"
    over.mount()

    for name, number in ((missing, errno.ENOENT), (forged, errno.EACCES), (bare, errno.EACCES)):
        # On a busy machine an answer may miss the wait; the name is trusted for seconds then.
        wait_until(lambda it=name, wanted=number: stat_errno(over.by_id / it) == wanted)
    assert stat_errno(over.by_id / present) == 0


def test_a_trusted_name_is_looked_up_again_after_seconds(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    missing, present = store.sign("0" * 32 + "+5"), store.store_block(b"there")
    store.always(HUNG, method="GET")
    over.options = (*over.options, "--lookup-wait", "0.2")
    over.mount()
    assert (over.by_id / missing).stat().st_size == 5
    assert (over.by_id / present).stat().st_size == 5

    store.heal()

    wait_until(lambda: stat_errno(over.by_id / missing) == errno.ENOENT)
    assert (over.by_id / present).stat().st_size == 5
    assert missing not in os.listdir(over.by_id)


# --- hung services ---


def test_a_name_without_size_does_not_delay_others_and_is_found_later(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    digest, _, signature = store.store_block(b"sized").split("+")
    other = store.store_block(b"other")
    hung = over.by_id / f"{digest}+{signature}"
    over.options = (*over.options, "--lookup-wait", "0.5")
    over.mount()
    store.always(HUNG, method="HEAD")

    assert stat_errno(hung) == errno.ETIMEDOUT
    assert (over.by_id / other).read_bytes() == b"other"
    assert stat_errno(hung) == errno.ETIMEDOUT
    store.wait_held(1)
    assert store.under_way("HEAD") == 1  # the second lookup joined the first one's question
    store.heal()

    wait_until(lambda: stat_errno(hung) == 0)
    assert hung.stat().st_size == 5
    assert hung.read_bytes() == b"sized"


def test_a_read_ends_at_its_deadline_and_not_at_twice_that(
    over: KeepfsMount, store: KeepstoreControls
) -> None:
    """The kernel asks again at once for what it couldn't read ahead."""
    deadline = 3
    locators = [store.store_block(os.urandom(size)) for size in (100, 3_000_000)]
    over.options = ("--copies", "1", "--request-timeout", str(deadline))
    over.options = (*over.options, "--lookup", "trust")
    over.mount()
    store.always(HUNG, method="GET")
    for locator in locators:
        begun = time.monotonic()

        done = subprocess.run(["cat", over.by_id / locator], capture_output=True, check=False)

        assert b"timed out" in done.stderr
        assert time.monotonic() - begun < 2 * deadline
    late = [line for line in over.logged() if "read of by_id/" in line and "ETIMEDOUT" in line]
    assert all(f"after {deadline}." in line for line in late)
    assert late

    store.heal()
    for locator in locators:  # nothing of it stays
        wait_until(lambda it=locator: read_size(over.by_id / it) > 0)


def read_size(path: Path) -> int:
    """Return how many bytes can be read; 0 if none."""
    try:
        return len(path.read_bytes())
    except OSError:
        return 0


@pytest.mark.parametrize("times", [1, 300_000], ids=["small", "large"])
def test_hung_reads_delay_neither_other_services_nor_statfs(
    over: KeepfsMount, store: KeepstoreControls, times: int
) -> None:
    """More of them than there are threads for reads."""
    with KeepstoreControls() as other:
        hung = [store.store_block(b"hung %d" % number * times) for number in range(40)]
        healthy = [other.store_block(b"healthy %d" % number * times) for number in range(3)]
        over.options = (*over.options, "--lookup", "trust")
        over.env["ARVADOS_KEEP_SERVICES"] = f"{store.url} {other.url}"
        over.mount()
        connection = Path(f"/sys/fs/fuse/connections/{os.minor(os.stat(over.path).st_dev)}")
        if times > 1 and not os.access(connection / "max_background", os.W_OK):
            pytest.skip("the kernel's limit of 12 reads ahead can't be raised here")
        for locator in hung:
            store.always(HUNG, method="GET", target=locator[:32])
        readers = [
            threading.Thread(target=read_size, args=[over.by_id / locator]) for locator in hung
        ]
        for reader in readers:
            reader.start()
        store.wait_begun(10, "GET")

        assert [(over.by_id / it).read_bytes() for it in healthy] == [
            b"healthy %d" % number * times for number in range(3)
        ]
        assert os.statvfs(over.path).f_blocks > 0

        store.clear_faults()
        while any(reader.is_alive() for reader in readers):
            store.release()
            readers[-1].join(0.05)
            for reader in readers:
                reader.join(0.001)
