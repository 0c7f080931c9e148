"""keepfs manifest, commit, import and uploads, on real mounts, beside the SDK of PyPI."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import random
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from keepfs.collections.builder import ManifestBuilder
from keepfs.collections.local_collections import LocalCollections
from keepfs.collections.manifest import Range
from keepfs.collections.parsing import parse
from keepfs.keep import LocalStore
from keepfs.keep.locator import EMPTY_BLOCK
from keepfs.mount import runtime
from keepfs.mount.control_requests import ControlConnection, ControlError
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    Authority,
    Fault,
    KeepstoreControls,
    Listening,
    ServiceEntry,
    Stage,
)
from tests.mount.test_runtime import another_process_serving
from tests.mounted.mounts import PATIENCE, KeepfsMount, keepfs, wait_until
from tests.mounted.packing import packed

if TYPE_CHECKING:
    from collections.abc import Iterator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the SDK's own imports say is not about us
    arvados = pytest.importorskip("arvados")
    sdk = pytest.importorskip("arvados.collection")

pytestmark = pytest.mark.filterwarnings("ignore")  # the SDK's own libraries warn of themselves

#: The SDK has no types.
SdkClient: TypeAlias = Any
ODD = ("a b", "tab\there", "back\\slash", "ü€", "new\nline", "colon:1:2", "\\040", "...", "-n")
ABSENT = "zzzzz-4zz18-000000000000000"


@pytest.fixture
def stores() -> Iterator[list[KeepstoreControls]]:
    """Two keepstores."""
    with KeepstoreControls() as one, KeepstoreControls() as two:
        yield [one, two]


@pytest.fixture
def cluster(
    unmounted: KeepfsMount,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stores: list[KeepstoreControls],
) -> Iterator[tuple[KeepfsMount, ApiControls]]:
    """A mount of a cluster of two keepstores, which the SDK's settings name too."""
    authority = Authority(tmp_path)
    with ApiControls(listening=Listening(tls=authority.certify())) as api:
        api.list_services([ServiceEntry.of(each.url, n) for n, each in enumerate(stores)])
        env = {
            "ARVADOS_API_HOST": api.host,
            "ARVADOS_API_TOKEN": TEST_TOKEN,
            "SSL_CERT_FILE": str(authority.bundle),
        }
        for name, value in {**env, "HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("ARVADOS_API_HOST_INSECURE", raising=False)
        unmounted.is_local = False
        unmounted.env = env
        unmounted.options = ("--retain", "off")  # no collection but those of the commands
        unmounted.mount()
        yield unmounted, api
        unmounted.clean_up()


@pytest.fixture
def client(cluster: tuple[KeepfsMount, ApiControls]) -> Iterator[Any]:
    """The SDK's client."""
    api = arvados.api("v1", host=cluster[1].host, token=TEST_TOKEN, cache=False)
    yield api
    api.close_connections()


def run(mount: KeepfsMount, *arguments: str | Path) -> str:
    """Run a command that succeeds; return what it printed."""
    done = keepfs(*arguments, env=mount.environment)
    assert done.returncode == 0, done.stderr.decode()
    return os.fsdecode(done.stdout)


def refusal(mount: KeepfsMount, *arguments: str | Path, code: int = 1) -> str:
    """Run a command that fails; return what it said."""
    done = keepfs(*arguments, env=mount.environment)
    assert done.returncode == code, done
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""
    return done.stderr.decode()


def commit(mount: KeepfsMount, path: Path, *options: str) -> tuple[str, str]:
    """Commit, and return uuid and portable data hash."""
    uuid, _, name = run(mount, "commit", path, *options).rstrip("\n").partition("\t")
    return uuid, name


def make_tree(top: Path) -> None:
    """Make files with odd names, empty ones, and empty folders."""
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "void" / "within").mkdir(parents=True)
    (top / "empty").write_bytes(b"")
    for number, name in enumerate(ODD):
        (top / name).write_bytes(os.urandom(number * 1000))
        (top / "sub" / "deep" / name).write_bytes(name.encode())


def read_with_sdk(client: SdkClient, locator: str, top: Path) -> None:
    """Write all of a collection below a directory, as the SDK reads it."""
    reader = sdk.CollectionReader(locator, api_client=client)

    def copy(folder: SdkClient, target: Path) -> None:
        target.mkdir(exist_ok=True)
        for name in folder:
            if isinstance(folder[name], sdk.Subcollection):
                copy(folder[name], target / name)
            else:
                with folder.open(name, "rb") as file:
                    (target / name).write_bytes(file.read())

    copy(reader, top)
    reader.stop_threads()


def differences(one: Path, other: Path) -> str:
    """Compare two trees."""
    return subprocess.run(
        ["diff", "-r", one, other], capture_output=True, text=True, check=False
    ).stdout


# --- commit ------------------------------------------------------------------------------------


