"""Several users on one mount: what each of them sees and reads in by_id/."""

from __future__ import annotations

import hashlib
import os
import pwd
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs.collections.local_collections import LocalCollections
from keepfs.collections.parsing import parse
from keepfs.keep.local import LocalStore
from tests.keepstore import TEST_TOKEN, KeepstoreControls
from tests.mounted.mounts import PATIENCE, KeepfsMount, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
ALICE, BOB = (pwd.getpwnam(name).pw_uid for name in ("nobody", "daemon"))
#: A group that neither is a member of by itself.
TEAM = 12345
SECRET = b"what only Alice may read"


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    """One keepstore."""
    with KeepstoreControls() as it:
        yield it


@pytest.fixture
def mount(store: KeepstoreControls, request: pytest.FixtureRequest) -> Iterator[KeepfsMount]:
    """A mount over it that root has made for all users; a parameter is further options."""
    # pytest's own directories are closed to others.
    with tempfile.TemporaryDirectory(prefix="keepfs-users-") as name:
        base = Path(name)
        base.chmod(0o755)
        it = KeepfsMount(base, ("--allow-other", "--copies", "1", "--umask", "0"), is_local=False)
        it.options += getattr(request, "param", ())
        it.env = {"ARVADOS_KEEP_SERVICES": store.url, "ARVADOS_API_TOKEN": TEST_TOKEN}
        try:
            it.mount()
            it.upload.chmod(0o777)
            yield it
            assert it.unmount().returncode == 0
        finally:
            it.clean_up()


def test_collections_are_readable_by_all_and_listed_after_a_lookup() -> None:
    with tempfile.TemporaryDirectory(prefix="keepfs-users-") as directory:
        base = Path(directory)
        base.chmod(0o755)
        it = KeepfsMount(base, ("--allow-other",))
        try:
            it.mount()
            locator = LocalStore(it.store).put(b"content").locator
            manifest = f". {locator} 0:7:file\n".encode()
            name = LocalCollections(it.store).put(parse(manifest)).portable_data_hash
            folder = it.path / "collections"

            assert run_as(ALICE, 'cat "$1"', folder / name / "file").stdout == b"content"

            assert run_as(ALICE, 'ls "$1"', folder).stdout.decode().split() == [name]
            assert run_as(BOB, 'ls "$1"', folder).stdout == b""
            assert run_as(BOB, 'cat "$1"', folder / name / "file").stdout == b"content"
            assert run_as(BOB, 'echo > "$1"', folder / name / "file").returncode != 0
            assert it.unmount().returncode == 0
        finally:
            it.clean_up()


def run_as(uid: int, script: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script as a user, its arguments being $1, $2, ..."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        user=uid,
        group=uid,
        extra_groups=[],
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
    )


def store_as(uid: int, mount: KeepfsMount, name: str, content: bytes, umask: str = "077") -> str:
    """Store a file as a user; return its locator."""
    script = 'umask "$3" && printf %s "$2" > "$1"'
    done = run_as(uid, script, mount.upload / name, content.decode(), umask)
    assert (done.returncode, done.stderr) == (0, b"")
    return mount.locator(mount.upload / name)


def listed_for(uid: int, mount: KeepfsMount) -> list[str]:
    """List by_id/ as a user, without the empty block: a shell stores that before it writes."""
    return without_empty(run_as(uid, 'ls "$1"', mount.by_id).stdout.decode().split())


def without_empty(names: list[str]) -> list[str]:
    """Return all but the names of the empty block."""
    return [name for name in names if not name.startswith("d41d8cd98f00b204e9800998ecf8427e")]


def test_a_private_file_is_private_in_by_id_too(mount: KeepfsMount) -> None:
    secret = store_as(ALICE, mount, "secret", SECRET)
    public = store_as(ALICE, mount, "public", b"for all", umask="022")

    assert sorted(listed_for(ALICE, mount)) == sorted([secret, public])
    assert listed_for(BOB, mount) == [public]
    assert sorted(without_empty(os.listdir(mount.by_id))) == sorted(
        [secret, public]
    )  # root sees all
    status = (mount.by_id / secret).stat()
    assert (oct(status.st_mode), status.st_uid, status.st_gid) == ("0o100400", ALICE, ALICE)
    assert oct((mount.by_id / public).stat().st_mode) == "0o100444"
    # Even to whoever has learned the name.
    for script in ('cat "$1"', 'getfattr -n user.keep.locator "$1"'):
        done = run_as(BOB, script, mount.by_id / secret)
        assert b"Permission denied" in done.stderr
        assert SECRET not in done.stdout
    assert run_as(ALICE, 'cat "$1"', mount.by_id / secret).stdout == SECRET
    assert run_as(BOB, 'cat "$1"', mount.by_id / public).stdout == b"for all"


