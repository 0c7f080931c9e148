"""Silent and slow services: another is asked too, and no call waits for the first."""

from __future__ import annotations

import functools
import gc
import logging
import re
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from keepfs.keep import Cause, KeepBlockCache, KeepLocator, KeepReadError
from keepfs.keep.blocks import BlockClient
from keepfs.keep.buffers import FreshAllocation
from keepfs.keep.counters import Counters
from keepfs.keep.http.timeouts import Timeouts
from keepfs.keep.services.connect import connect
from keepfs.keep.services.discovery import Services, probe_order
from keepfs.keep.services.extras import Extras
from keepfs.keep.services.service import KeepService
from keepfs.keep.services.writers import KeepWriterThreadPool
from keepfs.keep.store import CallOptions, ReadObserver
from tests.fakes.threads import Running, wait_until
from tests.keep.clusters import AT_ONCE, Cluster, noting, root
from tests.keepstore import Fault, Stage, silent_port
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keepfs.keep.services.remote import RemoteStore

#: Seconds of silence after which the next service is asked, in these tests.
SILENCE = 0.25
#: A service that is silent is waited for longer than a test lasts.
PATIENT = Timeouts(2, 300, 1)
MIB = 1024 * 1024
LARGE = bytes(range(256)) * (32 * 1024)  # 8 MiB

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_thread_is_left")]


class Parts:
    """The classes that a store works with."""

    KeepService = KeepService
    KeepWriterThreadPool = KeepWriterThreadPool


def store_of(cluster: Cluster, proxy: str = "", timeouts: Timeouts = PATIENT) -> RemoteStore:
    """Make a store that soon asks another service; a client closes it."""
    store, *_ = connect(Parts(), Counters(), cluster.api, proxy, None, None)
    store.silence = SILENCE
    store.timeout = store.proxy_timeout = timeouts
    return store


def client_of(store: RemoteStore, cache: KeepBlockCache | None = None) -> BlockClient:
    """Make a client that doesn't wait between rounds."""
    client = BlockClient(store, cache)
    client.backoff = AT_ONCE
    return client


@pytest.fixture
def client(cluster: Cluster) -> Iterator[BlockClient]:
    """Make a client of them that soon asks another one."""
    with client_of(store_of(cluster)) as made:
        yield made


def read(client: BlockClient, locator: KeepLocator, retries: int = 0) -> bytes:
    """Read a block in a thread, so that a test ends that waits for ever."""
    return bytes(Running(lambda: client.get_block(locator, retries)).result())


HELD = [Fault(hold=Stage.BEFORE_STATUS), Fault(hold=Stage.BEFORE_BODY), Fault(hold=Stage.MID_BODY)]


@pytest.mark.parametrize("fault", HELD, ids=lambda fault: str(fault.hold))
def test_a_block_comes_from_the_next_service_if_the_first_is_silent(
    cluster: Cluster, client: BlockClient, fault: Fault
) -> None:
    locator = cluster.store(LARGE)
    first = cluster.by_probe_order(locator)[0]
    first.always(fault, method="GET")

    assert read(client, locator) == LARGE

    assert client.services_of(locator) != (root(first),)
    first.release()
    first.wait_ended(1, "GET")


def test_a_head_is_answered_by_the_next_service_if_the_first_is_silent(
    cluster: Cluster, client: BlockClient
) -> None:
    locator = cluster.store(b"foo")
    cluster.by_probe_order(locator)[0].always(Fault(hold=Stage.BEFORE_STATUS))

    assert Running(lambda: client.head_block(locator)).result() == 3


def test_the_first_success_wins_even_if_it_is_that_of_the_silent_service(
    cluster: Cluster, client: BlockClient
) -> None:
    locator = cluster.store(b"foo")
    first, second, _ = cluster.by_probe_order(locator)
    first.always(Fault(hold=Stage.BEFORE_STATUS))
    second.always(Fault(hold=Stage.BEFORE_STATUS))
    reading = Running(lambda: client.get_block(locator))
    first.wait_held(1)
    second.wait_held(1)
    cluster.stores[0].clear_faults()

    first.release()

    assert bytes(reading.result()) == b"foo"