def test_the_sdk_reads_all_of_a_committed_tree(
    cluster: tuple[KeepfsMount, ApiControls], client: SdkClient, tmp_path: Path
) -> None:
    mount, api = cluster
    make_tree(mount.upload / "tree")

    uuid, name = commit(
        mount, mount.upload / "tree", "--name", "result", "--properties", '{"a": [1]}',
        "--replication", "3", "--storage-classes", "default,hot",
        "--trash-at", "2999-12-31T00:00:00Z",
    )  # fmt: skip

    [kept] = api.collections()
    assert (kept["uuid"], kept["portable_data_hash"], kept["name"]) == (uuid, name, "result")
    assert (kept["properties"], kept["replication_desired"]) == ({"a": [1]}, 3)
    assert kept["storage_classes_desired"] == ["default", "hot"]
    assert kept["trash_at"].startswith("2999-12-31T00:00:00")
    read_with_sdk(client, uuid, tmp_path / "back")
    assert differences(mount.upload / "tree", tmp_path / "back") == ""
    assert (tmp_path / "back" / "void" / "within").is_dir()


def test_one_file_is_committed_by_its_name(
    cluster: tuple[KeepfsMount, ApiControls], client: SdkClient, tmp_path: Path
) -> None:
    mount, _ = cluster
    (mount.upload / "a b").write_bytes(b"one")

    _, name = commit(mount, mount.upload / "a b", "--name", "file")

    read_with_sdk(client, name, tmp_path / "back")
    assert [(it.name, it.read_bytes()) for it in (tmp_path / "back").iterdir()] == [
        ("a b", b"one")
    ]


def test_five_thousand_files_are_committed_and_read(
    cluster: tuple[KeepfsMount, ApiControls], client: SdkClient, tmp_path: Path
) -> None:
    mount, api = cluster
    for folder in range(50):
        (mount.upload / f"{folder}").mkdir()
        for number in range(100):
            (mount.upload / f"{folder}" / f"{number}").write_bytes(f"{number % 7}".encode())

    uuid, _ = commit(mount, mount.upload, "--name", "many")

    assert api.collections()[0]["file_count"] == 5000
    read_with_sdk(client, uuid, tmp_path / "back")
    assert differences(mount.upload, tmp_path / "back") == ""


def test_a_file_that_is_being_written_is_stored_first(
    cluster: tuple[KeepfsMount, ApiControls],
) -> None:
    mount, api = cluster
    with (mount.upload / "open").open("wb", buffering=0) as file:
        file.write(b"so far")
        commit(mount, mount.upload / "open", "--name", "open")

    assert api.collections()[0]["file_size_total"] == 6


def test_a_file_that_cannot_be_stored_is_refused_by_name(mount: KeepfsMount) -> None:
    away = mount.store.with_name("away")
    mount.store.rename(away)
    mount.store.write_bytes(b"")  # where the directory should be
    with pytest.raises(OSError, match="Errno"):
        (mount.upload / "failed").write_bytes(b"x")

    said = refusal(mount, "commit", mount.upload)
    mount.store.unlink()
    away.rename(mount.store)

    assert "1 name not stored" in said
    assert "'failed': " in said
    _, name = commit(mount, mount.upload)
    record = LocalCollections(mount.store).get(name)
    assert record.manifest == b". 9dd4e461268c8034f5c8564e155c67a6+1 0:1:failed\n"


def test_update_refuses_a_collection_that_others_have_changed(
    cluster: tuple[KeepfsMount, ApiControls], client: SdkClient
) -> None:
    mount, api = cluster
    tree = mount.upload / "tree"
    tree.mkdir()
    (tree / "one").write_bytes(b"one")
    uuid, first = commit(mount, tree, "--name", "result")
    (tree / "two").write_bytes(b"two")

    again, second = commit(mount, tree, "--update", uuid)
    assert (again, second != first, len(api.collections())) == (uuid, True, 1)

    other = sdk.Collection(uuid, api_client=client)
    with other.open("three", "wb") as file:
        file.write(b"three")
    other.save()
    other.stop_threads()
    now = api.collections()[0]["portable_data_hash"]
    said = refusal(mount, "commit", tree, "--update", uuid)

    assert f"its files were changed at {api.collections()[0]['modified_at']} by " in said
    assert f"portable_data_hash is {now}, not {second}" in said
    assert api.collections()[0]["portable_data_hash"] == now
    assert commit(mount, tree, "--update", uuid, "--expect", now) == (uuid, second)


def test_an_update_of_an_unknown_collection_needs_expect(
    cluster: tuple[KeepfsMount, ApiControls],
) -> None:
    mount, _ = cluster
    (mount.upload / "file").write_bytes(b"x")

    said = refusal(mount, "commit", mount.upload / "file", "--update", ABSENT)

    assert f"was neither imported from {ABSENT} nor committed to it: give --expect" in said


def test_a_name_in_use_is_refused_or_made_unique(
    cluster: tuple[KeepfsMount, ApiControls],
) -> None:
    mount, api = cluster
    (mount.upload / "file").write_bytes(b"x")
    uuid, _ = commit(mount, mount.upload, "--name", "taken")

    said = refusal(mount, "commit", mount.upload, "--name", "taken")
    commit(mount, mount.upload, "--name", "taken", "--ensure-unique-name")

    assert f"{uuid} of " in said
    assert f"--ensure-unique-name, or --update {uuid}" in said
    assert len({each["name"] for each in api.collections()}) == 2


def test_a_manifest_over_the_request_limit_is_refused_with_advice(
    cluster: tuple[KeepfsMount, ApiControls],
) -> None:
    mount, api = cluster
    (mount.upload / "file").write_bytes(b"x")
    api.configure(max_request_size=100)

    said = refusal(mount, "commit", mount.upload, "--name", "big")

    assert "the cluster takes requests of 100 at most (API.MaxRequestSize)" in said
    assert "commit its folders one by one" in said


