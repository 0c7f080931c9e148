"""scripts/bench: a quick run of it, and that its ratios and its checks are right."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench import build
from bench.arvmount import manifest_of
from bench.inprocess import client
from bench.measure import (
    Amount,
    Stopwatch,
    Taken,
    Target,
    VerifyError,
    compare,
    prepare_memory,
)
from bench.reading import verify
from bench.report import line
from bench.services import Kind, Services, md5
from keepfs.keep import KeepClient
from keepfs.keep.services.discovery import Access
from keepfs.keep.services.discovery import Services as Known
from tests.fakes.threads import wait_until
from tests.mounted.mounts import PATIENCE, why_no_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

#: What a quick run of these groups has, and whether it has a baseline.
GROUPS = ("services", "inprocess", "reading")
NAMES = [
    "services: GET 1 MiB by curl",
    "services: PUT 1 MiB by 2 curls",
    "GET 1 MiB",
    "GET 1 MiB as a view",
    "PUT 1 MiB, 2 copies",
    "GET 4 KiB",
    "PUT 4 KiB, 2 copies",
    "mount: cold, 1 block in turn",
    "mount: cold, 4 blocks in turn",
    "mount: cold, comma list of 4",
    "mount: cold, 4 readers of 4 blocks",
    "mount: cold, 4 readers of one block",
    "mount: 1 MiB from our cache, pages dropped",
    "mount: 1 MiB from the page cache",
    "mount: random 4 KiB reads over 4 blocks",
]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Where the programs in C are compiled to, if they can be."""
    reason = build.why_not()
    if reason is not None:
        pytest.skip(reason)
    return tmp_path / "programs"


@contextmanager
def started(programs: Path, kind: Kind) -> Iterator[Services]:
    """The block server, with room for four blocks of 64 KiB."""
    program = build.program("server", programs)
    it = Services.started(program, kibibytes=256, block=65_536, kind=kind)
    yield it
    it.close()


@pytest.fixture
def services(programs: Path) -> Iterator[Services]:
    """The block server as fast as memory."""
    with started(programs, Kind.MEMORY) as it:
        yield it


@pytest.fixture
def keepstores(tmp_path: Path) -> Iterator[Services]:
    """Three services that do what keepstores do, with room for four blocks of 64 KiB."""
    reason = build.why_no_go()
    if reason is not None:
        pytest.skip(reason)
    it = Services.keepstores(build.keepstore(tmp_path / "programs"), 256, tmp_path)
    yield it
    it.close()


@pytest.fixture
def elsewhere(programs: Path) -> Iterator[Services]:
    """The block server that takes the time of keepstores elsewhere."""
    with started(programs, Kind.ELSEWHERE) as it:
        yield it


def put(services: Services, digest: str, data: bytes, **headers: str) -> bytes:
    request = urllib.request.Request(  # noqa: S310 - the block server
        f"{services.urls[1]}/{digest}",
        data,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        method="PUT",
    )
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - the block server
        body: bytes = answer.read()
    return body


# --- a run ---------------------------------------------------------------------