def test_a_service_that_fails_is_followed_by_the_next_while_the_first_is_silent(
    cluster: Cluster, client: BlockClient
) -> None:
    locator = cluster.store(b"foo")
    first, second, third = cluster.by_probe_order(locator)
    first.always(Fault(hold=Stage.BEFORE_STATUS))
    second.always(Fault(status=404))

    assert read(client, locator) == b"foo"

    assert client.services_of(locator) == (root(third),)


def test_a_bad_copy_does_not_win(cluster: Cluster, client: BlockClient) -> None:
    locator = cluster.store(b"foo")
    first, second, third = cluster.by_probe_order(locator)
    first.always(Fault(hold=Stage.BEFORE_STATUS))
    second.always(Fault(body=b"bar"))

    assert read(client, locator) == b"foo"

    assert client.services_of(locator) == (root(third),)


def test_a_service_displaced_by_a_bad_copy_is_asked_again(
    cluster: Cluster, client: BlockClient
) -> None:
    locator = cluster.store(LARGE)
    first, second, third = cluster.by_probe_order(locator)
    first.script(Fault(hold=Stage.MID_BODY), method="GET")
    second.always(Fault(body=bytes(len(LARGE))), method="GET")
    third.always(Fault(status=404), method="GET")

    assert read(client, locator) == LARGE

    assert first.counts()["GET"] == 2


def test_the_error_has_the_answer_of_each_service_if_none_succeeds(cluster: Cluster) -> None:
    locator = cluster.store(b"foo")
    first, second, third = cluster.by_probe_order(locator)
    first.always(Fault(hold=Stage.BEFORE_STATUS))
    second.always(Fault(status=503))
    third.always(Fault(status=404))

    with client_of(store_of(cluster, timeouts=Timeouts(2, 1, 1))) as client:
        failure = Running(lambda: client.get_block(locator)).failure()

    assert isinstance(failure, KeepReadError)
    assert failure.cause is Cause.TIMED_OUT
    said = {name: str(error) for name, error in failure.request_errors().items()}
    assert set(said) == {root(first), root(second), root(third)}
    assert re.search(r"bytes in \d+[.]\d seconds", said[root(first)])
    assert "503" in said[root(second)]


def test_at_most_three_services_are_asked_concurrently() -> None:
    with Cluster(5) as cluster, client_of(store_of(cluster)) as client:
        locator = cluster.store(b"foo")
        ranked = cluster.by_probe_order(locator)
        for each in ranked[:4]:
            each.always(Fault(hold=Stage.BEFORE_STATUS))
        reading = Running(lambda: client.get_block(locator))
        for each in ranked[:3]:
            each.wait_held(1)
        ranked[1].clear_faults()
        ranked[1].always(Fault(status=503))
        asked = [each.counts() for each in ranked[3:]]

        ranked[0].always(Fault(status=503))
        ranked[1].release()

        assert bytes(reading.result()) == b"foo"
    assert asked == [{}, {}]


def test_the_connection_of_a_service_that_lost_is_not_used_again(
    cluster: Cluster, client: BlockClient
) -> None:
    locator = cluster.store(b"foo")
    first, second, _ = cluster.by_probe_order(locator)
    first.script(Fault(), Fault(hold=Stage.BEFORE_STATUS), method="HEAD")
    assert client.head_block(locator) == 3  # on the connection that is used again
    assert Running(lambda: client.head_block(locator)).result() == 3

    second.always(Fault(status=404))
    only = KeepLocator(first.store_block(b"only there"))
    assert read(client, only) == b"only there"

    connections = [entry.connection for entry in first.log()]
    assert connections[0] == connections[1] != connections[2]


