"""Programs that people use, on the mount, compared with the same on a local disk."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sysconfig
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mount.mounts import KeepfsMount


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


def test_mv_sed_and_a_shell_do_as_on_a_disk(shared: KeepfsMount, tmp_path: Path) -> None:
    script = """
        mkdir -p a/b && printf 'one\\ntwo\\n' > a/file && printf 'three\\n' >> a/file
        sed -i s/two/2/ a/file && cp a/file a/b/copy && mv a/b/copy copy && mv a/b c
        touch -d '2001-02-03 04:05:06 UTC' copy && ln -s a/file link && cat link > d
        truncate -s 10 d && truncate -s 100 d && md5sum a/file copy d > sums && md5sum -c sums
        gzip -k a/file && gunzip -c a/file.gz | cmp - a/file
        find . -type f | sort && du -a . >/dev/null
        head -c 1000 /dev/zero | tee e | wc -c && rm -r a && ls -A && stat -c '%n %s %Y' copy d e
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
