"""Memory of blocks: newly allocated, or reused."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from keepfs.keep import buffers
from keepfs.keep.buffers import BufferPool, FreshAllocation


def test_fresh_memory_becomes_bytes_without_a_copy() -> None:
    memory = FreshAllocation(100)
    memory.view[:3] = b"foo"

    block = memory.first(3)

    assert block == b"foo"
    assert type(block) is bytes


@pytest.mark.parametrize("libc_has_it", [True, False])
def test_large_fresh_memory_becomes_bytes_as_well(
    monkeypatch: pytest.MonkeyPatch, *, libc_has_it: bool
) -> None:
    if not libc_has_it:
        monkeypatch.setattr(buffers, "_madvise", None)
    size = 33 * 2**20 + 17
    memory = FreshAllocation(size)
    assert not any(memory.view)
    memory.view[:3], memory.view[-3:] = b"foo", b"bar"

    block = memory.first(size)

    assert (block[:3], block[-3:], len(block)) == (b"foo", b"bar", size)


#: Prints how many pages a block's memory takes to be made. In a process of its own:
#: one that has run for long may have the memory already.
_FAULTS = """
import resource
from keepfs.keep.buffers import FreshAllocation
from keepfs.keep.locator import MAX_BLOCK_SIZE

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

memory = FreshAllocation(MAX_BLOCK_SIZE)
before = faults()
for at in range(0, MAX_BLOCK_SIZE, 4096):
    memory.view[at] = 1
print(faults() - before)
"""


def test_a_whole_block_gets_huge_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("the kernel gives no huge pages to who asks for them")

    done = subprocess.run([sys.executable, "-c", _FAULTS], stdout=subprocess.PIPE, check=True)

    assert int(done.stdout) < 8192  # of 16,384 small ones; a few huge pages may be missing


def test_no_memory_for_a_buffer_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="no memory for a block"):
        BufferPool(size=2**46).lend(2**46)


def test_a_buffer_returns_to_the_pool_when_its_last_view_is_gone() -> None:
    pool = BufferPool(size=4096)
    memory = pool.allocate(4096)
    memory.view[:3] = b"foo"
    part = memoryview(memory.first(4096))[1:3]

    del memory
    assert pool.idle() == 0
    assert bytes(part) == b"oo"
    del part

    assert pool.idle() == 1


def test_a_returned_buffer_is_reused() -> None:
    pool = BufferPool(size=4096)
    view = pool.lend(4096)
    view[:3] = b"foo"
    del view

    again = pool.lend(4096)

    assert bytes(again[:3]) == b"foo"  # nobody clears it
    assert pool.idle() == 0


def test_two_users_get_two_buffers() -> None:
    pool = BufferPool(size=4096)
    one, other = pool.lend(4096), pool.lend(4096)

    one[:] = b"1" * 4096
    other[:] = b"2" * 4096

    assert bytes(one) == b"1" * 4096


def test_the_number_of_idle_buffers_is_limited() -> None:
    pool = BufferPool(size=4096, most_idle=2)
    lent = [pool.lend(4096) for _ in range(5)]

    lent.clear()

    assert pool.idle() == 2


def test_a_smaller_block_gets_separate_memory() -> None:
    pool = BufferPool(size=4096)

    view = pool.lend(4095)
    assert len(view) == 4095
    del view

    assert pool.idle() == 0


def test_a_buffer_in_a_reference_cycle_returns_when_the_cycle_is_collected() -> None:
    pool = BufferPool(size=4096)
    cycle: list[object] = [pool.lend(4096)]
    cycle.append(cycle)

    del cycle
    gc.collect()

    assert pool.idle() == 1
