"""A mount over Keep services: what is asked of them, and what becomes of their faults."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.errnos import ERRNO_BY_CAUSE
from keepfs.keep import KeepLocator
from keepfs.keep.services.discovery import Services, probe_order
from keepfs.mount import mountpoint, runtime
from tests.fakes.threads import Running
from tests.keep.test_faults import PROXY_ROWS, ROWS, ProxyRow, Row
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    ApiSettings,
    Authority,
    Fault,
    KeepproxyControls,
    KeepstoreControls,
    Listening,
    ProxySettings,
    ServiceEntry,
    Stage,
    Store,
)
from tests.mounted.mounts import PATIENCE, KeepfsMount, is_zombie, keepfs, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator


@pytest.fixture
def stores() -> Iterator[list[KeepstoreControls]]:
    """Three keepstores."""
    with KeepstoreControls() as one, KeepstoreControls() as two, KeepstoreControls() as three:
        yield [one, two, three]
        for store in (one, two, three):
            store.release()


@pytest.fixture
def over(unmounted: KeepfsMount) -> Iterator[Callable[..., KeepfsMount]]:
    """Mount over services that Arvados's own settings name."""

    def mount(
        *services: KeepstoreControls | KeepproxyControls, token: str = TEST_TOKEN
    ) -> KeepfsMount:
        unmounted.is_local = False
        unmounted.env = {
            "ARVADOS_KEEP_SERVICES": " ".join(each.url for each in services),
            "ARVADOS_API_TOKEN": token,
        }
        unmounted.mount()
        return unmounted

    yield mount
    unmounted.clean_up()


@pytest.fixture
def cluster(
    stores: list[KeepstoreControls], unmounted: KeepfsMount, tmp_path: Path
) -> Iterator[tuple[KeepfsMount, ApiControls]]:
    """A mount, not made yet, of a cluster: an API server over https that lists keepstores."""
    authority = Authority(tmp_path)
    with ApiControls(ApiSettings(), listening=Listening(tls=authority.certify())) as api:
        api.list_services([ServiceEntry.of(each.url, i) for i, each in enumerate(stores)])
        unmounted.is_local = False
        unmounted.env = {
            "ARVADOS_API_HOST": api.host,
            "ARVADOS_API_TOKEN": TEST_TOKEN,
            "SSL_CERT_FILE": str(authority.bundle),
        }
        yield unmounted, api
        unmounted.clean_up()


def counts(stores: list[KeepstoreControls], method: str) -> int:
    """Count the requests of all keepstores."""
    return sum(store.counts().get(method, 0) for store in stores)


def errno_of(call: Callable[[], object]) -> int | None:
    """Return the errno a call fails with, or None."""
    try:
        call()
    except OSError as error:
        return error.errno
    return None


# --- a cluster -----------------------------------------------------------------


def test_cp_stores_two_copies_and_no_more_and_cat_reads_them(
    cluster: tuple[KeepfsMount, ApiControls], stores: list[KeepstoreControls]
) -> None:
    mount, _ = cluster
    mount.mount()
    content = os.urandom(300_000)

    (mount.upload / "file").write_bytes(content)

    assert counts(stores, "PUT") == 2
    assert os.getxattr(mount.upload / "file", "user.keep.copies") == b"2"
    services = os.getxattr(mount.upload / "file", "user.keep.services").decode().split()
    assert set(services) <= {f"{store.url}/" for store in stores}
    assert len(services) == 2
    locator = mount.locator(mount.upload / "file")
    assert "+A" in locator
    assert (mount.by_id / locator).read_bytes() == content
    assert counts(stores, "GET") <= 2


def test_by_id_shows_the_services_that_sent_a_block(
    cluster: tuple[KeepfsMount, ApiControls], stores: list[KeepstoreControls]
) -> None:
    mount, _ = cluster
    mount.mount()
    blocks = [os.urandom(1000), os.urandom(1000)]
    names = [store.store_block(block) for store, block in zip(stores, blocks, strict=False)]
    path = mount.by_id / ",".join(names)

    assert path.read_bytes() == b"".join(blocks)

    urls = " ".join(f"{store.url}/" for store in stores[: len(blocks)])
    assert os.getxattr(path, "user.keep.services").decode() == urls


def test_options_set_copies_and_classes(
    cluster: tuple[KeepfsMount, ApiControls], stores: list[KeepstoreControls]
) -> None:
    mount, _ = cluster
    mount.options = ("--copies", "3", "--storage-classes", "default")
    mount.mount()

    (mount.upload / "file").write_bytes(b"three")

    assert os.getxattr(mount.upload / "file", "user.keep.copies") == b"3"
    (entry,) = stores[0].log("PUT")
    assert dict(entry.headers)["X-Keep-Storage-Classes"] == "default"
    assert "3 copies are confirmed" in (mount.path / "README").read_text()
    assert TEST_TOKEN not in (mount.path / "README").read_text()


