"""The known defects of the SDK's client: each has a test that keepfs does not have it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from keepfs.keep import Cause, KeepClient, KeepReadError, KeepWriteError, NotFoundError
from tests.fakes.threads import PATIENCE, Running
from tests.keep.clusters import Cluster, StandInApi
from tests.keepstore import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOO = "acbd18db4cc2f85cedef654fccc4a4d8+3"


class Row(NamedTuple):
    """One defect.

    Attributes:
        number: In the protocol's list.
        defect: What the SDK does.
        proofs: Tests, as `module::test`; empty where the defect can't occur.
        why: In that case, why not.
    """

    number: int
    defect: str
    proofs: tuple[str, ...] = ()
    why: str = ""


ROWS = [
    # --- integrity ---
    Row(1, "the size hint isn't compared", ("faults::test_a_keepstores_fault",)),
    Row(
        2,
        "the answer to a PUT is trusted blindly",
        ("defects::test_an_answer_that_names_no_block_or_another_is_a_failure",),
    ),
    Row(3, "a disk cache isn't verified", why="Blocks are cached in memory only."),
    Row(
        4,
        "there is no size limit on put",
        ("client_services::test_a_block_over_64_mib_is_refused_without_a_request",),
    ),
    Row(
        5,
        "the local store isn't verified, and its temporary names collide",
        (
            "local::test_a_corrupt_file_is_an_error_that_names_it",
            "local::test_many_threads_and_processes_store_the_same_blocks_at_once",
        ),
    ),
    Row(
        6,
        "storage classes are counted per round",
        ("client_services::test_classes_count_over_all_rounds",),
    ),
    # --- hangs and time ---
    Row(
        7,
        "stopping prefetch threads can deadlock",
        ("defects::test_prefetching_can_be_waited_for_while_the_list_is_fetched",),
    ),
    Row(8, "HEAD has no read limit", ("traps::test_a_head_is_limited_too",)),
    Row(
        9,
        "the connect limit grows without bound",
        ("http.timeouts::test_the_connect_part_doubles_each_round_up_to_a_cap",),
    ),
    Row(
        10,
        "waiters for a failing block fail one after another",
        ("client_services::test_readers_of_one_failing_block_fail_together_after_one_try",),
    ),
    Row(
        11,
        "back-off uses the wall clock, and begins with twice its parameter",
        (
            "retry::test_the_nominal_wait_doubles_from_two_seconds_to_a_minute",
            "retry::test_a_round_starts_no_sooner_than_the_wait_after_the_start_of_the_one_before",
        ),
    ),
    Row(
        12,
        "all callers share a lock round the list's request, and each refreshes it",
        (
            "services.roster::test_a_caller_with_a_list_does_not_wait_for_a_newer_one",
            "services.roster::test_a_list_that_is_already_newer_is_not_requested_again",
        ),
    ),
    Row(
        13,
        "put waits for the slowest writer",
        ("small_puts::test_enough_confirmed_copies_end_the_wait_for_a_slower_service",),
    ),
    # --- writing ---
    Row(
        14,
        "too many copies are written",
        (
            "services.writers::test_a_success_starts_no_other_while_one_is_under_way",
            "services.writers::test_tries_under_way_never_exceed_the_confirmations_that_are_missing",
        ),
    ),
    Row(
        15,
        "`wanted … but wrote …` shows the last round, as tuples",
        ("client_services::test_too_few_copies_are_an_error_with_their_number",),
    ),
    Row(16, "429 and 499 are permanent", ("faults::test_a_transient_status_is_retried",)),
    Row(
        17,
        "bytearray and memoryview can't be put",
        ("client_services::test_any_buffer_may_be_put_large_or_small",),
    ),
    Row(
        18,
        "a class without `Default` switches all defaults off",
        ("services.roster::test_a_storage_class_without_the_key_is_not_a_default",),
    ),
    Row(
        19,
        "with proxies, default classes are never sent",
        ("client_services::test_a_fixed_list_is_never_fetched_but_default_classes_are",),
    ),
    # --- reading and locators ---
    Row(
        20,
        "comma-separated locators raise TypeError",
        ("client_services::test_several_locators_are_the_concatenation_of_their_blocks",),
    ),
    Row(
        21,
        "the root map of hints is dead code",
        ("client_services::test_roots_are_those_of_hints_first_and_weighted_services_after",),
    ),
    Row(
        22,
        "a hint directs the user's token to any host",
        (
            "traps::test_a_cluster_that_a_hint_names_gets_the_salted_token_and_is_asked_first",
            "traps::test_a_token_that_cannot_be_salted_is_not_sent",
        ),
    ),
    Row(
        23,
        "expiry is compared in local time",
        ("locator::test_a_permission_ends_at_the_same_moment_in_every_time_zone",),
    ),
    Row(
        24,
        "what no server takes is parsed",
        ("locator::test_a_text_that_no_server_accepts_is_refused_without_a_request",),
    ),
    Row(
        25,
        "refresh_signature returns True, or a trailing blank",
        (
            "client_services::test_refresh_signature_of_a_local_block_is_the_locator",
            "client_services::test_refresh_signature_requests_a_local_signature",
        ),
    ),
    Row(
        26,
        "a prefetch never finds the cache, and logs stack traces",
        ("defects::test_a_prefetch_uses_the_cache_and_logs_no_failure",),
    ),
    Row(
        27,
        "401, 400 and 403 aren't told apart from other failures",
        (
            "faults::test_a_keepstores_fault",
            "faults::test_of_different_failures_the_one_a_user_can_act_on_is_the_cause",
        ),
    ),
    # --- headers and state ---
    Row(
        28,
        "the caller's headers are changed, and shared as defaults",
        ("defects::test_reused_headers_keep_no_old_token",),
    ),
    Row(
        29,
        "status lines and headers are parsed badly",
        ("defects::test_an_unusual_answer_is_parsed_by_the_rules_of_http",),
    ),
    Row(30, "a timeout can't be a number", ("defects::test_a_timeout_may_be_a_number",)),
    Row(
        31,
        "time limits hang on one attribute that every call sets",
        why="Each call takes its limits from the immutable list of services that it uses.",
    ),
    Row(
        32,
        "connections are pooled without bound and never closed",
        (
            "client_services::test_closing_the_client_ends_calls_in_progress",
            "traps::test_idle_sessions_are_bounded",
        ),
    ),
    Row(
        33,
        "two `=` in the settings file stop the program",
        (),
        "tests/config/test_arvados.py: test_a_settings_file_is_read_as_the_go_programs_read_it.",
    ),
    Row(
        34,
        "with a local store, errors and arguments differ",
        (
            "client::test_a_list_with_a_block_that_is_missing_is_not_found",
            "client::test_the_sdks_keyword_arguments_are_taken",
            "defects::test_a_local_store_client_has_the_same_attributes",
        ),
    ),
    Row(
        35,
        "a full disk raises the cache's limit, and loses data that had come",
        why="Blocks are cached in memory only, within a budget that is set once.",
    ),
    Row(
        36,
        "failed fetches leave dead slots in the cache",
        ("caching.cache::test_a_failed_fetch_is_not_kept",),
    ),
    Row(37, "the log shows `None bytes`", why="No log line of ours quotes a HEAD's length."),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_a_defect_has_a_proof_or_a_reason(row: Row) -> None:
    assert bool(row.proofs) != bool(row.why)
    for proof in row.proofs:
        place, _, test = proof.partition("::")
        folder, _, module = f".{place}".rpartition(".")
        assert callable(
            getattr(importlib.import_module(f"tests.keep{folder}.test_{module}"), test)
        )


def test_every_defect_has_a_row() -> None:
    assert [row.number for row in ROWS] == list(range(1, 38))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run one keepstore."""
    with Cluster(1) as running:
        yield running


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n",
        b"37b51d194a7513e45b56f6524f2d51f2+3\n",
        b"acbd18db4cc2f85cedef654fccc4a4d8+4\n",
        b"acbd18db4cc2f85cedef654fccc4a4d8\n",
        b"<html>\n",
        b"\xff",
        b"x" * 10_000,
    ],
)
def test_an_answer_that_names_no_block_or_another_is_a_failure(
    cluster: Cluster, body: bytes
) -> None:
    [store] = cluster.stores
    store.always(Fault(body=body))

    with pytest.raises(KeepWriteError, match="but the answer is") as caught:
        cluster.client(retries=2).put(b"foo", copies=1)

    assert caught.value.cause is Cause.OTHER
    assert store.counts() == {"PUT": 1}