def test_a_service_that_was_silent_is_asked_last_for_a_while(
    cluster: Cluster, client: BlockClient
) -> None:
    locator = cluster.store(b"foo")
    first, second, _ = cluster.by_probe_order(locator)
    first.always(Fault(hold=Stage.BEFORE_STATUS))
    assert read(client, locator) == b"foo"
    client.block_cache.clear()

    assert read(client, locator) == b"foo"

    assert (first.counts()["GET"], second.counts()["GET"]) == (1, 2)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(hold=Stage.MID_BODY),
        Fault(pause={Stage.MID_BODY: 2 * SILENCE}),
        Fault(pause={Stage.BEFORE_STATUS: 2 * SILENCE}, send_rate=64e6),
    ],
    ids=["stalled", "pausing", "late"],
)
def test_a_block_takes_the_memory_of_one_however_many_services_send_it(
    cluster: Cluster, fault: Fault
) -> None:
    made: list[weakref.ref[FreshAllocation]] = []
    alive: list[int] = []

    def allocate(size: int) -> FreshAllocation:
        alive.append(sum(each() is not None for each in made))
        memory = FreshAllocation(size)
        made.append(weakref.ref(memory))
        return memory

    locator = cluster.store(LARGE)
    for each in cluster.by_probe_order(locator)[:2]:
        each.always(fault, method="GET")
    with client_of(store_of(cluster), KeepBlockCache(allocate=allocate)) as client:
        gc.disable()  # nothing may depend on it
        try:
            assert read(client, locator) == LARGE
        finally:
            gc.enable()

    assert set(alive) == {0}
    assert client.block_cache.statistics().in_flight == 0


@pytest.mark.parametrize("size", [4096, 4 * MIB], ids=["small", "large"])
@pytest.mark.parametrize("fault", HELD, ids=lambda fault: str(fault.hold))
def test_blocks_that_stall_at_their_only_service_do_not_delay_others(
    cluster: Cluster, fault: Fault, size: int
) -> None:
    sick, well, _ = cluster.stores
    stalling = [KeepLocator(sick.store_block(bytes([n]) * 4 * MIB)) for n in range(4)]
    for each in stalling:
        sick.always(fault, method="GET", target=each.md5sum)
    block = b"w" * size
    locator = KeepLocator(well.store_block(block))
    with client_of(store_of(cluster), KeepBlockCache(16 * MIB)) as client:
        readers = [Running(lambda it=it: client.get_block(it)) for it in stalling]  # type: ignore[misc]
        sick.wait_held(4)

        assert read(client, locator) == block

    for reader in readers:
        assert isinstance(reader.failure(), KeepReadError)
    assert client.block_cache.statistics().in_flight == 0


