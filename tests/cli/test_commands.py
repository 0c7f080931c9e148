"""What commands about blocks do with lists, odd names, broken output, and services."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import click
import pytest

from keepfs.cli import clients
from keepfs.fs.upload import unsaved
from keepfs.fs.upload.stored import StoredBytes, StoredRange
from keepfs.fs.upload.unsaved import About, Piece
from keepfs.keep import KeepLocator, Receipt
from keepfs.keep.local import LocalStore
from keepfs.keep.services.tokens import salted_token
from tests.cli.test_cli import EMPTY, FOO, Shell, stored
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
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
from tests.mounted.mounts import keepfs, why_no_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

ELSEWHERE = "v2/zzzzz-gj3su-000000000000000/anothersecret"
BAD = "no-locator"
MISSING = f"{'0' * 32}+3"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def stores() -> Iterator[list[KeepstoreControls]]:
    """Three keepstores."""
    with KeepstoreControls() as one, KeepstoreControls() as two, KeepstoreControls() as three:
        yield [one, two, three]
        for store in (one, two, three):
            store.release()


@pytest.fixture
def over(shell: Shell, stores: list[KeepstoreControls]) -> Shell:
    """A shell whose settings name the keepstores."""
    del shell.environment["KEEP_LOCAL_STORE"]
    shell.environment |= {
        "ARVADOS_KEEP_SERVICES": " ".join(each.url for each in stores),
        "ARVADOS_API_TOKEN": TEST_TOKEN,
    }
    return shell


@pytest.fixture
def api(shell: Shell, stores: list[KeepstoreControls], tmp_path: Path) -> Iterator[ApiControls]:
    """An API server that lists the keepstores, and that the shell's settings name."""
    authority = Authority(tmp_path)
    del shell.environment["KEEP_LOCAL_STORE"]
    with ApiControls(listening=Listening(tls=authority.certify())) as running:
        running.list_services([ServiceEntry.of(it.url, n) for n, it in enumerate(stores)])
        shell.environment |= {
            "ARVADOS_API_HOST": running.host,
            "ARVADOS_API_TOKEN": TEST_TOKEN,
            "SSL_CERT_FILE": str(authority.bundle),
        }
        yield running