def test_blocks_whose_signature_has_ended_are_refused_by_name(
    cluster: tuple[KeepfsMount, ApiControls],
) -> None:
    mount, _ = cluster
    (mount.upload / "file").write_bytes(b"x")
    mount.unmount()
    with contextlib.closing(sqlite3.connect(mount.base / "state" / "catalog.sqlite")) as database:
        [(content,)] = database.execute("SELECT content FROM entries WHERE size = 1")
        ended = re.sub(rb"@[0-9a-f]{8}", b"@4d000000", content)
        database.execute("UPDATE entries SET content = ? WHERE size = 1", (ended,))
        database.commit()
    mount.mount()

    said = refusal(mount, "commit", mount.upload, "--name", "late")

    assert "the signatures of their blocks have ended" in said
    assert "'file': signed until 2010-12-0" in said
    assert "0:1:file" in run(mount, "manifest", "--strip", mount.upload)


# --- links and names ---------------------------------------------------------------------------


def test_symlinks_are_refused_by_name_or_followed_within_the_tree(mount: KeepfsMount) -> None:
    tree = mount.upload / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(b"x")
    (tree / "link").symlink_to("sub/file")
    (tree / "folder").symlink_to(tree / "sub")

    said = refusal(mount, "manifest", tree)
    text = run(mount, "manifest", "--follow", tree)

    assert "2 names can't be in a manifest" in said
    assert "--follow, or remove the links" in said
    assert "'link': manifests have no symbolic links" in said
    assert [it.path for it in parse(text).files()] == ["link", "folder/file", "sub/file"]

    for name, target in (
        ("out", "../../.."), ("away", "/etc/passwd"), ("gone", "nothing"), ("self", "self"),
        ("sub/up", ".."),
    ):  # fmt: skip
        (tree / name).symlink_to(target)
    said = refusal(mount, "manifest", "--follow", tree)

    assert "'out': it points out of the tree" in said
    assert "'away': it points out of the tree, to '/etc/passwd'" in said
    assert "'gone': it points to 'nothing': not stored in the tree" in said
    assert "'self': it leads to itself: a loop" in said
    assert "'sub/up': it points to a directory that it is in: a loop" in said


def test_any_name_is_in_a_manifest(mount: KeepfsMount) -> None:
    (mount.upload / os.fsdecode(b"bad\xff")).write_bytes(b"x")

    text = run(mount, "manifest", mount.upload)

    assert text == ". 9dd4e461268c8034f5c8564e155c67a6+1 0:1:bad\\377\n"
    assert [it.path for it in parse(text).files()] == [os.fsdecode(b"bad\xff")]


# --- manifest ----------------------------------------------------------------------------------


def test_manifest_is_signed_or_stripped_and_written_whole(
    cluster: tuple[KeepfsMount, ApiControls], tmp_path: Path
) -> None:
    mount, _ = cluster
    (mount.upload / "file").write_bytes(b"foo")

    signed = run(mount, "manifest", mount.upload / "file")
    stripped = run(mount, "manifest", "--strip", mount.upload / "file")
    run(mount, "manifest", mount.upload / "file", "--output", tmp_path / "text")

    assert f" {mount.locator(mount.upload / 'file')} 0:3:file\n" in signed
    assert "+A" in signed
    assert stripped == ". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:file\n"
    assert (tmp_path / "text").read_text() == signed
    said = refusal(mount, "manifest", mount.upload / "file", "-o", tmp_path / "no" / "text")
    assert f"{tmp_path}/no/text: No such file" in said


def test_a_path_elsewhere_is_refused_and_bind_mounts_are_followed(
    mount: KeepfsMount, tmp_path: Path
) -> None:
    (mount.upload / "sub").mkdir()
    (mount.upload / "sub" / "file").write_bytes(b"foo")
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "bound").mkdir()

    for path in (tmp_path / "elsewhere", mount.path, mount.by_id, mount.path / "README"):
        said = refusal(mount, "manifest", path)
        assert f"{path} isn't in upload/ of a mount of keepfs: copy it there first" in said
    assert "No such file" in refusal(mount, "manifest", mount.upload / "none")

    if os.geteuid() != 0:
        pytest.skip("only root binds")
    subprocess.run(["mount", "--bind", mount.upload / "sub", tmp_path / "bound"], check=True)
    try:
        text = run(mount, "manifest", tmp_path / "bound" / "file")
    finally:
        subprocess.run(["umount", tmp_path / "bound"], check=True)
    assert text == run(mount, "manifest", mount.upload / "sub" / "file")


def test_run_files_with_the_device_number_of_a_mount_are_not_taken_for_it(
    mount: KeepfsMount, tmp_path: Path
) -> None:
    (mount.upload / "file").write_bytes(b"foo")
    number = os.minor(mount.path.stat().st_dev)
    (tmp_path / "bound").mkdir()
    with contextlib.ExitStack() as stack:
        # Mounts that were unmounted a moment ago; several, as any may come first in a list.
        for name in "abcdef":
            stack.enter_context(another_process_serving(tmp_path / name, number))

        assert run(mount, "manifest", mount.upload / "file")
        if os.geteuid() == 0:
            subprocess.run(["mount", "--bind", mount.upload, tmp_path / "bound"], check=True)
            done = keepfs("unmount", tmp_path / "bound", env=mount.environment)
            assert (done.returncode, done.stderr) == (0, b"")
    assert mount.is_mounted()