@pytest.mark.parametrize("is_silent", [False, True], ids=["well", "hedged"])
def test_a_call_leaves_no_garbage(
    cluster: Cluster,
    is_silent: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    made: list[weakref.ref[KeepService]] = []

    class Mine(Parts):
        KeepService = noting(made)

    locator = cluster.store(b"foo")
    store, *_ = connect(Mine(), Counters(), cluster.api, "", None, None)
    store.silence = SILENCE
    with client_of(store) as client:
        client.get_block(locator)
        client.block_cache.clear()
        if is_silent:
            cluster.by_probe_order(locator)[0].always(Fault(hold=Stage.BEFORE_STATUS))
        gc.disable()
        try:
            client.get_block(locator)
            # The thread of a cancelled exchange ends soon after.
            wait_until(lambda: all(ref() is None for ref in made[3:]))
        finally:
            gc.enable()

    assert len(made) == 6


def test_a_healthy_service_is_asked_without_a_thread(
    cluster: Cluster, client: BlockClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    locator = cluster.store(b"foo")
    client.head_block(locator)  # the list of services comes by a thread
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)

    assert bytes(client.get_block(locator)) == b"foo"
    assert client.head_block(locator) == 3
    assert started == []


class NoThreads:
    """Has the system give no threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __enter__(self) -> None:
        def refuse(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        self._monkeypatch.setattr(threading.Thread, "start", refuse)

    def __exit__(self, *_: object) -> None:
        self._monkeypatch.undo()


def test_without_further_threads_a_block_is_received_nevertheless(
    cluster: Cluster, client: BlockClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    locator = cluster.store(LARGE)
    client.head_block(locator)
    cluster.by_probe_order(locator)[0].script(Fault(pause={Stage.MID_BODY: 0.3}))

    with NoThreads(monkeypatch):
        block = client.get_block(locator)

    assert bytes(block) == LARGE


def test_closing_ends_the_threads_that_ask(cluster: Cluster, client: BlockClient) -> None:
    locator = cluster.store(b"foo")
    for each in cluster.stores:
        each.always(Fault(hold=Stage.BEFORE_STATUS))
    reading = Running(lambda: client.get_block(locator))
    for each in cluster.stores:
        each.wait_held(1)
    others = [each for each in threading.enumerate() if "_run" in each.name]

    client.close()

    assert isinstance(reading.failure(), KeepReadError)
    wait_until(lambda: not any(each.is_alive() for each in others))


def test_an_unexpected_exception_in_a_thread_is_raised_in_the_call(
    cluster: Cluster,
) -> None:
    locator = cluster.store(b"foo")
    first, *_ = cluster.by_probe_order(locator)
    first.always(Fault(hold=Stage.BEFORE_STATUS))
    store = store_of(cluster, timeouts=Timeouts(2, 0.5, 1))

    class Failing(ReadObserver):
        def began(self, size: int) -> None:
            """Fail."""
            raise ValueError(f"a bug of {size} bytes")

    with client_of(store) as client:
        call = CallOptions(PATIENT.read + 1e9, observer=Failing())
        with pytest.raises(ValueError, match="a bug"):
            Running(lambda: store.read(locator, call)).result()
        assert client.block_cache.statistics().in_flight == 0


def test_a_service_that_does_not_accept_the_connection_is_silent_too(cluster: Cluster) -> None:
    with silent_port() as port:
        good = cluster.stores[0]
        uris = f"http://127.0.0.1:{port}/ {good.url}/"
        services = Services.of_uris(uris)
        names = {KeepLocator(good.store_block(b"%d" % n)): b"%d" % n for n in range(100)}
        locator, block = next(
            (name, block)
            for name, block in names.items()
            if str(port) in probe_order(name, services.records)[0].root
        )
        store = store_of(cluster, uris, Timeouts(60, 300, 1))
        with client_of(store) as client:
            assert read(client, locator) == block


def test_a_refused_hedge_is_not_a_failure(
    cluster: Cluster,
    client: BlockClient,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    locator = cluster.store(b"foo")
    client.head_block(locator)
    first = cluster.by_probe_order(locator)[0]
    first.script(Fault(pause={Stage.BEFORE_STATUS: 0.5}), method="GET")

    with NoThreads(monkeypatch):
        block = client.get_block(locator)

    assert bytes(block) == b"foo"
    assert "is silent or slow, but no other is asked" in caplog.text


def test_an_unexpected_failure_of_the_second_service_is_told_and_harms_no_read(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    class _Failing(KeepService):
        def get(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as the original
            if threading.current_thread() is not threading.main_thread():
                raise ZeroDivisionError("a bug")
            return super().get(*arguments, **options)

    class _Parts(Parts):
        KeepService = _Failing

    store, *_ = connect(_Parts(), Counters(), cluster.api, "", None, None)
    store.silence = SILENCE
    store.timeout = store.proxy_timeout = PATIENT
    locator = cluster.store(b"foo")
    first = cluster.by_probe_order(locator)[0]
    first.script(Fault(pause={Stage.BEFORE_STATUS: 1.0}), method="GET")
    with client_of(store) as client:
        assert bytes(client.get_block(locator)) == b"foo"

    assert_shows(caplog.text, "extra-service-failed")


# --- slow services ---

#: Above the least bandwidth, and never silent: 8 MiB take 20 s.
SLOW = Fault(send_rate=400_000)


def extra_requests(cluster: Cluster, blocks: int) -> int:
    """Count the GETs beyond one for each block."""
    return sum(cluster.counts("GET")) - blocks


@pytest.mark.parametrize("size", [200_000, 8 * MIB], ids=["small", "large"])
def test_a_block_comes_from_the_next_service_if_the_first_is_slow(
    cluster: Cluster, client: BlockClient, size: int
) -> None:
    block = LARGE[:size]
    locator = cluster.store(block)
    first, second, _ = cluster.by_probe_order(locator)
    first.always(Fault(send_rate=size / 60), method="GET")

    assert read(client, locator) == block

    assert client.services_of(locator) == (root(second),)
    first.wait_ended(1, "GET")
    assert extra_requests(cluster, 1) == 1


def test_a_service_that_was_slow_is_asked_last_for_a_while(
    cluster: Cluster, client: BlockClient
) -> None:
    locator = cluster.store(LARGE)
    first, second, _ = cluster.by_probe_order(locator)
    first.always(SLOW, method="GET")
    assert read(client, locator) == LARGE
    client.block_cache.clear()

    assert read(client, locator) == LARGE

    assert (first.counts()["GET"], second.counts()["GET"]) == (1, 2)


def test_get_of_the_sdk_is_hedged_if_the_first_service_is_slow(cluster: Cluster) -> None:
    locator = cluster.store(LARGE)
    first, second, _ = cluster.by_probe_order(locator)
    first.always(SLOW, method="GET")
    client = cluster.client()

    assert Running(lambda: client.get(str(locator))).result() == LARGE

    assert second.counts()["GET"] == 1


def test_the_slow_transfer_continues_if_the_others_have_no_copy(
    cluster: Cluster, client: BlockClient
) -> None:
    block = LARGE[:800_000]
    first, *_ = cluster.by_probe_order(block)
    locator = cluster.store(block, first)
    first.always(SLOW, method="GET")

    assert read(client, locator) == block

    assert client.services_of(locator) == (root(first),)
    assert cluster.counts("GET") == [1, 1, 1]


def test_the_slow_transfer_continues_if_another_has_a_bad_copy(
    cluster: Cluster, client: BlockClient
) -> None:
    block = LARGE[:200_000]
    locator = cluster.store(block)
    first, second, third = cluster.by_probe_order(locator)
    first.always(Fault(send_rate=200_000), method="GET")
    second.always(Fault(body=bytes(200_000)), method="GET")
    third.always(Fault(status=404), method="GET")

    assert read(client, locator) == block

    assert client.services_of(locator) == (root(first),)
    assert first.counts()["GET"] == 1


def test_a_large_block_comes_from_the_next_service_if_the_first_stalls(
    cluster: Cluster, client: BlockClient
) -> None:
    locator = cluster.store(LARGE)
    first, second, _ = cluster.by_probe_order(locator)
    first.script(Fault(hold=Stage.MID_BODY), method="GET")

    assert read(client, locator) == LARGE

    assert client.services_of(locator) == (root(second),)


@pytest.mark.parametrize(
    ("rate_of_second", "has_won"), [(None, True), (200_000, False)], ids=["faster", "slower"]
)
def test_the_result_of_a_second_transfer_decides_about_the_next(
    cluster: Cluster,
    client: BlockClient,
    monkeypatch: pytest.MonkeyPatch,
    rate_of_second: float | None,
    has_won: bool,  # noqa: FBT001 - a row's value
) -> None:
    ends: list[bool | None] = []
    end = Extras.end

    def note(extras: Extras, outcome: bool | None) -> None:  # noqa: FBT001 - as it is called
        ends.append(outcome)
        end(extras, outcome)

    monkeypatch.setattr(Extras, "end", note)
    locator = cluster.store(LARGE[: 2 * MIB])
    first, second, third = cluster.by_probe_order(locator)
    first.always(Fault(send_rate=700_000), method="GET")
    second.always(Fault(send_rate=rate_of_second), method="GET")
    third.always(Fault(status=404), method="GET")

    assert read(client, locator) == LARGE[: 2 * MIB]

    assert ends == [has_won]


def test_two_slow_services_are_followed_by_the_third(
    cluster: Cluster, client: BlockClient
) -> None:
    locator = cluster.store(LARGE)
    first, second, third = cluster.by_probe_order(locator)
    first.always(SLOW, method="GET")
    second.always(Fault(send_rate=100_000), method="GET")

    assert read(client, locator) == LARGE

    assert client.services_of(locator) == (root(third),)


def test_not_each_block_is_doubled_if_all_services_are_slow(cluster: Cluster) -> None:
    blocks = [bytes([n]) * 600_000 for n in range(8)]
    locators = [cluster.store(block) for block in blocks]
    for each in cluster.stores:
        each.always(SLOW, method="GET")
    store = store_of(cluster)
    store.silence = 2 * SILENCE  # eight transfers on a loaded machine pause for that of others

    with client_of(store) as client:
        readers = [Running(functools.partial(client.get_block, it)) for it in locators]
        assert [bytes(each.result()) for each in readers] == blocks

        # One block has been tried at two services more, and none after that.
        assert 1 <= extra_requests(cluster, len(blocks)) <= 2
        for locator, block in zip(locators, blocks, strict=True):
            client.block_cache.clear()
            assert read(client, locator) == block
        assert extra_requests(cluster, 2 * len(blocks)) <= 2


def test_a_block_that_all_services_send_slowly_is_not_restarted(
    cluster: Cluster, client: BlockClient
) -> None:
    block = LARGE[:800_000]
    locator = cluster.store(block)
    first, *_ = cluster.by_probe_order(locator)
    for each in cluster.stores:
        each.always(SLOW, method="GET")

    assert read(client, locator) == block

    assert client.services_of(locator) == (root(first),)
    assert extra_requests(cluster, 1) >= 1


def test_blocks_that_services_send_in_reasonable_time_are_asked_for_once(
    cluster: Cluster,
) -> None:
    blocks = [bytes([n]) * 4 * MIB for n in range(8)]
    locators = [cluster.store(block) for block in blocks]
    for each in cluster.stores:
        each.always(Fault(send_rate=10e6), method="GET")
    store = store_of(cluster)
    store.silence = 3.0  # as by default

    with client_of(store) as patient:
        assert [read(patient, it) for it in locators] == blocks

    assert extra_requests(cluster, len(blocks)) == 0


def test_many_readers_of_a_slow_service_are_hedged_soon_after_one_another(
    cluster: Cluster, client: BlockClient
) -> None:
    sick, well, _ = cluster.stores
    blocks = [bytes([n]) * 1_000_000 for n in range(12)]
    locators = [cluster.store(block, sick, well) for block in blocks]
    sick.always(Fault(send_rate=20_000), method="GET")

    readers = [Running(lambda it=it: client.get_block(it)) for it in locators]  # type: ignore[misc]

    assert [bytes(each.result()) for each in readers] == blocks
    assert all(client.services_of(each) == (root(well),) for each in locators)


def test_a_block_that_only_a_slow_service_has_does_not_keep_others_from_a_second_transfer(
    cluster: Cluster,
) -> None:
    sick, well, _ = cluster.stores
    blocks = (bytes([number]) * 1_000_000 for number in range(200))
    at_sick = (it for it in blocks if cluster.by_probe_order(KeepLocator.of_block(it))[0] is sick)
    lonely, shared = cluster.store(next(at_sick), sick), cluster.store(next(at_sick), sick, well)
    sick.always(Fault(send_rate=20_000), method="GET")
    client = client_of(store_of(cluster))
    with client:
        slow = Running(lambda: client.get_block(lonely))
        wait_until(lambda: all(cluster.counts("GET")))  # the others don't have it

        assert len(read(client, shared)) == 1_000_000

        assert client.services_of(shared) == (root(well),)
        assert not slow.is_over()
    assert isinstance(slow.failure(), KeepReadError)