def test_a_token_that_is_refused_refuses_the_mount(
    cluster: tuple[KeepfsMount, ApiControls],
) -> None:
    mount, _ = cluster
    mount.path.mkdir()
    mount.env["ARVADOS_API_TOKEN"] = f"{_OLD}notagoodtoken"

    done = mount.try_mount()

    assert done.returncode == 1
    assert b"refuses the token from ARVADOS_API_TOKEN in the environment" in done.stderr
    assert b"notagoodtoken" not in done.stderr
    assert not mount.is_mounted()


def test_an_unreachable_api_server_refuses_the_mount(
    cluster: tuple[KeepfsMount, ApiControls],
) -> None:
    mount, api = cluster
    mount.path.mkdir()
    api.go_down()

    done = mount.try_mount()

    assert done.returncode == 1
    assert b"the API server doesn't answer" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_unreachable_services_refuse_the_mount(
    cluster: tuple[KeepfsMount, ApiControls], stores: list[KeepstoreControls]
) -> None:
    mount, _ = cluster
    mount.path.mkdir()
    for store in stores:
        store.go_down()

    done = mount.try_mount()

    assert done.returncode == 1
    assert b"no Keep service answers" in done.stderr
    assert stores[0].url.encode() in done.stderr


# --- lookups and reads -----------------------------------------------------------


def test_looking_up_and_reading_make_one_request(
    over: Callable[..., KeepfsMount], stores: list[KeepstoreControls]
) -> None:
    block = os.urandom(1 << 20)
    locator = stores[0].store_block(block)
    mount = over(stores[0])
    before = counts(stores, "HEAD")

    assert (mount.by_id / locator).stat().st_size == len(block)
    assert (mount.by_id / locator).read_bytes() == block
    assert (mount.by_id / locator).read_bytes() == block
    assert counts(stores, "GET") == 1
    assert counts(stores, "HEAD") == before


def test_a_lookup_may_send_head_or_nothing(
    over: Callable[..., KeepfsMount], stores: list[KeepstoreControls], unmounted: KeepfsMount
) -> None:
    locator = stores[0].store_block(b"foo")
    missing = stores[0].sign("0" * 32 + "+5")
    unmounted.options = ("--lookup", "head")
    mount = over(stores[0])
    before = counts(stores, "HEAD")
    assert (mount.by_id / locator).stat().st_size == 3
    assert not (mount.by_id / missing).exists()
    assert (counts(stores, "HEAD") - before, counts(stores, "GET")) == (2, 0)
    mount.unmount()

    unmounted.options = ("--lookup", "trust")
    over(stores[0])
    before = counts(stores, "HEAD")
    assert (mount.by_id / missing).stat().st_size == 5
    assert (counts(stores, "HEAD") - before, counts(stores, "GET")) == (0, 0)
    with pytest.raises(FileNotFoundError):
        (mount.by_id / missing).read_bytes()


def test_a_slow_service_delays_a_lookup_for_a_bounded_time(
    over: Callable[..., KeepfsMount], stores: list[KeepstoreControls], unmounted: KeepfsMount
) -> None:
    locator = stores[0].store_block(b"slow")
    stores[0].always(Fault(hold=Stage.BEFORE_STATUS), method="GET")
    unmounted.options = ("--lookup-wait", "0.2")
    mount = over(stores[0])

    assert (mount.by_id / locator).stat().st_size == 4

    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append((mount.by_id / locator).read_bytes()))
    reader.start()
    stores[0].wait_held(1)
    stores[0].release()
    reader.join(PATIENCE)
    assert answers == [b"slow"]


def test_fifty_readers_of_a_block_make_one_request(
    over: Callable[..., KeepfsMount], stores: list[KeepstoreControls]
) -> None:
    block = os.urandom(1 << 20)
    locator = stores[0].store_block(block)
    stores[0].always(Fault(hold=Stage.MID_BODY), method="GET")
    mount = over(stores[0])
    answers: list[bool] = []
    readers = [
        threading.Thread(
            target=lambda: answers.append((mount.by_id / locator).read_bytes() == block)
        )
        for _ in range(50)
    ]
    for reader in readers:
        reader.start()
    stores[0].wait_held(1)
    stores[0].release()
    for reader in readers:
        reader.join(PATIENCE)

    assert answers == [True] * 50
    assert counts(stores, "GET") == 1