def quick_run(output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the bench with tiny amounts; skip, or fail in CI, where nothing can be mounted."""
    reason = why_no_mounts()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"a test that mounts can't run: {reason}")
        pytest.skip(reason)

    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--output", str(output), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        cwd=ROOT,
    )

    assert (done.returncode, done.stderr) == (0, "")
    return done


@pytest.mark.fuse
@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ([], "from memory"),
        (["--like-keepstore"], "keepstores in Go, on this machine"),
        (["--like-keepstores-elsewhere"], "from memory, as fast as keepstores elsewhere: "),
    ],
    ids=["from memory", "like a keepstore", "like keepstores elsewhere"],
)
def test_a_quick_run_prints_and_writes_every_figure(
    tmp_path: Path, options: list[str], kind: str
) -> None:
    if "--like-keepstore" in options and (reason := build.why_no_go()) is not None:
        pytest.skip(reason)

    done = quick_run(tmp_path, *options, *GROUPS)

    outcome = json.loads((tmp_path / "bench.json").read_text())
    figures = outcome["figures"]
    assert outcome["services"].startswith(kind)
    assert [it["name"] for it in figures] == NAMES
    for it in figures:
        assert it["value"] > 0
        assert it["ratio"] == pytest.approx(it["value"] / it["baseline_value"])
        assert it["rss"] > 0
        assert it["busy"] is None or 0 <= it["busy"] <= 1
    table = done.stdout.splitlines()
    assert table[0].startswith(f"measured with services: {kind}")
    assert [row for row in NAMES if not any(it.startswith(f"{row} ") for it in table)] == []
    has_chart = importlib.util.find_spec("matplotlib") is not None
    assert (tmp_path / "bench.png").exists() == has_chart


@pytest.mark.fuse
@pytest.mark.usefixtures("programs")
def test_arv_mount_is_a_baseline_where_there_is_one(tmp_path: Path) -> None:
    done = quick_run(tmp_path, "arv-mount")

    figures = json.loads((tmp_path / "bench.json").read_text())["figures"]
    if Path(sys.executable).with_name("arv-mount").exists():
        assert len(figures) == 3
        assert {it["baseline"] for it in figures} == {"arv-mount"}
        assert {it["target"]["bound"] for it in figures} == {2}
        assert all(it["ratio"] > 0 and it["others"]["its --ram-cache"] > 0 for it in figures)
    else:
        assert figures == []
        assert "arv-mount: not measured: there is no arv-mount" in done.stdout


@pytest.mark.fuse
@pytest.mark.usefixtures("programs")
def test_collections_are_measured_beside_arv_mount(tmp_path: Path) -> None:
    done = quick_run(tmp_path, "collections")

    figures = json.loads((tmp_path / "bench.json").read_text())["figures"]
    if Path(sys.executable).with_name("arv-mount").exists():
        assert len(figures) == 16
        assert {it["baseline"] for it in figures} == {"arv-mount"}
        assert all(it["ratio"] > 0 for it in figures)
    else:
        assert figures == []
        assert "collections: not measured: there is no arv-mount" in done.stdout


@pytest.mark.fuse
@pytest.mark.usefixtures("programs")
def test_the_disk_cache_is_measured_beside_plain_files(tmp_path: Path) -> None:
    quick_run(tmp_path, "disk")

    figures = json.loads((tmp_path / "bench.json").read_text())["figures"]
    baselines = {it["baseline"] for it in figures}
    assert len(figures) >= 5
    assert all(it["ratio"] > 0 for it in figures)
    has_arv_mount = Path(sys.executable).with_name("arv-mount").exists()
    assert any("arv-mount" in it for it in baselines) == has_arv_mount


def test_a_collection_has_a_file_for_each_locator_or_list() -> None:
    names = [f"{'a' * 32}+3", f"{'b' * 32}+4+Ax@1,{'c' * 32}+5"]

    assert manifest_of(names) == (
        f". {'a' * 32}+3 {'b' * 32}+4+Ax@1 {'c' * 32}+5 0:3:0000 3:9:0001\n"
    )


# --- which services --------------------------------------------------------------


def known(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Known:
    """Return the services as keepfs finds them in an environment."""
    for name in [it for it in os.environ if it.startswith("ARVADOS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with KeepClient(local_store="") as client:
        return client._services(force=True)  # noqa: SLF001 - what kind it takes them for


def test_services_of_ours_are_disks_to_a_client(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.announce(tmp_path)

    found = known(services.environment, monkeypatch)

    assert {it.root for it in found.records} == {f"{url}/" for url in services.urls}
    assert not found.has_proxies(Access.WRITE)


def test_services_that_are_given_are_proxies_to_a_client(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Services.given(tuple(services.urls))

    found = known(given.environment, monkeypatch)

    assert {it.root for it in found.records} == {f"{url}/" for url in services.urls}
    assert found.has_proxies(Access.WRITE)


def test_either_client_puts_two_copies_and_gets_them(services: Services, tmp_path: Path) -> None:
    services.announce(tmp_path)
    for kind in ("keepfs", "sdk"):
        with client(kind, services) as it:
            before = services.counts() or {}
            it.put(3, 4096, 2)
            after = services.counts() or {}
            it.get([services.store(os.urandom(4096))], 4096)

        assert after["PUT"] - before["PUT"] == 6


# --- ratios --------------------------------------------------------------------


def test_a_ratio_says_how_many_times_as_fast() -> None:
    rate = compare("r", Amount(8, "/s"), lambda: 2.0, {"b": lambda: 1.0}, repeats=3)
    time = compare("t", Amount(0, "s"), lambda: 2.0, {"b": lambda: 1.0}, repeats=3)

    assert (rate.value, rate.baseline_value, rate.ratio) == (4, 8, 0.5)
    assert (time.value, time.baseline_value, time.ratio) == (2, 1, 0.5)


def test_the_median_counts_and_the_first_of_several_does_not() -> None:
    ours = iter([1000.0, 1.0, 2.0, 900.0])
    theirs = iter([1000.0, 4.0, 4.0, 4.0])
    order: list[str] = []

    def subject() -> float:
        order.append("A")
        return next(ours)

    def baseline() -> float:
        order.append("B")
        return next(theirs)

    figure = compare("f", Amount(1, "/s"), subject, {"b": baseline}, repeats=3)

    assert figure.ratio == 2
    assert "".join(order) == "ABABABAB"


def test_a_stopwatch_counts_what_is_within_it_alone() -> None:
    watch = Stopwatch(os.getpid())

    def compute(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    for _ in range(2):
        compute(0.2)
        with watch:
            compute(0.1)

    taken = watch.taken()
    assert 0.15 < taken.cpu < 0.35  # the kernel's clock ticks each 0.01
    assert taken.seconds >= 0.2
    assert taken.busy is not None
    assert 0 < taken.busy <= 1


def test_what_a_trial_says_of_itself_counts() -> None:
    def subject() -> Taken:
        return Taken(seconds=2.0, cpu=1.5, busy=0.75)

    figure = compare("f", Amount(1, "/s"), subject, {"b": lambda: 1.0}, repeats=1, pid=os.getpid())

    assert (figure.value, figure.cpu, figure.busy) == (0.5, 1.5, 0.75)


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_memory_is_prepared_of_any_size(size: int) -> None:
    prepare_memory(size)


def test_a_target_is_met_or_missed() -> None:
    def measured(seconds: float, unit: str, target: Target) -> bool | None:
        amount = Amount(0 if unit == "s" else 1, unit)
        baselines = {"b": lambda: 1.0}
        return compare("f", amount, lambda: seconds, baselines, repeats=1, target=target).met

    assert measured(1.0, "/s", Target(0.95)) is True
    assert measured(1.2, "/s", Target(0.95)) is False
    assert measured(0.5, "/s", Target(2, "value")) is True
    assert measured(0.6, "s", Target(0.7, "value")) is True
    assert measured(0.8, "s", Target(0.7, "value")) is False


def test_a_line_has_the_target_and_what_became_of_it() -> None:
    figure = compare(
        *("reading", Amount(1, "/s"), lambda: 2.0, {"curl": lambda: 1.0, "dd": lambda: 4.0}),
        repeats=1,
        target=Target(0.95),
    )

    words = line(figure).split()

    assert words == ["reading", "0.5", "/s", "0.50", "curl", "≥0.95x", "MISSED", "2.00", "dd"]


# --- checks --------------------------------------------------------------------


def test_other_bytes_than_the_name_says_are_no_figure(tmp_path: Path) -> None:
    good = b"good" * 1000
    names = f"{md5(good)}+{len(good)},{md5(b'x')}+1"
    path = tmp_path / names
    path.write_bytes(good + b"x")
    verify(path, names)

    for content in (good + b"y", good[1:] + b"xx", good, good[:-1]):
        path.write_bytes(content)
        with pytest.raises(VerifyError):
            verify(path, names)


def test_what_was_put_at_either_service_is_at_both(services: Services) -> None:
    data = os.urandom(65_536)

    assert put(services, md5(data), data) == f"{md5(data)}+65536\n".encode()

    for url in services.urls:
        with urllib.request.urlopen(f"{url}/{md5(data)}+65536+Ahint") as answer:  # noqa: S310
            assert answer.read() == data
    assert services.have(f"{md5(data)}+65536")
    assert services.counts() == {"GET": 3, "HEAD": 0, "PUT": 1}


def test_a_damaged_block_does_not_count_as_there(services: Services) -> None:
    put(services, md5(b"one"), b"two")  # it believes the name

    assert not services.have(f"{md5(b'one')}+3")
    assert not services.have(f"{md5(b'none')}+4")


#: Around the words and the pieces that are hashed at once.
SIZES = (0, 1, 55, 56, 63, 64, 65, 119, 120, 65_535, 65_536, 65_537, 200_000)


@pytest.mark.parametrize("size", SIZES)
def test_like_a_keepstore_it_takes_and_gives_what_hashes_right(
    keepstores: Services, size: int
) -> None:
    data = os.urandom(size)

    assert put(keepstores, md5(data), data) == f"{md5(data)}+{size}\n".encode()

    with urllib.request.urlopen(f"{keepstores.urls[1]}/{md5(data)}+{size}") as answer:  # noqa: S310
        assert answer.read() == data


@pytest.mark.parametrize("size", [*SIZES, 2**20 + 1])
def test_like_keepstores_elsewhere_it_takes_and_gives_every_byte(
    elsewhere: Services, size: int
) -> None:
    data = os.urandom(size)

    assert put(elsewhere, md5(data), data) == f"{md5(data)}+{size}\n".encode()

    with urllib.request.urlopen(f"{elsewhere.urls[0]}/{md5(data)}+{size}") as answer:  # noqa: S310
        assert answer.read() == data


@pytest.mark.parametrize("size", SIZES)
def test_like_a_keepstore_it_refuses_what_hashes_wrong(keepstores: Services, size: int) -> None:
    wrong = md5(os.urandom(16))

    with pytest.raises(urllib.error.HTTPError) as caught:
        put(keepstores, wrong, os.urandom(size))

    assert caught.value.code == 422
    caught.value.close()
    assert not keepstores.have(f"{wrong}+{size}")


def test_like_a_keepstore_it_cuts_a_damaged_block_short(
    keepstores: Services, tmp_path: Path
) -> None:
    data = os.urandom(200_000)
    digest = md5(data)
    put(keepstores, digest, data)
    (path,) = tmp_path.glob(f"keepstore1/*/{digest}")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    with (
        urllib.request.urlopen(f"{keepstores.urls[1]}/{digest}+200000") as answer,  # noqa: S310
        pytest.raises(http.client.IncompleteRead) as caught,
    ):
        answer.read()

    assert caught.value.partial == data[: 3 * 65_536]


def test_keepstores_forget_the_oldest_blocks_but_not_those_for_good(
    keepstores: Services, tmp_path: Path
) -> None:
    kept = keepstores.store(os.urandom(65_536))
    blocks = [os.urandom(65_536) for _ in range(9)]
    for block in blocks:
        put(keepstores, md5(block), block)

    def there() -> list[bool]:
        return [any(tmp_path.glob(f"keepstore1/*/{md5(block)}")) for block in blocks]

    wait_until(lambda: sum(there()) <= 4)

    assert there() == [False] * 5 + [True] * 4
    assert keepstores.have(kept)


def test_keepstores_are_counted_together(keepstores: Services) -> None:
    locator = keepstores.store(os.urandom(10))
    keepstores.have(locator)

    assert keepstores.counts() == {"GET": 1, "HEAD": 0, "PUT": 3}


def test_the_oldest_blocks_are_forgotten_but_not_those_for_good(services: Services) -> None:
    kept = services.store(os.urandom(65_536))
    blocks = [os.urandom(65_536) for _ in range(9)]
    for block in blocks:
        put(services, md5(block), block)

    there = [services.have(f"{md5(block)}+65536") for block in blocks]

    assert there == [False] * 5 + [True] * 4
    assert services.have(kept)