def failing(shell: Shell, *arguments: str | bytes | Path) -> tuple[str, str]:
    """Run a command that fails with 1, perhaps in several lines; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "keepfs", *map(os.fsencode, arguments)],
        capture_output=True,
        check=False,
        env=shell.environment,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert b"Traceback" not in done.stderr
    return done.stdout.decode(), done.stderr.decode()


# --- lists: what is wrong with one item ends none of the others ---------------------------


@pytest.mark.parametrize("command", ["stat", "verify", "where"])
def test_a_bad_locator_does_not_end_a_list(command: str, shell: Shell) -> None:
    stored(shell, b"foo")

    output, errors = failing(shell, command, BAD, MISSING, FOO)

    assert FOO in output
    assert f"not a locator: '{BAD}'" in errors


@pytest.mark.parametrize("command", ["get", "stat"])
def test_the_name_of_a_collection_gets_a_hint(command: str, shell: Shell) -> None:
    uuid, pdh = "zzzzz-4zz18-0123456789abcde", f"{'0' * 32}+53"

    of_uuid = shell.error(command, uuid, code=2)
    of_hash = shell.error(command, pdh)

    assert "a locator begins with exactly 32 lower-case hex digits; it is the uuid" in of_uuid
    assert f"whose files are in collections/{uuid} of a mount [bad-locator]" in of_uuid
    assert f"{pdh} not found" in of_hash
    assert f"whose files are in collections/{pdh} of a mount [not-found]" in of_hash
    stored(shell, b"foo")
    (shell.store / FOO[:32]).write_bytes(b"fox")
    assert "data hash" not in shell.error("get", FOO)


def test_get_writes_nothing_if_one_locator_is_invalid(shell: Shell) -> None:
    stored(shell, b"foo")

    assert shell.run("get", FOO, BAD, code=2).stdout == b""


def test_a_file_that_cannot_be_stored_does_not_end_a_list(shell: Shell) -> None:
    path = shell.file("foo", b"foo")

    output, errors = failing(shell, "put", "", "none", path)

    assert output == f"{FOO}\t{path}\n"
    assert errors.splitlines() == [
        "Error: a file name is empty; give a path [bad-name]",
        "Error: none: No such file or directory [file-failed]",
    ]


def test_locate_reports_the_failure_of_each_file(shell: Shell) -> None:
    path = shell.file("foo", b"foo")

    _, errors = failing(shell, "locate", "", "none", path)

    assert len(errors.splitlines()) == 3


def test_many_blocks_are_requested_concurrently_and_printed_in_order(
    over: Shell, stores: list[KeepstoreControls]
) -> None:
    locators = [stores[0].store_block(bytes([number])) for number in range(12)]
    stores[0].always(Fault(hold=Stage.BEFORE_STATUS), method="HEAD")
    for command in ("stat", "verify"):
        process = subprocess.Popen(
            [sys.executable, "-m", "keepfs", command, *locators],
            stdout=subprocess.PIPE,
            env=over.environment,
            text=True,
        )
        stores[0].wait_held(5)  # at once: none is answered
        stores[0].heal()
        output, _ = process.communicate(timeout=60)
        told = [line.split("\t")[-1] for line in output.splitlines()]
        assert list(dict.fromkeys(told)) == locators
        stores[0].always(Fault(hold=Stage.BEFORE_STATUS), method="HEAD")


# --- names ----------------------------------------------------------------------------------


def test_a_name_with_a_newline_needs_0(shell: Shell) -> None:
    path = shell.file("a\nb", b"foo")

    assert "has a newline; use -0" in shell.error("put", path)
    assert shell.run("put", "-0", path).stdout == f"{FOO}\t{path}\0".encode()


@pytest.fixture
def big5(tmp_path: Path) -> dict[str, str]:
    """Variables for a locale in which two names of bytes are one name of text."""
    made = subprocess.run(
        ["localedef", "-i", "zh_TW", "-f", "BIG5", tmp_path / "zh_TW.big5"],
        capture_output=True,
        check=False,
    )
    if not (tmp_path / "zh_TW.big5").exists():
        pytest.skip(f"no locale: {made.stderr!r}")
    return {"LOCPATH": str(tmp_path), "LC_ALL": "zh_TW.big5"}


#: In BIG5 the first two are one character.
NAMES = (b"\xa2\xcc", b"\xa4Q", b"\xff\xfe", "é".encode())


@pytest.mark.parametrize("locale", ["big5", "C", "POSIX"])
def test_names_are_bytes_in_every_locale(locale: str, shell: Shell, big5: dict[str, str]) -> None:
    shell.environment |= big5 if locale == "big5" else {"LC_ALL": locale}
    for name in NAMES:
        with open(os.fsencode(shell.home) + b"/" + name, "wb") as file:
            file.write(b"foo")

    told = shell.run("put", *NAMES).stdout

    assert told == b"".join(FOO.encode() + b"\t" + name + b"\n" for name in NAMES)


@pytest.mark.fuse
def test_names_and_mount_points_are_bytes_in_every_locale(
    shell: Shell, big5: dict[str, str]
) -> None:
    if (reason := why_no_mounts()) is not None:
        pytest.skip(reason)
    shell.environment |= big5
    for name in NAMES:
        where = os.fsencode(shell.home) + b"/mount-" + name
        os.mkdir(where)
        shell.run("mount", where)
        try:
            for each in NAMES:
                with open(where + b"/upload/" + each, "wb") as file:
                    file.write(each)
            assert sorted(os.listdir(where + b"/upload")) == sorted(NAMES)
            assert b"".join(where + b"/upload/" + it + b"\n" for it in NAMES) in b"".join(
                line.partition(b"\t")[2] + b"\n"
                for line in shell.run(
                    "locate", *(where + b"/upload/" + it for it in NAMES)
                ).stdout.split(b"\n")
            )
        finally:
            shell.run("unmount", where)


def test_a_missing_home_directory_is_one_line(shell: Shell) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    del shell.environment["HOME"]
    done = subprocess.run(
        [
            "setpriv",
            "--reuid=54321",
            "--clear-groups",
            "--bounding-set=-all",
            sys.executable,
            "-m",
            "keepfs",
            "mount",
            "--local-store",
            "/nonexistent/x",
            "/mnt",
        ],
        capture_output=True,
        check=False,
        env=shell.environment,
        cwd="/",
        text=True,
    )

    assert done.returncode == 2
    assert "there is no home directory; set HOME, or give --state-dir" in done.stderr


# --- output -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["get", "stat", "verify", "where", "put"])
def test_output_that_cannot_be_written_is_an_error(command: str, shell: Shell) -> None:
    stored(shell, b"foo")
    what = shell.file("foo", b"foo") if command == "put" else FOO
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "keepfs", command, what],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            env=shell.environment,
        )

    assert done.returncode == 1
    assert done.stderr == (b"Error: standard output: No space left on device [output-failed]\n")


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("get", "--help")])
def test_help_that_cannot_be_written_is_an_error(arguments: tuple[str, ...], shell: Shell) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "keepfs", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            env=shell.environment,
        )

    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1


def test_get_writes_to_standard_output_that_a_dash_names(shell: Shell) -> None:
    stored(shell, b"foo")

    assert shell.run("get", "-o", "-", FOO).stdout == b"foo"
    assert not (shell.home / "-").exists()


def test_a_missing_directory_is_named_as_it_was_given(shell: Shell) -> None:
    stored(shell, b"foo")

    said = shell.error("get", "-o", "/nonexistent/x", FOO)

    assert said == "Error: /nonexistent/x: No such file or directory [output-failed]\n"


def test_a_file_that_cannot_be_written_to_the_end_is_named(shell: Shell) -> None:
    locator = stored(shell, bytes(1 << 20))
    limited = f"ulimit -f 1; exec '{sys.executable}' -m keepfs get -o out {locator}"
    done = subprocess.run(
        ["sh", "-c", limited],
        capture_output=True,
        check=False,
        # Coverage's own data file would be cut as well.
        env={k: v for k, v in shell.environment.items() if not k.startswith("COVERAGE_")},
        cwd=shell.home,
    )

    assert (done.returncode, done.stderr) == (1, b"Error: out: File too large [output-failed]\n")
    assert list(shell.home.glob("*out*")) == []


@pytest.mark.parametrize("block", [b"\0\1", b"\xff\xfe", b"\x1b[31m"])
def test_a_terminal_does_not_get_binary_data(block: bytes, shell: Shell) -> None:
    locator = stored(shell, block)
    for arguments, code in ((("get", locator), 1), (("get", "--force", locator), 0)):
        ours, theirs = pty.openpty()
        done = subprocess.run(
            [sys.executable, "-m", "keepfs", *arguments],
            stdout=theirs,
            stderr=subprocess.PIPE,
            check=False,
            env=shell.environment,
        )
        os.close(theirs)
        os.close(ours)
        assert done.returncode == code
        assert (b"isn't text" in done.stderr) == bool(code)


def test_a_terminal_gets_text(shell: Shell) -> None:
    locator = stored(shell, "grüß\tGott\n".encode())
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "keepfs", "get", locator],
        stdout=theirs,
        check=True,
        env=shell.environment,
    )
    os.close(theirs)
    shown = os.read(ours, 100)
    os.close(ours)

    assert shown.decode().startswith("grüß")


# --- input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["put -", "warm --disk-cache 1M --from -"])
def test_a_closed_standard_input_is_not_an_empty_file(shell: Shell, command: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m keepfs {command} <&-"],
        capture_output=True,
        check=False,
        env=shell.environment,
    )

    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == (b"Error: can't read standard input: it is closed [no-input]\n")
    assert EMPTY.encode() not in done.stdout


def test_a_misspelt_variable_is_named(shell: Shell) -> None:
    shell.environment["KEEPFS_CACHESIZE"] = "1G"

    said = shell.error("get", FOO, code=2)

    assert "no option reads KEEPFS_CACHESIZE" in said
    assert "did you mean KEEPFS_CACHE_SIZE?" in said


# --- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_command_that_is_ended_leaves_no_part_file(
    number: signal.Signals, code: int, over: Shell, stores: list[KeepstoreControls]
) -> None:
    for store in stores:
        store.always(Fault(hold=Stage.BEFORE_STATUS), method="GET")
    locator = stores[0].store_block(b"foo")
    process = subprocess.Popen(
        [sys.executable, "-m", "keepfs", "get", "-o", "out", locator],
        stderr=subprocess.PIPE,
        env=over.environment,
        cwd=over.home,
        # A shell starts its background jobs with SIGINT ignored, and so the tests.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads
    )
    while not any(store.log("GET") for store in stores):
        time.sleep(0.01)
    assert list(over.home.glob("*out*")) != []

    process.send_signal(number)
    _, errors = process.communicate(timeout=60)

    assert (process.returncode, errors.strip()) == (code, b"")
    assert list(over.home.glob("*out*")) == []


# --- services ---------------------------------------------------------------------------------


def test_verify_counts_copies_if_copies_is_given(
    over: Shell, stores: list[KeepstoreControls]
) -> None:
    locator = next(it.store_block(b"foo") for it in stores[1:])
    stores[2].store_block(b"foo")

    assert over.run("verify", locator).stdout.count(b"ok\t") == 2
    assert over.run("verify", "--copies", "2", locator).stdout.count(b"missing\t") == 1
    assert f"{locator.partition('+A')[0]}: found 2 of 3 copies" in over.error(
        "verify", "--copies", "3", locator
    )


def test_a_refused_locator_is_reported_as_refused(
    over: Shell, stores: list[KeepstoreControls]
) -> None:
    stores[0].store_block(b"foo")

    for command in ("verify", "where"):
        output, _ = failing(over, command, FOO)
        assert output.count("refused") == 3


def test_put_with_a_wrong_token_fails(
    shell: Shell, api: ApiControls, stores: list[KeepstoreControls]
) -> None:
    shell.environment["ARVADOS_API_TOKEN"] = ELSEWHERE

    said = shell.error("put", "-")

    assert "the API server refuses the token from ARVADOS_API_TOKEN in the environment" in said
    assert [store.counts().get("PUT", 0) for store in stores] == [0, 0, 0]
    assert api.log() != []


def test_put_succeeds_if_the_token_cannot_be_checked(shell: Shell, api: ApiControls) -> None:
    api.always(Fault(status=503), target="users/current")

    assert shell.run("put", "-", sent=b"foo").stdout.startswith(FOO.encode())


@pytest.mark.parametrize("command", ["get", "stat", "verify", "where"])
def test_a_refusing_api_server_gets_one_request(
    command: str, shell: Shell, api: ApiControls
) -> None:
    api.always(Fault(status=401))

    assert "401" in shell.error(command, MISSING)
    assert len(api.log()) == 1


def test_an_unknown_storage_class_is_refused(shell: Shell, api: ApiControls) -> None:
    api.configure(storage_classes={"default": {"Default": True}, "cold": {"Default": False}})

    said = shell.error("put", "--storage-classes", "nosuch", "-")

    assert "the cluster has no storage class 'nosuch'; there are: cold, default" in said


def test_an_api_host_may_be_written_as_an_url(shell: Shell, api: ApiControls) -> None:
    shell.environment["ARVADOS_API_HOST"] = f"https://{api.host}/"

    assert shell.run("put", "-", sent=b"foo").stdout.startswith(FOO.encode())


@pytest.mark.parametrize("host", ["http://foo", "foo/bar", "https://foo/bar", "a b"])
def test_an_invalid_api_host_is_refused(host: str, shell: Shell) -> None:
    del shell.environment["KEEP_LOCAL_STORE"]
    shell.environment |= {"ARVADOS_API_HOST": host, "ARVADOS_API_TOKEN": "x"}

    said = shell.error("stat", FOO)

    assert "ARVADOS_API_HOST in the environment is" in said
    assert "give HOST or HOST:PORT" in said


@pytest.mark.parametrize("command", ["get", "put"])
def test_a_silent_api_server_is_named_after_two_seconds(command: str, shell: Shell) -> None:
    del shell.environment["KEEP_LOCAL_STORE"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        shell.environment |= {"ARVADOS_API_HOST": host, "ARVADOS_API_TOKEN": "x"}
        process = subprocess.Popen(
            [sys.executable, "-m", "keepfs", command, FOO if command == "get" else "/dev/null"],
            stderr=subprocess.PIPE,
            env=shell.environment,
        )
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        process.kill()
        process.communicate()

    assert line == f"keepfs: still waiting for the API server {host}, or the Keep services\n"


def test_copies_behind_a_proxy_are_not_counted(
    shell: Shell, stores: list[KeepstoreControls]
) -> None:
    settings = ProxySettings(stores=[Store("zzzzz-bi6l4-000000000000000", stores[0].url)])
    locator = stores[0].store_block(b"foo")
    del shell.environment["KEEP_LOCAL_STORE"]
    with KeepproxyControls(settings) as proxy:
        shell.environment |= {
            "ARVADOS_KEEP_SERVICES": proxy.url,
            "ARVADOS_API_TOKEN": TEST_TOKEN,
        }
        shell.run("verify", "--copies", "3", locator)


def test_a_local_store_is_a_copy(shell: Shell) -> None:
    LocalStore(shell.store).put(b"foo")

    assert shell.run("verify", FOO).stdout.startswith(b"ok\t")


def test_services_without_a_copy_of_a_remote_block_are_reported(
    over: Shell, stores: list[KeepstoreControls], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    with (
        KeepstoreControls() as remote,
        ApiControls(listening=Listening(tls=authority.certify())) as elsewhere,
    ):
        elsewhere.list_services([ServiceEntry.of(remote.url, 1)])
        for store in stores:
            store.configure(remotes={"yyyyy": elsewhere.url})
        remote.store_block(b"foo")
        signed = remote.sign(FOO, salted_token(TEST_TOKEN, "yyyyy"))
        locator = signed.replace("+A", "+Ryyyyy-")

        for command in ("verify", "where"):
            assert over.run(command, locator).stdout.count(b"remote") == 3
        said = over.error("verify", "--copies", "1", locator)

    assert f"{locator.partition('+R')[0]}: found 0 of 1 copies" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("mount", ""),
        ("mount", "--state-dir", "", "/mnt"),
        ("mount", "--log-file", "", "/mnt"),
        ("unmount", ""),
        ("unsaved", "list", ""),
        ("get", "-o", "", FOO),
    ],
)
def test_an_empty_path_is_not_the_working_directory(
    arguments: tuple[str, ...], shell: Shell
) -> None:
    assert "the path is empty" in shell.error(*arguments, code=2)


# --- unsaved export ------------------------------------------------------------------------


@pytest.fixture
def record(over: Shell, stores: list[KeepstoreControls], tmp_path: Path) -> tuple[str, ...]:
    """The words that export a file of two pieces: one is in the record, the other in a store."""
    locator = KeepLocator(over.run("put", "-", sent=b"in a store").stdout.decode().split()[0])
    receipt = Receipt(locator, 1, (stores[0].url,))
    stored = StoredBytes([StoredRange(receipt, 0, 10), StoredRange(receipt, 3, 2)])
    pieces = [Piece(100_000, staged=b"x" * 100_000), Piece(14, stored)]
    spilled = unsaved.spill(tmp_path / "state", About("file", 100_014, mtime_ns=10**18), pieces)
    (tmp_path / "mountpoint").mkdir()
    return ("unsaved", "export", str(tmp_path / "mountpoint"), spilled.name, str(tmp_path / "out"),
            "--state-dir", str(tmp_path / "state"))  # fmt: skip


def test_an_export_has_its_name_when_it_is_whole(
    over: Shell, record: tuple[str, ...], tmp_path: Path
) -> None:
    done = over.run(*record)

    assert done.stderr == b""
    assert (tmp_path / "out").read_bytes() == b"x" * 100_000 + b"in a storea \0\0"
    assert (tmp_path / "out").stat().st_mtime_ns == 10**18
    assert list(tmp_path.glob(".out.*.part")) == []


def test_an_export_of_many_pieces_opens_one_client(
    api: ApiControls, shell: Shell, stores: list[KeepstoreControls], tmp_path: Path
) -> None:
    block = {store.store_block(b"in a store") for store in stores}.pop()
    stored = StoredBytes([StoredRange(Receipt(KeepLocator(block), 1, ()), 3, 2)])
    pieces = [Piece(2, stored), Piece(1, staged=b"x"), Piece(2, stored), Piece(2, stored)]
    spilled = unsaved.spill(tmp_path / "state", About("file", 7, mtime_ns=10**18), pieces)
    (tmp_path / "mountpoint").mkdir()

    done = keepfs(
        *("unsaved", "export", tmp_path / "mountpoint", spilled.name, tmp_path / "out"),
        *("--progress", "--state-dir", tmp_path / "state"),
        env=shell.environment,
    )

    assert done.returncode == 0
    assert b"exporting" in done.stderr
    assert (tmp_path / "out").read_bytes() == b"a xa a "
    # A client fetches the list of services, and a block, once.
    assert sum("keep_services" in each.target for each in api.log()) == 1
    assert sum(store.counts().get("GET", 0) for store in stores) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_export_that_is_killed_leaves_nothing_under_its_name(
    over: Shell,
    stores: list[KeepstoreControls],
    record: tuple[str, ...],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    for store in stores:
        store.always(Fault(hold=Stage.BEFORE_STATUS), method="GET")
    with subprocess.Popen(
        [sys.executable, "-m", "keepfs", *record],
        stderr=subprocess.PIPE,
        env=over.environment,
        cwd=tmp_path,
    ) as process:
        stores[0].wait_under_way(1, "GET")
        during = (tmp_path / "out").exists(), bool(list(tmp_path.glob(".out.*.part")))
        process.send_signal(number)
        process.wait(60)

    assert during == (False, True)
    assert not (tmp_path / "out").exists()
    left = list(tmp_path.glob(".out.*.part"))
    assert bool(left) == (number is signal.SIGKILL)
    for store in stores:
        store.heal()
    over.run(*record)  # what a killed one left doesn't keep another from it
    assert (tmp_path / "out").read_bytes() == b"x" * 100_000 + b"in a storea \0\0"
    assert list(tmp_path.glob(".out.*.part")) == left


@pytest.mark.parametrize("is_linking", [True, False])
def test_two_commands_with_one_output_do_not_mix_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_linking: bool
) -> None:
    output = tmp_path / ("名" * 80)  # a name of 240 bytes

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "no hard links here", str(self), None, str(target))

    if not is_linking:  # as on FAT or a mount of keepfs
        monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    with pytest.raises(click.ClickException, match="File exists"):  # noqa: SIM117, PT012
        with clients.written_whole(output, is_new=True) as late:
            late.write(b"late")
            with clients.written_whole(output, is_new=True) as early:
                early.write(b"early")
            assert output.read_bytes() == b"early"

    assert output.read_bytes() == b"early"
    assert os.listdir(tmp_path) == [output.name]
    with clients.written_whole(output) as first:
        first.write(b"1st")
        with clients.written_whole(output) as second:
            second.write(b"a second one")
        assert output.read_bytes() == b"a second one"
    assert output.read_bytes() == b"1st"
    assert os.listdir(tmp_path) == [output.name]


def test_an_export_to_a_full_disk_leaves_nothing(
    over: Shell, record: tuple[str, ...], tmp_path: Path
) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 100; exec "$0" -m keepfs "$@"', sys.executable, *record],
        capture_output=True,
        check=False,
        # Coverage's own data file is larger than the limit.
        env={k: v for k, v in over.environment.items() if not k.startswith("COVERAGE_")},
        cwd=tmp_path,
    )

    assert done.returncode == 1
    assert done.stderr.decode() == f"Error: {tmp_path / 'out'}: File too large [output-failed]\n"
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.*.part")) == []


def test_an_export_replaces_nothing(over: Shell, record: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"mine")

    done = over.run(*record, code=1)

    assert b"out: File exists" in done.stderr
    assert (tmp_path / "out").read_bytes() == b"mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_record_that_cannot_be_dropped_is_an_error(
    over: Shell, record: tuple[str, ...], tmp_path: Path
) -> None:
    about = tmp_path / "state" / "unsaved" / record[3] / "about.json"
    subprocess.run(["mount", "--bind", about, about], check=True)  # so it can't be deleted
    try:
        done = over.run("unsaved", "drop", record[2], record[3], *record[5:], code=1)
    finally:
        subprocess.run(["umount", about], check=True)

    assert b"about.json" in done.stderr
    assert over.run("unsaved", "list", record[2], *record[5:]).stdout
