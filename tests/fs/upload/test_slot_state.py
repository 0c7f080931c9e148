"""The states of a slot: what may happen in each, and what a slot in it says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from keepfs.fs.bridge import open_blocks
from keepfs.fs.upload.slot import Slot
from keepfs.fs.upload.slot_state import SlotEvent, SlotState, slot_state_after
from keepfs.fs.upload.staging import Staging
from keepfs.keep import Cause, KeepWriteError
from tests.fakes.store import DictStore, FailingStore, GatedStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

BLOCK = 16
DOWN = KeepWriteError("no service takes it", cause=Cause.UNREACHABLE)

#: A row for each state, a column for each event: the next state, or - where it is refused.
TABLE = """
state                CHANGE          RESIZE               NAME   NAME_SHORT FETCH  SEND         SENT    FAIL    DROP
HOLE                 STAGED          HOLE                 STORED SHORT      -      SENDING_HOLE -       -       DROPPED
SHORT                STAGED          SHORT                STORED SHORT      STAGED -            -       -       DROPPED
STORED               STAGED          SHORT                STORED SHORT      -      -            -       -       DROPPED
STAGED               STAGED          STAGED               -      -          -      SENDING      -       -       DROPPED
DROPPED              DROPPED         DROPPED              -      -          -      -            -       -       DROPPED
SENDING_HOLE         SENDING_CHANGED SENDING_HOLE_RESIZED -      -          -      -            STORED  HOLE    SENDING_DROPPED
SENDING_HOLE_RESIZED SENDING_CHANGED SENDING_HOLE_RESIZED -      -          -      -            HOLE    HOLE    SENDING_DROPPED
SENDING              SENDING_CHANGED SENDING_RESIZED      -      -          -      -            STORED  STAGED  SENDING_DROPPED
SENDING_RESIZED      SENDING_CHANGED SENDING_RESIZED      -      -          -      -            STAGED  STAGED  SENDING_DROPPED
SENDING_CHANGED      SENDING_CHANGED SENDING_CHANGED      -      -          -      -            STAGED  STAGED  SENDING_DROPPED
SENDING_DROPPED      SENDING_DROPPED SENDING_DROPPED      -      -          -      -            DROPPED DROPPED SENDING_DROPPED
"""  # noqa: E501 - one line a row
_HEAD, *_ROWS = [line.split() for line in TABLE.strip().splitlines()]
NEXT = {
    (row[0], event): after
    for row in _ROWS
    for event, after in zip(_HEAD[1:], row[1:], strict=True)
}


@pytest.mark.parametrize("event", SlotEvent, ids=lambda each: each.name)
@pytest.mark.parametrize("state", SlotState, ids=lambda each: each.name)
def test_each_event_in_each_state_leads_to_one_state_or_is_refused(
    state: SlotState, event: SlotEvent
) -> None:
    after = NEXT[state.name, event.name]

    if after == "-":
        with pytest.raises(RuntimeError, match=rf"{state.name} refuses .* {event.name}$"):
            slot_state_after(state, event)
    else:
        assert slot_state_after(state, event).name == after


class Bench:
    """Slots over a store that is shut, or down, as the story wants it."""

    def __init__(self, staging: Staging, gate: GatedStore, failing: FailingStore) -> None:
        self.staging, self.gate, self.failing = staging, gate, failing

    async def staged(self) -> Slot:
        slot = Slot(self.staging, 0)
        await slot.write(0, memoryview(b"bytes"))
        return slot

    async def stored(self) -> Slot:
        slot = await self.staged()
        await slot.store()
        return slot

    async def sending(self) -> Slot:
        slot = await self.staged()
        self.begin(slot)
        return slot

    async def sending_hole(self) -> Slot:
        slot = Slot(self.staging, 5)
        self.begin(slot)
        return slot

    def begin(self, slot: Slot) -> None:
        """Begin to store a slot; the store doesn't end before the gate is opened."""
        self.gate.shut("put_block")
        slot.start_storing()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    failing = FailingStore(DictStore())
    gate = GatedStore(failing)
    async with open_blocks(gate, copies=2) as blocks:
        yield Bench(Staging(blocks, block_size=BLOCK), gate, failing)
        gate.open("put_block")


async def _hole(bench: Bench) -> Slot:
    return Slot(bench.staging, 5)


async def _short(bench: Bench) -> Slot:
    slot = await bench.stored()
    slot.extend(9)
    return slot