def test_another_name_of_a_private_block_is_private_too(mount: KeepfsMount) -> None:
    """With another hint, without a size, or as a part of a list."""
    secret = store_as(ALICE, mount, "secret", SECRET)
    public = store_as(ALICE, mount, "public", b"for all", umask="022")
    digest, _, signature = secret.split("+")
    others = (f"{secret}+Zx", f"{digest}+{signature}", f"{secret},{secret}", f"{public},{secret}")

    for name in others:
        done = run_as(BOB, 'cat "$1"', mount.by_id / name)
        assert (done.stdout, b"Permission denied" in done.stderr) == (b"", True)
        assert SECRET in run_as(ALICE, 'cat "$1"', mount.by_id / name).stdout


def test_chmod_in_upload_counts_in_by_id_within_seconds(mount: KeepfsMount) -> None:
    locator = store_as(ALICE, mount, "file", SECRET)
    assert b"denied" in run_as(BOB, 'cat "$1"', mount.by_id / locator).stderr

    assert run_as(ALICE, 'chmod 644 "$1"', mount.upload / "file").returncode == 0

    assert listed_for(BOB, mount) == [locator]
    wait_until(lambda: run_as(BOB, 'cat "$1"', mount.by_id / locator).stdout == SECRET)

    assert run_as(ALICE, 'chmod 600 "$1"', mount.upload / "file").returncode == 0
    wait_until(lambda: b"denied" in run_as(BOB, 'cat "$1"', mount.by_id / locator).stderr)


def test_group_members_see_what_their_group_may_read(mount: KeepfsMount) -> None:
    locator = store_as(ALICE, mount, "file", SECRET, umask="027")
    done = subprocess.run(
        ["ls", mount.by_id],
        capture_output=True,
        check=True,
        user=BOB,
        group=BOB,
        extra_groups=[ALICE],
    )

    assert without_empty(done.stdout.decode().split()) == [locator]
    assert listed_for(BOB, mount) == []


def test_a_name_is_listed_for_the_user_that_looked_it_up(
    mount: KeepfsMount, store: KeepstoreControls
) -> None:
    locator = store.store_block(b"known to Alice")
    assert run_as(ALICE, 'cat "$1"', mount.by_id / locator).stdout == b"known to Alice"
    before = listed_for(BOB, mount)

    assert run_as(BOB, 'cat "$1"', mount.by_id / locator).stdout == b"known to Alice"

    assert listed_for(ALICE, mount) == [locator]
    assert (before, listed_for(BOB, mount)) == ([], [locator])


def test_a_block_that_two_users_store_is_readable_by_all(mount: KeepfsMount) -> None:
    """Only who knows the content can know the name of a local store, where it isn't signed."""
    with tempfile.TemporaryDirectory(prefix="keepfs-users-") as name:
        base = Path(name)
        base.chmod(0o755)
        local = KeepfsMount(base, ("--allow-other", "--umask", "0"))
        try:
            local.mount()
            locator = store_as(ALICE, local, "hers", SECRET)
            assert b"denied" in run_as(BOB, 'cat "$1"', local.by_id / locator).stderr
            assert store_as(BOB, local, "his", SECRET) == locator

            assert listed_for(ALICE, local) == listed_for(BOB, local) == [locator]
            for uid in (ALICE, BOB):
                wait_until(
                    lambda it=uid: run_as(it, 'cat "$1"', local.by_id / locator).stdout == SECRET
                )
            assert local.unmount().returncode == 0
        finally:
            local.clean_up()
    assert mount.is_mounted()


def test_an_unsigned_or_forged_name_does_not_open_cached_blocks(
    mount: KeepfsMount, store: KeepstoreControls
) -> None:
    secret = store_as(ALICE, mount, "secret", SECRET)
    assert run_as(ALICE, 'cat "$1"', mount.by_id / secret).stdout == SECRET
    bare = f"{hashlib.md5(SECRET, usedforsecurity=False).hexdigest()}+{len(SECRET)}"
    forged = f"{bare}+A{'0' * 40}@{secret[-8:]}"

    for _ in range(2):
        for name in (bare, forged, f"{bare},{bare}", f"{forged},{bare}"):
            done = run_as(BOB, 'cat "$1"', mount.by_id / name)
            assert b"Permission denied" in done.stderr
            assert done.stdout == b""
    other = store.store_block(b"free for all")
    # Of a list the first block is asked for; reading tells of the others.
    done = run_as(BOB, 'cat "$1"', mount.by_id / f"{other},{forged}")
    assert SECRET not in done.stdout
    assert done.returncode != 0
    assert run_as(ALICE, 'cat "$1"', mount.by_id / secret).stdout == SECRET


@pytest.mark.parametrize("mount", [("--share-signatures",)], indirect=True)
def test_shared_signatures_open_unsigned_names(
    mount: KeepfsMount, store: KeepstoreControls
) -> None:
    signed = store.store_block(b"known to Alice")
    bare = signed.partition("+A")[0]
    unknown = store.store_block(b"known to nobody").partition("+A")[0]
    assert b"denied" in run_as(BOB, 'cat "$1"', mount.by_id / bare).stderr
    assert run_as(ALICE, 'cat "$1"', mount.by_id / signed).stdout == b"known to Alice"

    wait_until(lambda: run_as(BOB, 'cat "$1"', mount.by_id / bare).stdout == b"known to Alice")

    forged = f"{bare}+A{'0' * 40}@{signed[-8:]}"
    secret = store_as(ALICE, mount, "secret", SECRET)
    for name in (unknown, forged, secret.partition("+A")[0], secret):
        done = run_as(BOB, 'cat "$1"', mount.by_id / name)
        assert (done.stdout, b"Permission denied" in done.stderr) == (b"", True)
    assert run_as(ALICE, 'cat "$1"', mount.by_id / secret.partition("+A")[0]).stdout == SECRET


