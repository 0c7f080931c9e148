"""Programs that people use, on the mount, compared with the same on a local disk."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.mounted.mounts import mounted

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mounted.mounts import KeepfsMount


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's own standard library, with odd modes, empty files and folders, and links."""
    tree = tmp_path_factory.mktemp("input") / "lib"
    shutil.copytree(
        sysconfig.get_path("stdlib"),
        tree,
        symlinks=True,
        ignore=shutil.ignore_patterns("site-packages", "__pycache__", "*.a", "config-*"),
    )
    (tree / "an empty file").touch()
    (tree / "an empty folder").mkdir()
    (tree / "secret").write_bytes(b"0400")
    (tree / "secret").chmod(0o400)
    (tree / "setuid").write_bytes(b"4755")
    (tree / "setuid").chmod(0o4755)
    (tree / "locked").mkdir(mode=0o500)
    (tree / "link").symlink_to("an empty file")
    (tree / "dangling").symlink_to("nowhere")
    return tree


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program that may neither fail nor warn, and return what it printed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert (done.returncode, done.stderr) == (0, ""), command
    return done.stdout


def described(tree: Path) -> dict[str, tuple[object, ...]]:
    """Describe every entry by what cp -a keeps."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        size = 0 if path.is_dir() and not path.is_symlink() else status.st_size
        found[str(path.relative_to(tree))] = (oct(status.st_mode), size, status.st_mtime_ns)
    return found


def test_cp_a_of_the_standard_library_is_the_standard_library(
    shared: KeepfsMount, tree: Path
) -> None:
    copy = shared.upload / "cp"

    run("cp", "-a", tree, copy)

    assert run("diff", "-r", "--no-dereference", tree, copy) == ""
    assert described(copy) == described(tree)
    assert len(described(tree)) > 500


def test_every_file_is_found_by_its_locator(shared: KeepfsMount, tree: Path) -> None:
    copy = shared.upload / "located"
    run("cp", "-a", tree, copy)

    files = [path for path in copy.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 500
    for path in files:
        block = shared.by_id / shared.locator(path)
        assert filecmp.cmp(block, tree / path.relative_to(copy), shallow=False), path
    one = run("getfattr", "--absolute-names", "--only-values", "-n", "user.keep.locator", files[0])
    assert one == shared.locator(files[0])


def test_tar_extracts_into_it_and_reads_from_it(
    shared: KeepfsMount, tree: Path, tmp_path: Path
) -> None:
    (shared.upload / "tar").mkdir()
    run("tar", "cf", tmp_path / "in.tar", "-C", tree.parent, "lib")

    run("tar", "xpf", tmp_path / "in.tar", "-C", shared.upload / "tar")
    run("tar", "cf", tmp_path / "out.tar", "-C", shared.upload / "tar", "lib")

    assert run("diff", "-r", "--no-dereference", tree, shared.upload / "tar" / "lib") == ""
    names = run("tar", "tf", tmp_path / "in.tar").splitlines()
    assert sorted(names) == sorted(run("tar", "tf", tmp_path / "out.tar").splitlines())
    (shared.upload / "tar" / "archive.tar").write_bytes((tmp_path / "in.tar").read_bytes())
    run("tar", "df", shared.upload / "tar" / "archive.tar", "-C", tree.parent)


def test_rsync_copies_and_then_finds_nothing_to_do(shared: KeepfsMount, tree: Path) -> None:
    copy = shared.upload / "rsync"

    run("rsync", "-a", f"{tree}/", f"{copy}/")
    assert described(copy) == described(tree)
    assert run("rsync", "-ai", f"{tree}/", f"{copy}/") == ""

    (copy / "secret").unlink()
    (copy / "an empty file").write_bytes(b"not empty")
    (copy / "superfluous").touch()
    changes = run("rsync", "-ai", "--delete", f"{tree}/", f"{copy}/").splitlines()
    assert {line.split(maxsplit=1)[1] for line in changes} >= {
        "secret",
        "an empty file",
        "superfluous",
    }
    assert described(copy) == described(tree)


def test_dd_of_200_mib_is_read_back_equal(shared: KeepfsMount, tmp_path: Path) -> None:
    source = tmp_path / "random"
    with source.open("wb") as file:
        for _ in range(200):
            file.write(os.urandom(1 << 20))
    copy = shared.upload / "dd"

    subprocess.run(["dd", f"if={source}", f"of={copy}", "bs=1M"], check=True, capture_output=True)

    assert filecmp.cmp(source, copy, shallow=False)
    locators = shared.locator(copy)
    assert locators.count(",") == 3
    assert filecmp.cmp(source, shared.by_id / locators, shallow=False)
    patch = ["dd", "if=/dev/zero", f"of={copy}", "bs=1M", "seek=100", "count=3", "conv=notrunc"]
    subprocess.run(patch, check=True, capture_output=True)
    subprocess.run([*patch[:2], f"of={source}", *patch[3:]], check=True, capture_output=True)
    assert filecmp.cmp(source, copy, shallow=False)
    assert filecmp.cmp(source, shared.by_id / shared.locator(copy), shallow=False)


def test_mv_sed_and_a_shell_work_as_on_a_disk(shared: KeepfsMount, tmp_path: Path) -> None:
    script = """
        mkdir -p a/b && printf 'one\\ntwo\\n' > a/file && printf 'three\\n' >> a/file
        sed -i s/two/2/ a/file && cp a/file a/b/copy && mv a/b/copy copy && mv a/b c
        touch -d '2001-02-03 04:05:06 UTC' copy && ln -s a/file link && cat link > d
        truncate -s 10 d && truncate -s 100 d && md5sum a/file copy d > sums && md5sum -c sums
        gzip -k a/file && gunzip -c a/file.gz | cmp - a/file
        find . -type f | sort && du -a . >/dev/null
        head -c 1000 /dev/zero | tee e | wc -c && rm -r a && ls -A
        stat -c '%n %s' d e && stat -c %Y copy
    """
    outputs = []
    for place in (tmp_path / "disk", shared.upload / "shell"):
        place.mkdir()
        outputs.append(run("sh", "-e", "-c", script, cwd=place))

    assert outputs[0] == outputs[1]


def test_python_copies_and_moves(shared: KeepfsMount, tree: Path, tmp_path: Path) -> None:
    place = shared.upload / "shutil"
    place.mkdir()

    shutil.copytree(tree / "json", place / "tree")
    shutil.copy2(tree / "secret", place / "copy2")
    shutil.move(place / "tree", place / "moved")
    shutil.move(place / "moved", tmp_path / "out")
    shutil.make_archive(str(place / "archive"), "zip", tmp_path / "out")
    shutil.unpack_archive(place / "archive.zip", place / "unpacked")

    assert filecmp.dircmp(tree / "json", place / "unpacked").diff_files == []
    assert (place / "copy2").stat().st_mtime_ns == (tree / "secret").stat().st_mtime_ns


def both(shared: KeepfsMount, tmp_path: Path, name: str) -> tuple[Path, Path]:
    """Make a directory on a local disk and one on the mount, to do the same in."""
    places = (tmp_path / "disk", shared.upload / name)
    for place in places:
        place.mkdir()
    return places


def contents(place: Path) -> dict[str, bytes]:
    """Return what all files of a tree hold."""
    files = (path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


def all_are_stored(mount: KeepfsMount, place: Path) -> bool:
    """Tell whether every file of a tree on the mount can be read by its locator."""
    files = [path for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    return all(
        (mount.by_id / mount.locator(path)).read_bytes() == path.read_bytes() for path in files
    )


@pytest.mark.parametrize(
    "settings",
    [
        "nobackup nowritebackup",
        "nobackup writebackup backupcopy=auto",
        "nobackup writebackup backupcopy=no",
        "backup writebackup backupcopy=yes",
        "backup writebackup backupcopy=no fsync",
    ],
)
@pytest.mark.skipif(shutil.which("vim") is None, reason="there is no vim")
def test_vim_saves_a_file(shared: KeepfsMount, tmp_path: Path, settings: str) -> None:
    places = both(shared, tmp_path, "vim " + settings)
    for place in places:
        text = place / "text"
        text.write_bytes(b"one\ntwo\nthree\n")
        text.chmod(0o640)
        for change in ("%s/two/2/", "$put ='four'", "1delete"):
            save = ["-c", f"set {settings}", "-c", change, "-c", "write", "-c", "quit"]
            run("vim", "-es", "-u", "NONE", "-i", "NONE", *save, text)

    assert contents(places[1]) == contents(places[0])
    assert contents(places[1])["text"] == b"2\nthree\nfour\n"
    assert (places[1] / "text").stat().st_mode == (places[0] / "text").stat().st_mode
    assert all_are_stored(shared, places[1])


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_git_clones_commits_packs_and_finds_no_fault(shared: KeepfsMount, tmp_path: Path) -> None:
    script = """
        export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null HOME=/nonexistent
        export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org GIT_AUTHOR_DATE='2020-01-01T00:00Z'
        export GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@example.org
        export GIT_COMMITTER_DATE='2020-01-01T00:00Z'
        git init -q -b main origin && cd origin && cp -r "$1" lib && git add . && git commit -qm 1
        cd .. && git clone -q --no-hardlinks origin clone && cd clone && git fsck --strict
        git mv lib/decoder.py lib/moved.py && echo more >> lib/scanner.py && git commit -qam 2
        git switch -qc other HEAD~1 && echo else >> lib/tool.py && git commit -qam 3
        git merge -q -m 4 main && git gc -q --prune=now && git fsck --strict --full
        git status --porcelain && git log --format='%H %s' && git push -q origin HEAD:pushed
        git -C ../origin fsck --strict && git -C ../origin rev-parse pushed
    """
    library = os.path.join(sysconfig.get_path("stdlib"), "json")
    printed = [
        subprocess.run(
            ["sh", "-ec", script, "sh", library],
            capture_output=True,
            text=True,
            check=False,
            cwd=place,
        )
        for place in both(shared, tmp_path, "git")
    ]

    assert printed[0].returncode == 0, printed[0].stderr
    assert (printed[1].returncode, printed[1].stdout) == (0, printed[0].stdout), printed[1].stderr
    assert printed[1].stderr == printed[0].stderr
    assert all_are_stored(shared, shared.upload / "git")


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "memory", "off"])
def test_sqlite_makes_a_database(shared: KeepfsMount, tmp_path: Path, journal: str) -> None:
    dumps = []
    for place in both(shared, tmp_path, f"sqlite {journal}"):
        with contextlib.closing(sqlite3.connect(place / "db")) as database:
            assert database.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
            database.execute("CREATE TABLE words (number INTEGER PRIMARY KEY, word TEXT)")
            for begin in range(0, 2000, 400):
                rows = [(begin + i, "word " * (i % 50)) for i in range(400)]
                with database:
                    database.executemany("INSERT INTO words VALUES (?, ?)", rows)
            if journal != "off":
                database.execute("DELETE FROM words")
                database.rollback()
            with database:
                database.execute("DELETE FROM words WHERE number % 3 = 0")
            database.execute("VACUUM")
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            dumps.append(list(database.iterdump()))

    assert dumps[1] == dumps[0]
    assert len(dumps[1]) > 1000
    assert all_are_stored(shared, shared.upload / f"sqlite {journal}")


def test_sqlite_may_use_a_shared_write_ahead_log(shared: KeepfsMount) -> None:
    place = shared.upload / "sqlite wal"
    place.mkdir()
    script = """
        import sqlite3, sys
        database = sqlite3.connect("db")
        print(database.execute("SELECT count(*) FROM words").fetchone()[0], flush=True)
        sys.stdin.readline()
        print(database.execute("SELECT count(*) FROM words").fetchone()[0], flush=True)
        with database:
            database.execute("INSERT INTO words VALUES ('other')")
    """
    with contextlib.closing(sqlite3.connect(place / "db")) as database:
        # Needs a shared writable mapping, which all processes on the mount see.
        assert database.execute("PRAGMA journal_mode = wal").fetchone() == ("wal",)
        with database:
            database.execute("CREATE TABLE words (word TEXT)")
        other = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        with database:
            database.executemany("INSERT INTO words VALUES (?)", [("one",)] * 1000)
        said, _ = other.communicate("go on\n")
        assert said == "1000\n"
        assert other.returncode == 0
        assert database.execute("SELECT count(*) FROM words").fetchone() == (1001,)
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    assert os.listdir(place) == ["db"]
    assert all_are_stored(shared, place)


def test_zip_files_are_made_and_added_to(shared: KeepfsMount, tree: Path, tmp_path: Path) -> None:
    for place in both(shared, tmp_path, "zip"):
        with zipfile.ZipFile(place / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((tree / "json").iterdir()):
                archive.write(path, path.name)
        with zipfile.ZipFile(place / "all.zip", "a") as archive:  # overwrites the directory
            archive.writestr(zipfile.ZipInfo("more"), b"more" * 1000)
        with zipfile.ZipFile(place / "all.zip") as archive:
            assert archive.testzip() is None
            archive.extractall(place / "out")

    assert contents(shared.upload / "zip") == contents(tmp_path / "disk")
    assert all_are_stored(shared, shared.upload / "zip")


def test_a_header_written_last_is_stored(shared: KeepfsMount, tmp_path: Path) -> None:
    # As programs do that know a count, an offset or a checksum only at the end.
    body = b"".join(number.to_bytes(8, "little") for number in range(300_000))
    for place in both(shared, tmp_path, "header"):
        with (place / "file").open("wb") as file:
            file.write(b"\0" * 64)
            file.write(body)
            end = file.tell()
            file.seek(0)
            file.write(b"MAGIC\1" + end.to_bytes(8, "little"))
        with (place / "file").open("r+b") as file:  # and reheader: a longer one, in place
            whole = file.read()
            file.seek(0)
            file.write(b"MAGIC\2" + b"h" * 1000 + whole[64:])
            file.truncate()

    assert contents(shared.upload / "header") == contents(tmp_path / "disk")
    assert all_are_stored(shared, shared.upload / "header")


def test_small_tools_work_as_on_a_disk(shared: KeepfsMount, tmp_path: Path) -> None:
    script = """
        seq 1000 > numbers && sed 's/^5/five /' numbers > changed && cp numbers before
        diff -u numbers changed > change.patch || test $? = 1
        patch -s numbers change.patch && cmp numbers changed && patch -sR -b numbers change.patch
        cmp numbers before && ls -A && echo more | tee -a log other > /dev/null
        echo again | tee -a log && cat log other && truncate -s 1M big && truncate -s -1K big
        truncate -s %4096 big && stat -c '%n %s' big && truncate -c -s 5 none
        test ! -e none && mkdir -p deep/er && touch -d '2001-02-03 UTC' deep/er/old
        find . -newer deep/er/old | sort
        find deep -name 'o*' -exec mv {} {}.found ';' && find . -type f -size +100c | sort
        find . -type f -exec md5sum {} + | sort > ../sums && md5sum --quiet -c ../sums
        gzip -9 big && gzip -t big.gz && gzip -d big.gz
        split -n l/5 numbers part. && cat part.* | cmp - numbers && sort -o numbers -R numbers
        sort -n -o numbers numbers && cmp numbers before && shred -n 1 -u other
        install -m 751 log x && stat -c '%a %s' x && mktemp -p . name.XXXX | wc -c
        rm name.* && ln -sf log soft
        ln -sfn deep soft && readlink soft && cp -al deep copy 2>/dev/null || cp -a deep copy
        du -b --apparent-size big log x && find . -depth -delete && ls -A
    """
    outputs = [
        run("sh", "-ec", script, cwd=_inner(place)) for place in both(shared, tmp_path, "tools")
    ]

    assert outputs[1] == outputs[0]


def _inner(place: Path) -> Path:
    (place / "inner").mkdir()
    return place / "inner"


def test_a_temporary_file_replaces_another(shared: KeepfsMount, tmp_path: Path) -> None:
    for place in both(shared, tmp_path, "replace"):
        (place / "settings").write_bytes(b"old")
        for number in range(20):
            with tempfile.NamedTemporaryFile(dir=place, delete=False) as file:
                file.write(b"new %d" % number)
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, place / "settings")
        with tempfile.TemporaryFile(dir=place) as unnamed:
            unnamed.write(b"nobody sees it")
            unnamed.seek(0)
            assert unnamed.read() == b"nobody sees it"
        with tempfile.TemporaryDirectory(dir=place) as directory:
            os.close(tempfile.mkstemp(dir=directory)[0])

    assert contents(shared.upload / "replace") == contents(tmp_path / "disk")
    assert contents(shared.upload / "replace") == {"settings": b"new 19"}


def test_fallocate_is_refused_and_programs_continue(
    shared: KeepfsMount,
) -> None:
    file = shared.upload / "fallocated"
    file.write_bytes(b"content")

    for option in ("--length=1M", "--punch-hole --length=4", "--keep-size --length=1M"):
        done = subprocess.run(
            ["fallocate", *option.split(), file], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "support" in done.stderr
    # glibc writes zeros instead, and so do those who ask it.
    with file.open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, 10_000)

    assert file.read_bytes() == b"content".ljust(10_000, b"\0")


@pytest.mark.parametrize(
    "command",
    [
        ["rsync", "-aX"],
        ["cp", "-a"],
        ["cp", "--preserve=all"],
        ["cp", "--preserve=xattr"],
        ["mv"],
    ],
    ids=" ".join,
)
def test_programs_that_copy_attributes_copy_from_mount_to_mount(
    shared: KeepfsMount, tmp_path: Path, command: list[str]
) -> None:
    name = "-".join(command)
    with mounted(tmp_path) as other:
        source, target = shared.upload / name, other.upload / name
        source.write_bytes(b"copied with its attributes")
        source.chmod(0o640)
        locator = shared.locator(source)

        done = subprocess.run([*command, source, target], capture_output=True, check=False)

        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert target.read_bytes() == b"copied with its attributes"
        assert other.locator(target) == locator
        assert os.getxattr(target, "user.keep.state") == b"stored"
        if command[0] == "rsync":  # over another version, whose attributes differ
            source.write_bytes(b"a longer content than before")
            done = subprocess.run([*command, source, target], capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
            assert other.locator(target) == shared.locator(source)


def test_a_copied_attribute_is_ignored(shared: KeepfsMount, tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"new content")
    os.setxattr(source, "user.keep.locator", b"acbd18db4cc2f85cedef654fccc4a4d8+3")
    os.setxattr(source, "user.keep.state", b"failed")

    run("cp", "--preserve=all", source, shared.upload / "believed")

    digest = hashlib.md5(b"new content", usedforsecurity=False).hexdigest()
    assert shared.locator(shared.upload / "believed") == f"{digest}+11"
    assert os.getxattr(shared.upload / "believed", "user.keep.state") == b"stored"