async def _dropped(bench: Bench) -> Slot:
    slot = await bench.staged()
    slot.drop()
    return slot


async def _hole_resized(bench: Bench) -> Slot:
    slot = await bench.sending_hole()
    await slot.cut(3)
    return slot


async def _resized(bench: Bench) -> Slot:
    slot = await bench.sending()
    slot.extend(9)
    return slot


async def _changed(bench: Bench) -> Slot:
    slot = await bench.sending()
    await slot.write(0, memoryview(b"other"))
    return slot


async def _hole_changed(bench: Bench) -> Slot:
    slot = await bench.sending_hole()
    await slot.write(0, memoryview(b"other"))
    return slot


async def _sending_dropped(bench: Bench) -> Slot:
    slot = await bench.sending()
    slot.drop()
    return slot


#: How a slot gets there; its state; the block's worth of memory counted; its state when the
#: store under way has ended well, and badly.
STORIES = [
    (_hole, "HOLE", 0, "HOLE", "HOLE"),
    (_short, "SHORT", 0, "SHORT", "SHORT"),
    (Bench.stored, "STORED", 0, "STORED", "STORED"),
    (Bench.staged, "STAGED", 1, "STAGED", "STAGED"),
    (_dropped, "DROPPED", 0, "DROPPED", "DROPPED"),
    (Bench.sending_hole, "SENDING_HOLE", 0, "STORED", "HOLE"),
    (_hole_resized, "SENDING_HOLE_RESIZED", 0, "HOLE", "HOLE"),
    (Bench.sending, "SENDING", 1, "STORED", "STAGED"),
    (_resized, "SENDING_RESIZED", 1, "STAGED", "STAGED"),
    (_changed, "SENDING_CHANGED", 2, "STAGED", "STAGED"),
    (_hole_changed, "SENDING_CHANGED", 1, "STAGED", "STAGED"),
    (_sending_dropped, "SENDING_DROPPED", 1, "DROPPED", "DROPPED"),
]


@pytest.mark.parametrize("is_down", [False, True], ids=["up", "down"])
@pytest.mark.parametrize(
    ("make", "state", "memory", "well", "badly"),
    STORIES,
    ids=[f"{state}-{number}" for number, (_, state, *_rest) in enumerate(STORIES)],
)
async def test_a_slot_changes_its_state_and_accounts_for_its_memory(
    bench: Bench,
    make: Callable[[Bench], Awaitable[Slot]],
    state: str,
    memory: int,
    well: str,
    badly: str,
    *,
    is_down: bool,
) -> None:
    slot = await make(bench)
    assert repr(slot).startswith(f"<Slot {state}, {slot.length} bytes, ")
    assert bench.staging.currsize == memory * BLOCK
    assert slot.is_storing == state.startswith("SENDING")
    assert slot.is_stored == (state == "STORED")
    assert slot.is_hole == ("HOLE" in state)

    if is_down:
        bench.failing.fail_always("put_block", DOWN)
    bench.gate.open("put_block")
    while slot.is_storing:
        await trio.testing.wait_all_tasks_blocked(0.001)

    after = badly if is_down else well
    assert repr(slot).startswith(f"<Slot {after}, ")
    assert bench.staging.currsize == (BLOCK if after == "STAGED" else 0)


async def test_the_sequences_of_events_reach_every_state() -> None:
    assert {state for _, state, *_ in STORIES} == {each.name for each in SlotState}


async def test_a_change_of_a_slot_dropped_meanwhile_takes_no_memory(
    bench: Bench,
) -> None:
    other = Slot(bench.staging, 0)
    await other.write(0, memoryview(bytes(BLOCK)))
    bench.staging.maxsize = BLOCK
    slot = Slot(bench.staging, 5)
    bench.gate.shut("put_block")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slot.write, 0, memoryview(b"late"))
        await trio.testing.wait_all_tasks_blocked()
        slot.drop()
        bench.gate.open("put_block")

    assert other.is_stored
    assert repr(slot).startswith("<Slot DROPPED, ")
    assert bench.staging.currsize == 0
    assert await slot.store() is None


async def test_a_dropped_slot_is_not_sent(bench: Bench) -> None:
    slot = Slot(bench.staging, 5)
    slot.drop()

    assert slot.start_storing() is None
    await slot.cut(3)
    slot.extend(7)
    assert await slot.store() is None
    assert repr(slot).startswith("<Slot DROPPED, 7 bytes, ")
