"""Many writes at random with services that pause, hold, stall, reset and refuse at random."""

from __future__ import annotations

import functools
import gc
import itertools
import random
import threading
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import KeepLocator, KeepWriteError
from keepfs.keep.http.timeouts import Timeouts
from keepfs.keep.services.writers import KeepWriterThread
from tests.fakes.threads import Running
from tests.keep.clusters import Cluster, noting, root
from tests.keep.services.test_write_hedge import Parts, client_of, store_of
from tests.keepstore import Fault, Listening, Stage
from tests.keepstore.certificates import Authority

if TYPE_CHECKING:
    import weakref
    from pathlib import Path

    from keepfs.keep.services.service import KeepService

WRITERS, PUTS = 6, 40
STAGES = list(Stage)
SIZES = (10, 10, 3000, 16_000, 20_000, 300_000, 2_000_000)


def some_fault(chance: random.Random) -> Fault:
    """Make a fault, or none."""
    stage = chance.choice(STAGES)
    return chance.choice(
        [
            Fault(),
            Fault(pause={stage: chance.choice([0.02, 0.1, 0.3])}),
            Fault(hold=stage),
            Fault(close=stage, reset=chance.random() < 0.5),
            Fault(status=chance.choice([500, 503, 507, 403])),
            Fault(send_rate=chance.choice([500.0, 5000.0])),
            Fault(receive_rate=chance.choice([1e6, 1e7])),
            Fault(body=b"nonsense"),
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("is_encrypted", [False, True], ids=["http", "https"])
def test_a_receipt_names_services_that_have_the_block_and_nothing_is_left(
    tmp_path: Path,
    is_encrypted: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    made: list[weakref.ref[KeepService]] = []

    class Mine(Parts):
        KeepService = noting(made)

    authority = Authority(tmp_path)
    listening = Listening(tls=authority.certify() if is_encrypted else None)
    with Cluster(4, listening=lambda: listening) as cluster:
        cluster.api.insecure = True
        stores = {root(each): each for each in cluster.stores}
        store = store_of(cluster, Mine())
        store.silence = 0.05
        store.timeout = Timeouts(2, 3, 1)
        with client_of(store) as client:
            client.put_block(b"before", 4, num_retries=0)

            def write(writer: int) -> int:
                chance = random.Random(writer)  # noqa: S311 - no secrets
                stored = 0
                for number in range(PUTS):
                    block = bytearray(b"%d %d " % (writer, number)) + bytes(chance.choice(SIZES))
                    name, copies = KeepLocator.of_block(block), chance.choice([1, 2, 2, 3])
                    try:
                        receipt = client.put_block(
                            block, copies, num_retries=chance.choice([0, 2])
                        )
                    except KeepWriteError:
                        continue
                    finally:  # a thread that still sent it would send other bytes
                        block[:] = b"\1" * len(block)
                    assert receipt.copies >= copies
                    assert len(set(receipt.services)) >= copies
                    for each in receipt.services:
                        found = stores[each].content(name.md5sum)
                        assert found is not None
                        assert KeepLocator.of_block(found).md5sum == name.md5sum
                    stored += 1
                return stored

            chance = random.Random(0)  # noqa: S311 - likewise
            gc.disable()
            try:
                writers = [Running(functools.partial(write, number)) for number in range(WRITERS)]
                wait = threading.Event()
                while not all(each.is_over() for each in writers):
                    faulty = chance.choice(cluster.stores)
                    faulty.heal()
                    if chance.random() < 0.1:
                        faulty.cut_connections()
                    faulty.always(some_fault(chance), method="PUT")
                    wait.wait(chance.choice([0.01, 0.05]))
                for each in cluster.stores:
                    each.heal()
                stored = sum(each.result() for each in writers)
                threads = [it for it in threading.enumerate() if isinstance(it, KeepWriterThread)]
                kept = sum(ref() is not None for ref in made)
            finally:
                gc.enable()

            entries = itertools.chain.from_iterable(each.log("PUT") for each in cluster.stores)
            assert 400 not in {entry.status for entry in entries}  # the answer to other bytes
            assert stored > WRITERS * PUTS / 2
            assert (threads, kept) == ([], 0)