def test_reading_a_list_fetches_ahead(
    over: Callable[..., KeepfsMount], stores: list[KeepstoreControls]
) -> None:
    names = [stores[0].store_block(os.urandom(100_000)) for _ in range(3)]
    mount = over(stores[0])

    with (mount.by_id / ",".join(names)).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), 10, 0)
        wait_until(lambda: counts(stores, "GET") >= 2)

    assert (mount.by_id / ",".join(names)).stat().st_size == 300_000


def test_the_size_of_a_name_without_one_is_requested_by_head(
    over: Callable[..., KeepfsMount], stores: list[KeepstoreControls]
) -> None:
    digest, _, signature = stores[0].store_block(b"sized").split("+")
    mount = over(stores[0])

    assert (mount.by_id / f"{digest}+{signature}").read_bytes() == b"sized"


# --- faults ------------------------------------------------------------------------

#: Rows in which the mount answers otherwise than the cause says, and why.
_OTHERWISE = {
    "size over 64 MiB": errno.ENOENT,  # no such block can be: not even asked for
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_fault_of_a_service_has_an_errno(row: Row, unmounted: KeepfsMount) -> None:
    unmounted.options = (
        *("--retries", "0", "--copies", "1", "--lookup-wait", "0.3"),
        *("--request-timeout", "1.5"),
    )
    unmounted.is_local = False
    with KeepstoreControls() as store:
        unmounted.env = {"ARVADOS_KEEP_SERVICES": store.url, "ARVADOS_API_TOKEN": row.token}
        unmounted.mount()
        locator = row.arrange(store)

        got = errno_of((unmounted.by_id / locator).read_bytes)
        put = errno_of(lambda: (unmounted.upload / "file").write_bytes(row.block))

        expected = None if row.get is None else ERRNO_BY_CAUSE[row.get]
        assert got == _OTHERWISE.get(row.name, expected)
        assert put == (None if row.put is None else ERRNO_BY_CAUSE[row.put])
        state = os.getxattr(unmounted.upload / "file", "user.keep.state")
        if put is None:
            assert state == b"stored"
        else:
            assert state in {b"failed", b"storing"}
        assert row.token not in unmounted.log_file.read_text() or not row.token
        store.release()
        unmounted.clean_up()


@pytest.mark.parametrize("woe", ["dead", "slow", "corrupt", "full"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_any_one_of_three_services_may_be_bad(
    woe: str, which: int, over: Callable[..., KeepfsMount], stores: list[KeepstoreControls]
) -> None:
    block = os.urandom(100_000)
    locators = [store.store_block(block) for store in stores]
    mount = over(*stores)
    bad = stores[which]
    if woe == "dead":
        bad.go_down()
    elif woe == "slow":
        bad.always(Fault(pause={Stage.BEFORE_STATUS: 0.5}))
    elif woe == "corrupt":
        bad.corrupt(locators[0][:32])
    else:
        bad.configure_volume(capacity=0)

    assert (mount.by_id / locators[0]).read_bytes() == block
    (mount.upload / "file").write_bytes(b"stored all the same")

    assert int(os.getxattr(mount.upload / "file", "user.keep.copies")) == 2
    assert sum(len(store.log("PUT")) for store in stores) <= 3


# --- the token -----------------------------------------------------------------------

_OLD = "v2/zzzzz-gj3su-000000000000001/" + "o" * 41
_NEW = "v2/zzzzz-gj3su-000000000000002/" + "n" * 41


@pytest.fixture
def proxy(stores: list[KeepstoreControls]) -> Iterator[KeepproxyControls]:
    """A keepproxy, which knows good tokens from bad ones."""
    behind = [Store(f"zzzzz-bi6l4-{i:015}", store.url) for i, store in enumerate(stores)]
    with KeepproxyControls(ProxySettings(stores=behind, tokens=(_OLD,))) as it:
        yield it


def test_a_token_file_is_read_again_when_the_token_is_refused(
    over: Callable[..., KeepfsMount], proxy: KeepproxyControls, unmounted: KeepfsMount
) -> None:
    token_file = unmounted.base / "token"
    token_file.write_text(f"{_OLD}\n")
    unmounted.options = ("--token-file", str(token_file))
    mount = over(proxy, token="")
    (mount.upload / "before").write_bytes(b"before")
    proxy.configure(tokens=(_NEW,))
    with pytest.raises(PermissionError):
        (mount.upload / "between").write_bytes(b"between")

    token_file.write_text(_NEW)
    (mount.upload / "after").write_bytes(b"after")

    assert os.getxattr(mount.upload / "after", "user.keep.state") == b"stored"
    log = mount.log_file.read_text()
    assert "the token was reloaded" in log
    assert "o" * 41 not in log
    assert "n" * 41 not in log


def test_sighup_reads_the_settings_again(proxy: KeepproxyControls, unmounted: KeepfsMount) -> None:
    settings = unmounted.base / ".config" / "arvados" / "settings.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"ARVADOS_API_TOKEN={_OLD}\n")
    unmounted.is_local = False
    unmounted.env = {"ARVADOS_KEEP_SERVICES": proxy.url}
    unmounted.mount()
    proxy.configure(tokens=(_OLD, _NEW))
    settings.write_text(f"ARVADOS_API_TOKEN={_NEW}\n")

    os.kill(unmounted.pid(), signal.SIGHUP)

    wait_until(lambda: "the token was reloaded" in unmounted.log_file.read_text())
    (unmounted.upload / "file").write_bytes(b"with the new one")
    (entry, *_) = proxy.log("PUT")
    assert dict(entry.headers)["Authorization"] == f"Bearer {_NEW}"


# --- the command line ------------------------------------------------------------------


def test_commands_work_over_services(stores: list[KeepstoreControls], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "ARVADOS_KEEP_SERVICES": " ".join(store.url for store in stores),
        "ARVADOS_API_TOKEN": TEST_TOKEN,
    }
    (tmp_path / "file").write_bytes(b"by command")

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        return keepfs(*words, env=environment)

    put = run("put", str(tmp_path / "file"))
    locator = put.stdout.decode().partition("\t")[0]
    assert (put.returncode, put.stderr) == (0, b"")
    assert locator.startswith(hashlib.md5(b"by command", usedforsecurity=False).hexdigest())
    assert run("get", locator).stdout == b"by command"
    assert run("stat", locator).stdout == f"10\t{locator}\n".encode()

    verified = run("verify", locator)
    assert sorted(line.split("\t")[0] for line in verified.stdout.decode().splitlines()) == [
        "missing",
        "ok",
        "ok",
    ]
    assert verified.returncode == 0
    holders = [store for store in stores if store.counts().get("PUT")]
    holders[0].corrupt(locator[:32])
    damaged = run("verify", locator)
    assert damaged.returncode == 1
    assert f"DAMAGED\t{holders[0].url}/\t{locator}" in damaged.stdout.decode()
    assert run("get", locator).stdout == b"by command"

    where = run("where", locator)
    lines = where.stdout.decode().splitlines()
    assert lines[0] == locator
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"]
    assert where.returncode == 0
    nowhere = run("where", stores[0].sign("0" * 32 + "+5"))
    assert nowhere.returncode == 1
    assert b"missing" in nowhere.stdout


@pytest.mark.parametrize("row", PROXY_ROWS, ids=lambda row: row.name)
def test_a_fault_of_a_proxy_has_an_errno(
    row: ProxyRow, unmounted: KeepfsMount, stores: list[KeepstoreControls]
) -> None:
    unmounted.options = ("--retries", "0", "--copies", "2", "--lookup-wait", "0.3")
    unmounted.is_local = False
    used = stores[:2]
    behind = [Store(f"zzzzz-bi6l4-{i:015}", store.url) for i, store in enumerate(used)]
    with KeepproxyControls(ProxySettings(stores=behind)) as proxy:
        unmounted.env = {"ARVADOS_KEEP_SERVICES": proxy.url, "ARVADOS_API_TOKEN": row.token}
        unmounted.mount()
        locator = row.arrange(proxy, used)

        got = errno_of((unmounted.by_id / locator).read_bytes)
        put = errno_of(lambda: (unmounted.upload / "file").write_bytes(row.block))

        assert got == (None if row.get is None else ERRNO_BY_CAUSE[row.get])
        assert put == (None if row.put is None else ERRNO_BY_CAUSE[row.put])
        unmounted.clean_up()


# --- names that move while their bytes are on the way --------------------------------


def test_files_are_renamed_and_removed_while_they_are_stored(
    over: Callable[..., KeepfsMount], stores: list[KeepstoreControls], unmounted: KeepfsMount
) -> None:
    unmounted.options = ("--copies", "1")
    mount = over(stores[0])
    stores[0].always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")
    closed: list[int | None] = []

    def write(name: str) -> None:
        closed.append(errno_of(lambda: (mount.upload / name).write_bytes(name.encode())))

    writers = [threading.Thread(target=write, args=(name,)) for name in ("moved", "removed")]
    for writer in writers:
        writer.start()
    stores[0].wait_held(2)
    (mount.upload / "moved").rename(mount.upload / "elsewhere")
    (mount.upload / "removed").unlink()
    stores[0].always(Fault(), method="PUT")
    stores[0].release()
    for writer in writers:
        writer.join(PATIENCE)

    assert closed == [None, None]
    assert os.listdir(mount.upload) == ["elsewhere"]
    assert (mount.by_id / mount.locator(mount.upload / "elsewhere")).read_bytes() == b"moved"
    mount.unmount()
    mount.mount()
    assert os.listdir(mount.upload) == ["elsewhere"]


def test_unmounting_while_a_file_is_stored_waits_for_it(
    over: Callable[..., KeepfsMount], stores: list[KeepstoreControls], unmounted: KeepfsMount
) -> None:
    unmounted.options = ("--copies", "1")
    mount = over(stores[0])
    stores[0].always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")
    with (mount.upload / "file").open("wb", buffering=0) as file:
        file.write(b"on its way")
        pid = mount.pid()
        os.kill(pid, signal.SIGTERM)
        stores[0].wait_held(1)
        assert mount.is_mounted()
        stores[0].always(Fault(), method="PUT")
        stores[0].release()
        wait_until(lambda: not mount.is_mounted())
        with pytest.raises(OSError, match="Errno"):
            file.close()

    mount.mount()
    assert (mount.upload / "file").read_bytes() == b"on its way"


def test_a_process_that_stores_after_the_unmount_gives_up_its_device_number(
    over: Callable[..., KeepfsMount],
    stores: list[KeepstoreControls],
    unmounted: KeepfsMount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)  # as for the mount
    unmounted.options = ("--copies", "1", "--request-timeout", "1")
    mount = over(stores[0])
    stores[0].always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")
    with pytest.raises(OSError, match="Errno"):
        (mount.upload / "file").write_bytes(b"hangs")
    pid = mount.pid()
    before = runtime.find(mount.path)

    mountpoint.detach(mount.path)

    # The kernel may give the number to the next mount, which must not be taken for this one.
    wait_until(lambda: runtime.find(mount.path) != before)
    after = runtime.find(mount.path)
    assert before is not None
    assert after == dataclasses.replace(before, device=runtime.NO_DEVICE)
    said = keepfs("status", "--json", mount.path, env=mount.environment).stdout
    assert [(it["state"], it["pid"]) for it in json.loads(said)["mounts"]] == [("draining", pid)]
    stores[0].always(Fault(), method="PUT")
    stores[0].release()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or is_zombie(pid))
    mount.mount()
    assert (mount.upload / "file").read_bytes() == b"hangs"


def test_a_block_is_read_in_time_where_one_service_is_slow(
    over: Callable[..., KeepfsMount],
    unmounted: KeepfsMount,
    stores: list[KeepstoreControls],
) -> None:
    services = Services.of_uris(" ".join(f"{each.url}/" for each in stores))
    contents = (os.urandom(800_000) for _ in range(100))
    names = ((it, [each.store_block(it) for each in stores].pop()) for it in contents)
    block, name = next(
        (it, name)
        for it, name in names
        if probe_order(KeepLocator(name), services.records)[0].root == f"{stores[0].url}/"
    )
    # At its rate the block takes 20 s.
    slow = Fault(pause={Stage.BEFORE_STATUS: 1.5}, send_rate=40_000)
    stores[0].always(slow, method="GET")
    unmounted.options += ("--request-timeout", "12")
    mounted = over(*stores)

    assert (mounted.by_id / name).read_bytes() == block

    assert [each.counts().get("GET", 0) for each in stores].count(1) == 2


def test_files_are_stored_in_time_where_one_service_hangs(
    over: Callable[..., KeepfsMount],
    stores: list[KeepstoreControls],
) -> None:
    # More than the threads that store at a time, and longer than a test lasts.
    files = 12
    stores[0].always(Fault(hold=Stage.BEFORE_STATUS), method="PUT")
    mount = over(*stores)

    def copy(number: int) -> None:
        (mount.upload / f"file{number}").write_bytes(b"content of %d" % number)

    copies = [Running(functools.partial(copy, number)) for number in range(files)]
    for each in copies:
        each.result()

    for number in range(files):
        digest = hashlib.md5(b"content of %d" % number, usedforsecurity=False).hexdigest()
        assert all(digest in each.blocks() for each in stores[1:])
    before = stores[0].counts()["PUT"]
    for number in range(files, 2 * files):
        copy(number)
    assert stores[0].counts()["PUT"] == before < files