def run_in_group(uid: int, script: str, *arguments: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script as a user who is a member of TEAM, too."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *arguments],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        user=uid,
        group=uid,
        extra_groups=[TEAM],
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
    )


def test_a_shared_drop_directory_is_usable_by_its_group(mount: KeepfsMount) -> None:
    """The recipe of docs/several-users.md."""
    drop = mount.upload / "drop"
    drop.mkdir()
    recipe = (Path(__file__).parents[2] / "docs" / "several-users.md").read_text()
    assert "chmod 2770 /mnt/keep/upload/drop" in recipe
    assert run_in_group(0, f'chgrp {TEAM} "$1" && chmod 2770 "$1"', drop).stderr == b""

    made = run_in_group(ALICE, 'umask 007; mkdir "$1/d"; echo hers > "$1/d/f"', drop)
    assert (made.returncode, made.stderr) == (0, b"")
    status, folder = (drop / "d" / "f").stat(), (drop / "d").stat()
    assert (oct(status.st_mode), status.st_uid, status.st_gid) == ("0o100660", ALICE, TEAM)
    assert (oct(folder.st_mode), folder.st_uid, folder.st_gid) == ("0o42770", ALICE, TEAM)
    changed = run_in_group(BOB, 'echo his >> "$1/d/f"; cat "$1/d/f"; rm "$1/d/f"', drop)
    assert (changed.stdout, changed.stderr) == (b"hers\nhis\n", b"")
    outside = run_as(BOB, 'ls "$1"; touch "$1/x"', drop)
    assert outside.stderr.count(b"Permission denied") == 2

    # With the sticky bit nobody removes what another has dropped.
    assert run_in_group(0, 'chmod 3770 "$1"', drop).returncode == 0
    assert run_in_group(ALICE, 'umask 007; echo hers > "$1/kept"', drop).returncode == 0
    assert b"not permitted" in run_in_group(BOB, 'rm -f "$1/kept"', drop).stderr
    assert (drop / "kept").read_bytes() == b"hers\n"


@pytest.mark.parametrize("mount", [("--umask", "027", "--gid", str(ALICE))], indirect=True)
def test_the_umask_closes_the_whole_mount(mount: KeepfsMount) -> None:
    assert [oct(it.stat().st_mode & 0o777) for it in (mount.path, mount.by_id)] == ["0o550"] * 2
    assert b"denied" in run_as(BOB, 'ls "$1"', mount.path).stderr
    assert run_as(ALICE, 'ls "$1"', mount.path).returncode == 0  # by the group
    (mount.upload / "file").touch()
    with pytest.raises(PermissionError):
        os.chown(mount.upload / "file", -1, BOB)


def test_the_group_of_a_file_can_be_changed_and_stays(mount: KeepfsMount) -> None:
    locator = store_as(ALICE, mount, "file", SECRET, umask="027")
    path = mount.upload / "file"
    assert b"not permitted" in run_as(BOB, f'chgrp {BOB} "$1"', path).stderr
    assert b"not permitted" in run_as(ALICE, f'chgrp {TEAM} "$1"', path).stderr
    assert run_in_group(ALICE, f'chmod g+s "$1"; chgrp {TEAM} "$1"', path).stderr == b""

    assert (path.stat().st_uid, path.stat().st_gid) == (ALICE, TEAM)
    # In by_id/ too: not readable by all because it had two groups.
    wait_until(lambda: (mount.by_id / locator).stat().st_gid == TEAM)
    assert b"denied" in run_as(BOB, 'cat "$1"', mount.by_id / locator).stderr
    assert run_in_group(BOB, 'cat "$1"', mount.by_id / locator).stdout == SECRET
    assert mount.unmount().returncode == 0
    mount.mount()
    assert (path.stat().st_uid, path.stat().st_gid) == (ALICE, TEAM)


def test_a_name_is_refused_as_soon_as_its_signature_ends(
    mount: KeepfsMount, store: KeepstoreControls
) -> None:
    """The kernel keeps neither the name nor its bytes for longer."""
    store.configure(ttl=4.0)
    locator = store.store_block(SECRET)
    assert (mount.by_id / locator).read_bytes() == SECRET

    def is_refused() -> bool:
        try:
            (mount.by_id / locator).read_bytes()
        except PermissionError:
            return True
        return False

    wait_until(is_refused)
    with pytest.raises(PermissionError):
        (mount.by_id / locator).stat()
    assert locator not in os.listdir(mount.by_id)