# --- a local store -----------------------------------------------------------------------------


def test_a_local_store_keeps_manifests_by_their_hash(mount: KeepfsMount) -> None:
    make_tree(mount.upload / "tree")

    done = keepfs("commit", mount.upload / "tree", "--name", "n", env=mount.environment)
    uuid, _, name = done.stdout.decode().rstrip("\n").partition("\t")

    assert (done.returncode, uuid) == (0, "-")
    assert b"a local store keeps no names" in done.stderr
    record = LocalCollections(mount.store).get(name)
    assert record.manifest is not None
    assert record.manifest.decode() == run(mount, "manifest", "--strip", mount.upload / "tree")
    assert LocalCollections(mount.store).names() == [name]
    for options in (("--project", "p"), ("--update", ABSENT), ("--trash-at", "2999-01-01")):
        assert "the mount has a local store" in refusal(
            mount, "commit", mount.upload / "tree", *options, code=2
        )


# --- uploads and locate ------------------------------------------------------------------------


def test_uploads_lists_stored_and_unstored_files(
    cluster: tuple[KeepfsMount, ApiControls],
) -> None:
    mount, _ = cluster
    (mount.upload / "sub").mkdir()
    (mount.upload / "sub" / "file").write_bytes(b"foo")
    (mount.upload / os.fsdecode(b"odd\xff\n")).write_bytes(b"")

    lines = run(mount, "uploads", "--json", mount.path).splitlines()
    text = run(mount, "uploads", "-0", mount.path).split("\0")

    first, second = map(json.loads, lines)
    locator = mount.locator(mount.upload / "sub" / "file")
    expires = os.getxattr(mount.upload / "sub" / "file", "user.keep.expires").decode()
    odd = os.fsdecode(b"odd\xff\n")
    assert (first["path"], first["size"], first["state"]) == (odd, 0, "stored")
    assert ",".join(first["locators"]) == mount.locator(mount.upload / odd)
    assert second == {
        "path": "sub/file", "size": 3, "state": "stored", "copies": 2, "expires": expires,
        "locators": [locator], "error": "",
    }  # fmt: skip
    assert text[0].endswith(f"\t{odd}")
    assert text[1] == f"3\tstored\t1\t{expires}\tsub/file"
    assert mount.unmount().returncode == 0
    state_dir = ("--state-dir", mount.base / "state")
    assert run(mount, "uploads", *state_dir, "--json", mount.path).splitlines() == lines


def test_uploads_lists_files_that_failed(mount: KeepfsMount) -> None:
    away = mount.store.with_name("away")
    mount.store.rename(away)
    mount.store.write_bytes(b"")  # where the directory should be
    with pytest.raises(OSError, match="Errno"):
        (mount.upload / "failed").write_bytes(b"x")

    [found] = map(json.loads, run(mount, "uploads", "--json", mount.path).splitlines())
    mount.store.unlink()
    away.rename(mount.store)

    assert (found["path"], found["size"], found["state"]) == ("failed", 1, "failed")
    assert found["error"]


def test_uploads_lost_names_the_files_whose_blocks_are_gone(
    cluster: tuple[KeepfsMount, ApiControls], stores: list[KeepstoreControls]
) -> None:
    mount, _ = cluster
    (mount.upload / "kept").write_bytes(b"kept")
    (mount.upload / "gone").write_bytes(b"gone")
    digest = mount.locator(mount.upload / "gone")[:32]
    assert run(mount, "uploads", "--lost", mount.path) == ""
    for store in stores:
        store.remove_block(digest)

    done = keepfs("uploads", "--lost", "--json", mount.path, env=mount.environment)

    assert done.returncode == 1
    [found] = map(json.loads, done.stdout.splitlines())
    assert (found["path"], found["state"]) == ("gone", "lost")
    assert digest in found["error"]
    checked = keepfs("uploads", "--check", "--progress", mount.path, env=mount.environment)
    states = checked.stdout.decode()
    assert [line.split("\t")[1] for line in states.splitlines()] == ["lost", "stored"]
    assert b"checking" in checked.stderr
    env = {**mount.environment, "ARVADOS_API_TOKEN": "v2/zzzzz-gj3su-000000000000000/expired"}
    refused = keepfs("uploads", "--check", mount.path, env=env)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"token" in refused.stderr


@pytest.mark.parametrize("is_expired", [False, True])
def test_a_refused_block_is_lost_only_if_its_signature_has_ended(
    cluster: tuple[KeepfsMount, ApiControls],
    stores: list[KeepstoreControls],
    *,
    is_expired: bool,
) -> None:
    mount, _ = cluster
    if is_expired:
        for store in stores:
            store.configure(ttl=1.0)
    (mount.upload / "file").write_bytes(b"content")
    expiry = os.getxattr(mount.upload / "file", "user.keep.expires").decode()
    wait_until(
        lambda: not is_expired or dt.datetime.fromisoformat(expiry) < dt.datetime.now(dt.UTC)
    )
    for store in stores:
        store.always(Fault(status=403), method="HEAD")

    done = keepfs("uploads", "--check", "--json", mount.path, env=mount.environment)
    lost = keepfs("uploads", "--lost", mount.path, env=mount.environment)

    [found] = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, lost.returncode) == (1, 1)
    assert (found["path"], found["state"]) == ("file", "lost" if is_expired else "unknown")
    assert ("its signature is valid until" in found["error"]) == (not is_expired)
    assert ("its signature is valid until" in done.stderr.decode()) == (not is_expired)
    assert bool(lost.stdout) == is_expired