def test_prefetching_can_be_waited_for_while_the_list_is_fetched(cluster: Cluster) -> None:
    begun, gate = threading.Event(), threading.Event()

    class Slow(StandInApi):
        def execute(self) -> dict[str, Any]:
            begun.set()
            gate.wait(PATIENCE)
            return super().execute()

    client = cluster.client(api=Slow(cluster.entries(*cluster.stores)))
    locator = cluster.store(b"foo")

    client.block_prefetch(str(locator))
    assert begun.wait(PATIENCE)
    stopping = Running(client.stop_prefetch_threads)
    gate.set()
    stopping.result()

    assert client.is_cached(str(locator))


def test_a_prefetch_uses_the_cache_and_logs_no_failure(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = cluster.client()
    locator = cluster.store(b"foo")
    client.get(str(locator))

    client.block_prefetch(str(locator))
    client.block_prefetch(cluster.stores[0].sign("0" * 32 + "+3"))
    client.stop_prefetch_threads()

    assert cluster.counts("GET") == [2]
    assert "Traceback" not in caplog.text


def test_reused_headers_keep_no_old_token(cluster: Cluster) -> None:
    client = cluster.client()
    headers = {"X-Mine": "1"}
    locator = cluster.store(b"foo")

    client.head(str(locator), headers=headers)
    client.api_token = "another"  # noqa: S105 - none
    with pytest.raises(KeepReadError):
        client.head(str(locator), headers=headers)

    assert headers == {"X-Mine": "1"}
    assert cluster.stores[0].log()[1].header("Authorization") == "Bearer another"
    assert cluster.stores[0].log()[1].header("X-Mine") == "1"


@contextlib.contextmanager
def scripted(answer: bytes) -> Iterator[str]:
    """Run a server that answers its first request with these very bytes; the url is yielded."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        server = Running(serve)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.result()


@pytest.mark.parametrize(
    ("answer", "check"),
    [
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nfoo",
            lambda got: got == b"foo",
        ),
        (
            b"HTTP/1.1 200 OK\r\nnonsense without a colon\r\nContent-Length: 3\r\n\r\nfoo",
            lambda got: "an invalid header line" in str(got),
        ),
        (b"HTTP/1.0 200 OK\r\n\r\nfoo", lambda got: got == b"foo"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nfoo\r\n0\r\n\r\n",
            lambda got: got == b"foo",
        ),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
            lambda got: str(got).endswith("responded with 503 HTTP/1.1 503 Busy"),
        ),
        (b"HTTP/1.1 503\r\nContent-Length: 0\r\n\r\n", lambda got: "503" in str(got)),
        (b"SSH-2.0-OpenSSH_9.2\r\n", lambda got: "SSH" in str(got)),
        (b"", lambda got: "responded with 0" in str(got)),
    ],
    ids=["100", "nonsense", "1.0", "chunked", "100 then 503", "no reason", "ssh", "nothing"],
)
def test_an_unusual_answer_is_parsed_by_the_rules_of_http(
    answer: bytes, check: Callable[[object], bool], caplog: pytest.LogCaptureFixture
) -> None:
    got: object
    with (
        scripted(answer) as root,
        KeepClient(proxy=root, api_token="x", local_store="", timeout=5) as client,  # noqa: S106
    ):
        try:
            got = client.get(FOO)
        except KeepReadError as error:
            got = error

    assert check(got), got
    assert "\r" not in str(got)
    assert "Traceback" not in caplog.text or "nonsense" in answer.decode()


def test_a_timeout_may_be_a_number(cluster: Cluster) -> None:
    client = cluster.client(timeout=5)

    assert client.get(client.put(b"foo", copies=1)) == b"foo"
    assert client.current_timeout(0) == (5, 5, 32768)


def test_a_local_store_client_has_the_same_attributes(tmp_path: Any) -> None:  # noqa: ANN401 - a path
    client = KeepClient(local_store=tmp_path, num_retries=3)

    assert client.num_retries == 3
    with pytest.raises(NotFoundError):
        client.head(FOO, request_id="req-x", headers={})
    client.put(b"foo", request_id="req-x", classes=["hot"])
    assert client.get(FOO, num_retries=1, request_id="req-x") == b"foo"
    assert client.upload_counter.get() >= 0