def test_locate_writes_a_list_too_long_for_an_attribute(
    mount: KeepfsMount, tmp_path: Path
) -> None:
    big = mount.upload / "big"
    with big.open("wb") as file:
        file.truncate(2048 << 26)  # 2048 blocks of 64 MiB, all the same
    with pytest.raises(OSError, match="Errno"):
        os.getxattr(big, "user.keep.locator")

    assert "--output" in refusal(mount, "locate", big)
    run(mount, "locate", "--output", tmp_path / "list", big)
    run(mount, "locate", "--manifest", "--output", tmp_path / "text", big)

    lines = (tmp_path / "list").read_text().splitlines()
    assert len(lines) == 2048
    assert set(lines) == {"7f614da9329cd3aebf59b91aadc30bf0+67108864"}
    [file_] = parse((tmp_path / "text").read_bytes()).files()
    assert (file_.path, file_.size) == ("big", 2048 << 26)
    assert "one FILE" in refusal(mount, "locate", "--output", tmp_path / "x", big, big, code=2)


# --- the SDK's programs --------------------------------------------------------------------------

BIN = Path(sys.executable).parent


def run_sdk(program: str, *arguments: str | Path) -> str:
    """Run one of the SDK's programs; return what it printed."""
    done = subprocess.run(
        [BIN / program, *arguments], capture_output=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_arv_ls_and_arv_get_read_what_was_committed(
    cluster: tuple[KeepfsMount, ApiControls], tmp_path: Path
) -> None:
    mount, _ = cluster
    tree = mount.upload / "tree"
    (tree / "sub").mkdir(parents=True)
    for number in range(20):
        (tree / f"f {number}").write_bytes(os.urandom(number * 100))
        (tree / "sub" / f"g{number}").write_bytes(b"g")
    uuid, _ = commit(mount, tree, "--name", "for arv-get")

    assert sorted(run_sdk("arv-ls", uuid).splitlines()) == sorted(
        [f"./f {n}" for n in range(20)] + [f"./sub/g{n}" for n in range(20)]
    )
    (tmp_path / "got").mkdir()
    run_sdk("arv-get", "--no-progress", f"{uuid}/", tmp_path / "got")
    assert differences(tree, tmp_path / "got") == ""


def test_files_stored_by_arv_put_are_in_collections(
    cluster: tuple[KeepfsMount, ApiControls], stores: list[KeepstoreControls], tmp_path: Path
) -> None:
    mount, _ = cluster
    source = tmp_path / "source"
    (source / "sub" / "deep").mkdir(parents=True)
    for number in range(300):
        (source / "sub" / f"{number}").write_bytes(os.urandom(number))
    (source / "sub" / "deep" / "a b").write_bytes(b"odd")

    uuid = run_sdk("arv-put", "--no-progress", "--no-resume", f"{source}/").strip()
    for store in stores:
        store.clear_log()
    run(mount, "import", uuid, mount.upload / "it")
    _, again = commit(mount, mount.upload / "it", "--name", "again")
    assert [entry for store in stores for entry in store.log()] == []

    assert differences(source, mount.upload / "it") == ""
    assert differences(source, mount.path / "collections" / uuid) == ""
    name = os.getxattr(mount.path / "collections" / uuid, "user.keep.pdh").decode()
    assert name == again
    assert differences(source, mount.path / "collections" / name) == ""


def test_thousands_of_files_of_the_sdk_are_in_collections(
    cluster: tuple[KeepfsMount, ApiControls], client: SdkClient, tmp_path: Path
) -> None:
    mount, _ = cluster
    written = sdk.Collection(api_client=client)
    for number in range(3000):
        folder = tmp_path / "source" / f"d{number % 30}"
        folder.mkdir(parents=True, exist_ok=True)
        name, content = f"{ODD[number % len(ODD)]}{number}", f"{number}".encode() * (number % 9)
        (folder / name).write_bytes(content)
        with written.open(f"d{number % 30}/{name}", "wb") as file:
            file.write(content)
    written.save_new(name="thousands")
    uuid = written.manifest_locator()
    written.stop_threads()

    assert differences(tmp_path / "source", mount.path / "collections" / uuid) == ""


# --- import ------------------------------------------------------------------------------------


def test_import_of_whole_blocks_moves_no_data(
    cluster: tuple[KeepfsMount, ApiControls], stores: list[KeepstoreControls]
) -> None:
    mount, _ = cluster
    make_tree(mount.upload / "tree")
    uuid, name = commit(mount, mount.upload / "tree", "--name", "result")
    for store in stores:
        store.clear_log()

    done = keepfs("import", uuid, mount.upload / "again", env=mount.environment)

    assert (done.returncode, os.fsdecode(done.stdout)) == (0, f"{name}\t{mount.upload}/again\n")
    assert done.stderr == b"keepfs: 19 files imported\n"
    assert [entry.method for store in stores for entry in store.log()] == []
    assert os.getxattr(mount.upload / "again" / "a b", "user.keep.copies") == b"unknown"
    listed = [json.loads(it) for it in run(mount, "uploads", "--json", mount.path).splitlines()]
    copies = {it["path"]: it["copies"] for it in listed}
    assert (copies["tree/tab\there"], copies["again/tab\there"]) == (2, None)
    assert differences(mount.upload / "tree", mount.upload / "again") == ""
    mount.unmount()
    mount.mount()
    assert differences(mount.upload / "tree", mount.upload / "again") == ""
    assert run(mount, "manifest", "--strip", mount.upload / "again") == run(
        mount, "manifest", "--strip", mount.upload / "tree"
    )


def test_a_collection_of_the_sdk_is_imported_changed_and_committed_again(
    cluster: tuple[KeepfsMount, ApiControls], client: SdkClient, tmp_path: Path
) -> None:
    mount, _ = cluster
    make_tree(tmp_path / "source")
    written = sdk.Collection(api_client=client)
    for path in sorted((tmp_path / "source").rglob("*")):
        if path.is_file():
            with written.open(str(path.relative_to(tmp_path / "source")), "wb") as file:
                file.write(path.read_bytes())
    written.mkdirs("void/within")
    written.save_new(name="of the SDK")
    uuid = written.manifest_locator()
    written.stop_threads()

    done = keepfs("import", uuid, mount.upload / "it", env=mount.environment)

    assert done.returncode == 0, done.stderr
    assert b"stored anew" not in done.stderr
    assert differences(tmp_path / "source", mount.upload / "it") == ""
    (mount.upload / "it" / "sub" / "new").write_bytes(b"new")
    (mount.upload / "it" / "a b").unlink()
    assert commit(mount, mount.upload / "it", "--update", uuid)[0] == uuid
    read_with_sdk(client, uuid, tmp_path / "back")
    assert differences(mount.upload / "it", tmp_path / "back") == ""


def make_packed(client: SdkClient, source: Path, count: int) -> tuple[str, str]:
    """Make files in folders, and a collection with them in one block; return uuid and hash."""
    written = sdk.Collection(api_client=client)
    for number in range(count):
        folder = source / f"d{number % 30}"
        folder.mkdir(parents=True, exist_ok=True)
        name, content = f"{ODD[number % len(ODD)]}{number}", f"{number}".encode() * (number % 9)
        (folder / name).write_bytes(content)
        file = written.open(f"d{number % 30}/{name}", "wb")
        file.write(content)
        file.close(flush=False)  # so that the SDK packs it with others
    written.save_new(name="packed")
    found = written.manifest_locator(), written.portable_data_hash()
    written.stop_threads()
    return found


def test_import_of_thousands_of_packed_files_moves_no_data_and_survives_a_kill(
    cluster: tuple[KeepfsMount, ApiControls],
    client: SdkClient,
    stores: list[KeepstoreControls],
    tmp_path: Path,
) -> None:
    mount, _ = cluster
    uuid, name = make_packed(client, tmp_path / "source", 3000)
    for store in stores:
        store.clear_log()

    done = keepfs("import", uuid, mount.upload / "it", env=mount.environment)
    requests = [entry.method for store in stores for entry in store.log()]
    mount.kill()
    mount.mount()

    assert done.stderr == b"keepfs: 3000 files imported\n"
    assert commit(mount, mount.upload / "it", "--name", "again")[1] == name
    requests += [
        entry.method for store in stores for each in ("GET", "PUT") for entry in store.log(each)
    ]
    assert requests == []
    assert differences(tmp_path / "source", mount.upload / "it") == ""
    read = [entry for store in stores for entry in store.log("GET")]
    assert len(read) == 1  # the one block, out of which all files are read
    assert [entry for store in stores for entry in store.log("PUT")] == []


def test_a_change_of_a_packed_file_leaves_the_others_in_their_blocks(
    cluster: tuple[KeepfsMount, ApiControls],
    client: SdkClient,
    stores: list[KeepstoreControls],
    tmp_path: Path,
) -> None:
    mount, _ = cluster
    uuid, name = make_packed(client, tmp_path / "source", 600)
    run(mount, "import", uuid, mount.upload / "it")
    old = parse(run(mount, "manifest", "--strip", mount.upload / "it"))
    changed = [path for path in (it.path for it in old.files()) if path.endswith("44")][:3]
    for store in stores:
        store.clear_log()

    for path, change in zip(changed, ("middle", "append", "truncate"), strict=True):
        for top in (mount.upload / "it", tmp_path / "source"):
            with (top / path).open("r+b") as file:
                file.seek(1 if change == "middle" else 0, os.SEEK_SET)
                if change == "append":
                    file.seek(0, os.SEEK_END)
                if change == "truncate":
                    file.truncate(2)
                else:
                    file.write(b"!")
    puts = [entry for store in stores for entry in store.log("PUT")]
    new = parse(run(mount, "manifest", "--strip", mount.upload / "it"))

    assert old.portable_data_hash() == name
    assert len(puts) == 3 * 2
    for before, after in zip(old.files(), new.files(), strict=True):
        assert before.path == after.path
        assert (list(before.ranges()) == list(after.ranges())) is (before.path not in changed)
    assert commit(mount, mount.upload / "it", "--update", uuid)[0] == uuid
    read_with_sdk(client, uuid, tmp_path / "back")
    assert differences(tmp_path / "source", tmp_path / "back") == ""
    assert differences(tmp_path / "source", mount.upload / "it") == ""


def test_a_packed_file_has_the_locators_of_its_blocks_as_in_collections(
    cluster: tuple[KeepfsMount, ApiControls], client: SdkClient, tmp_path: Path
) -> None:
    mount, _ = cluster
    uuid, _ = make_packed(client, tmp_path / "source", 90)
    run(mount, "import", uuid, mount.upload / "it")
    path = f"d17/{ODD[17 % len(ODD)]}17"
    file, same = mount.upload / "it" / path, mount.path / "collections" / uuid / path

    assert mount.locator(file).split("+A")[0] == mount.locator(same).split("+A")[0]
    assert os.listdir(mount.by_id) == [str(EMPTY_BLOCK)]  # of the empty files
    run(mount, "locate", "--output", tmp_path / "list", file)
    run(mount, "locate", "--manifest", "--output", tmp_path / "text", file)
    assert (tmp_path / "list").read_text() == f"{mount.locator(file)}\n"
    [found] = parse((tmp_path / "text").read_bytes()).files()
    [part] = found.ranges()
    block = (mount.by_id / part.locator).read_bytes()
    content = (tmp_path / "source" / path).read_bytes()
    assert part.offset > 0
    assert block[part.offset : part.offset + part.length] == content
    [listed] = [
        it
        for it in map(json.loads, run(mount, "uploads", "--json", mount.path).splitlines())
        if it["path"] == f"it/{path}"
    ]
    assert (listed["size"], listed["locators"]) == (len(content), [mount.locator(file)])


def test_all_files_of_a_packed_block_are_lost_with_it(
    cluster: tuple[KeepfsMount, ApiControls],
    client: SdkClient,
    stores: list[KeepstoreControls],
    tmp_path: Path,
) -> None:
    mount, _ = cluster
    uuid, _ = make_packed(client, tmp_path / "source", 9)
    run(mount, "import", uuid, mount.upload / "it")
    file = mount.upload / "it" / "d4" / f"{ODD[4]}4"
    digest = mount.locator(file)[:32]
    for store in stores:
        store.remove_block(digest)

    done = keepfs("uploads", "--lost", "--json", mount.path, env=mount.environment)

    lost = [json.loads(it)["path"] for it in done.stdout.splitlines()]
    assert (done.returncode, len(lost)) == (1, 8)  # the first of the nine is empty
    with pytest.raises(OSError, match="Input/output error"):
        file.read_bytes()
    with pytest.raises(OSError, match="Input/output error"), file.open("r+b") as changed:
        changed.write(b"!")
    assert os.getxattr(file, "user.keep.state") == b"lost"


def test_files_over_several_blocks_are_changed_as_on_a_local_disk(
    mount: KeepfsMount, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    chosen = random.Random(14)  # noqa: S311 - no secret
    for number in range(40):
        (source / f"{number}").write_bytes(chosen.randbytes(chosen.randrange(30_000)))
    store = LocalStore(mount.store)
    manifest = packed(source, lambda block: str(store.put(block).locator), 10_007)
    name = LocalCollections(mount.store).put(manifest).portable_data_hash

    run(mount, "import", name, mount.upload / "it")
    assert differences(source, mount.upload / "it") == ""
    for _ in range(100):
        number, offset = chosen.randrange(40), chosen.randrange(35_000)
        content = chosen.randbytes(chosen.choice([0, 1, 5000]))
        for top in (source, mount.upload / "it"):
            with (top / f"{number}").open("r+b") as file:
                if content:
                    file.seek(offset)
                    file.write(content)
                else:
                    file.truncate(offset)

    assert differences(source, mount.upload / "it") == ""
    mount.kill()
    mount.mount()
    assert differences(source, mount.upload / "it") == ""
    _, again = commit(mount, mount.upload / "it")
    assert differences(source, mount.path / "collections" / again) == ""


def test_a_file_in_too_many_pieces_is_stored_anew(mount: KeepfsMount) -> None:
    (mount.upload / "block").write_bytes(b"b-a")
    builder = ManifestBuilder()
    locator = mount.locator(mount.upload / "block")
    builder.add_file("scattered", [(locator, 2 - n % 2 * 2, 1) for n in range(65537)])
    builder.add_file("part", [(locator, 2, 1)])
    name = LocalCollections(mount.store).put(builder.build()).portable_data_hash

    done = keepfs("import", name, mount.upload / "it", env=mount.environment)

    said = "2 files imported; 1 of them (65537 bytes), of too many pieces, were stored anew"
    assert done.stderr.decode() == f"keepfs: {said}\n"
    assert (mount.upload / "it" / "scattered").read_bytes() == b"ab" * 32768 + b"a"
    assert (mount.upload / "it" / "part").read_bytes() == b"a"


def test_import_refuses_wrong_sources_and_targets(
    cluster: tuple[KeepfsMount, ApiControls], tmp_path: Path
) -> None:
    mount, _ = cluster
    (mount.upload / "full").mkdir()
    (mount.upload / "full" / "file").write_bytes(b"x")
    uuid, _ = commit(mount, mount.upload / "full", "--name", "one")

    assert "exists and isn't empty" in refusal(mount, "import", uuid, mount.upload / "full")
    assert "isn't in upload/" in refusal(mount, "import", uuid, tmp_path / "elsewhere")
    assert ABSENT in refusal(mount, "import", ABSENT, mount.upload / "none")
    assert "neither" in refusal(mount, "import", "x", mount.upload / "none", code=2)
    assert os.listdir(mount.upload) == ["full"]


def test_two_imports_to_one_folder_do_not_mix(
    cluster: tuple[KeepfsMount, ApiControls],
    stores: list[KeepstoreControls],
    client: SdkClient,
) -> None:
    mount, _ = cluster
    (mount.upload / "block").write_bytes(b"b-a")
    locator = mount.locator(mount.upload / "block")
    uuids = []
    for pieces in (65537, 1):
        builder = ManifestBuilder()
        builder.add_file(f"of {pieces}", [(locator, 2 - n % 2 * 2, 1) for n in range(pieces)])
        body = {"manifest_text": builder.build().text(), "name": f"of {pieces}"}
        uuids.append(client.collections().create(body={"collection": body}).execute()["uuid"])
    target = mount.upload / "it"
    for store in stores:
        store.always(Fault(hold=Stage.BEFORE_STATUS), method="GET")
    with subprocess.Popen(
        [sys.executable, "-m", "keepfs", "import", uuids[0], target],
        stderr=subprocess.PIPE,
        env=mount.environment,
    ) as first:
        wait_until(lambda: any(store.under_way("GET") for store in stores))

        run(mount, "import", uuids[1], target)  # reads no block

        for store in stores:
            store.heal()
        _, said = first.communicate(timeout=PATIENCE)
    assert first.returncode == 1
    assert f"{target} exists, made meanwhile by another program [folder-exists]" in said.decode()
    assert os.listdir(target) == ["of 1"]


def test_a_name_of_255_bytes_is_imported(mount: KeepfsMount) -> None:
    (mount.upload / "tree").mkdir()
    (mount.upload / "tree" / "file").write_bytes(b"x")
    _, name = commit(mount, mount.upload / "tree")
    target = mount.upload / ("名" * 85)

    run(mount, "import", name, target)

    assert os.listdir(target) == ["file"]


def test_a_local_store_imports_by_hash_into_an_empty_folder(mount: KeepfsMount) -> None:
    make_tree(mount.upload / "tree")
    with (mount.upload / "tree" / "big").open("wb") as file:
        file.truncate((3 << 26) + 5)
    _, name = commit(mount, mount.upload / "tree")
    (mount.upload / "empty").mkdir()

    run(mount, "import", name, mount.upload / "empty")

    assert differences(mount.upload / "tree", mount.upload / "empty") == ""
    assert "by portable data hash only" in refusal(mount, "import", ABSENT, mount.upload / "other")


def test_invalid_control_requests_change_nothing(
    mount: KeepfsMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mount.upload / "file").write_bytes(b"x")
    for name in os.environ:
        if name.startswith("XDG_"):
            monkeypatch.delenv(name)
    path = runtime.control_socket(mount.path)
    block = "9dd4e461268c8034f5c8564e155c67a6"

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    good = Range(f"{block}+1", 0, 1)
    for directory, name, ranges, why in (
        ("", "file", [good], "File exists"),
        ("none", "new", [good], "No such file"),
        ("file", "new", [good], "Not a directory"),
        ("", "a/b", [good], "is no name"),
        ("", "new", [Range(block, 0, 1)], "has no size"),
        ("", "new", [good, Range(f"{block}+1", 1, 1)], "a length is 1, not from 0 to 0"),
        ("", "new", [Range(f"{block}+1", 2, 0)], "an offset is 2, not from 0 to 1"),
        ("", "new", [Range(f"{block}+67108865", 0, 1)], "has no size of a block"),
        ("", "new", [good] * 65537, "'new': it is too long"),
        ("", "new", [Range("x", 0, 1)], "x"),
        ("", "n" * 256, [good], "File name too long"),
    ):
        with (
            ControlConnection(path) as connection,
            pytest.raises(ControlError, match=re.escape(why)),
        ):
            connection.add_stored(
                directory, [("good", 0o644, 0, [good]), (name, 0o644, 0, ranges)]
            )
    assert os.listdir(mount.upload) == ["file"]


def test_a_malformed_control_request_ends_no_other_connection(
    mount: KeepfsMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in os.environ:
        if name.startswith("XDG_"):
            monkeypatch.delenv(name)
    path = runtime.control_socket(mount.path)
    with (
        socket.socket(socket.AF_UNIX) as other,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        for each in (other, connection):
            each.connect(str(path))
        answers = []
        for each, line in (
            (connection, b'{"do": "unstored", "path": 5}\n'),
            (connection, b"[" * 100_000 + b"\n"),
            (other, b'{"do": "unstored", "path": ""}\n'),
        ):
            each.sendall(line)
            answers.append(json.loads(each.recv(65536)))

    assert ["error" in it for it in answers] == [True, True, False]
