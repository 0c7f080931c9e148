"""The command line, as a shell sees it; mounting itself is tested with real mounts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from keepfs import __version__
from keepfs.cli import keepfs as group
from keepfs.cli import settings
from keepfs.cli.fstab_words import is_known_word
from keepfs.cli.mounting import mount_command
from keepfs.config.options import CONFIG_KEYS
from keepfs.keep import MAX_BLOCK_SIZE, KeepLocator
from keepfs.keep.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FOO = "acbd18db4cc2f85cedef654fccc4a4d8+3"
EMPTY = "d41d8cd98f00b204e9800998ecf8427e+0"
COMMANDS = ("mount", "unmount", "put", "get", "stat", "verify", "where", "locate")


class Shell:
    """Runs keepfs with a local store and a home of its own.

    Args:
        directory: For both.

    Attributes:
        store: The local store's directory.
        home: The user's home.
        environment: What commands get to know.
    """

    def __init__(self, directory: Path) -> None:
        self.store = directory / "blocks"
        self.home = directory / "home"
        self.home.mkdir()
        ours = ("KEEP", "ARVADOS_", "XDG_")
        self.environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith(ours)},
            "HOME": str(self.home),
            "KEEP_LOCAL_STORE": str(self.store),
            "PYTHONPATH": str(ROOT),
        }

    def run(
        self, *arguments: str | bytes | Path, sent: bytes = b"", code: int = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command that ends with this code; if it fails, it does so in one line."""
        done = subprocess.run(
            [sys.executable, "-m", "keepfs", *map(os.fsencode, arguments)],
            input=sent,
            capture_output=True,
            check=False,
            env=self.environment,
            cwd=self.home,
            timeout=60,
        )
        assert done.returncode == code, done.stderr.decode()
        assert b"Traceback" not in done.stderr
        if code == 0:
            assert done.stderr == b""
        if code == 1:
            assert done.stderr.startswith(b"Error: ")
            assert done.stderr.count(b"\n") == 1
        return done

    def error(self, *arguments: str | bytes | Path, sent: bytes = b"", code: int = 1) -> str:
        """Run a command that fails; return what it says on standard error."""
        return self.run(*arguments, sent=sent, code=code).stderr.decode()

    def file(self, name: str, content: bytes) -> Path:
        """Make a file for a command."""
        path = self.home / name
        path.write_bytes(content)
        return path


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def stored(shell: Shell, block: bytes) -> str:
    return str(LocalStore(shell.store).put(block).locator)


# --- what there is ------------------------------------------------------------------


def test_the_version_is_printed(shell: Shell) -> None:
    assert shell.run("--version").stdout.decode() == f"keepfs {__version__}\n"


def test_the_version_is_printed_without_slow_imports(shell: Shell) -> None:
    code = (
        "import sys\nfrom keepfs.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'trio', 'pyfuse3', 'requests', 'platformdirs'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        capture_output=True,
        text=True,
        check=True,
        env=shell.environment,
    )

    assert done.stdout.splitlines()[-1] == "[]"


def test_help_lists_each_command_as_its_own_help_begins() -> None:
    context = click.Context(group, info_name="keepfs")
    formatter = context.make_formatter()
    click.Group.format_commands(group, context, formatter)

    assert group.get_help(context).endswith(formatter.getvalue().rstrip())


@pytest.mark.parametrize(
    ("words", "unneeded"),
    [
        (("--version",), {"trio", "requests", "rich", "sqlite3", "keepfs.keep"}),
        (("--help",), {"trio", "requests", "rich", "sqlite3", "keepfs.keep"}),
        (("status",), {"trio", "requests", "rich", "sqlite3"}),
        (("unmount", "--help"), {"trio", "requests", "rich", "sqlite3"}),
        (("locate", "/etc/hostname"), {"trio", "requests", "rich", "sqlite3"}),
    ],
)
def test_a_command_loads_no_library_that_it_does_not_need(
    words: tuple[str, ...], unneeded: set[str], shell: Shell
) -> None:
    # Coverage itself loads sqlite3.
    environment = {
        name: text for name, text in shell.environment.items() if not name.startswith("COVERAGE")
    }
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "keepfs", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}

    assert "click" in loaded
    assert loaded & unneeded == set()


def test_help_names_every_command(shell: Shell) -> None:
    for option in ("--help", "-h"):
        said = shell.run(option).stdout.decode()

        for command in COMMANDS:
            assert re.search(rf"^  {command} +\w", said, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(shell: Shell, command: str) -> None:
    assert shell.run(command, "-h").stdout.startswith(f"Usage: keepfs {command} ".encode())


@pytest.mark.parametrize("words", [(), ("service",)])
def test_a_group_without_a_command_prints_its_help_once(
    shell: Shell, words: tuple[str, ...]
) -> None:
    done = shell.run(*words, code=2)

    assert done.stdout == b""
    assert done.stderr == shell.run(*words, "--help").stdout
    assert done.stderr.count(b"Usage: ") == 1


def test_unknown_commands_and_options_are_usage_errors(shell: Shell) -> None:
    assert "No such command 'fetch'" in shell.error("fetch", code=2)
    assert "No such option" in shell.error("put", "--fast", "x", code=2)
    assert "Missing argument" in shell.error("get", code=2)


def test_without_a_store_the_error_names_both_kinds(shell: Shell) -> None:
    del shell.environment["KEEP_LOCAL_STORE"]
    for command in (("mount", "m"), ("put", "x"), ("get", FOO), ("stat", FOO)):
        said = shell.error(*command, code=2)

        assert "ARVADOS_API_HOST" in said
        assert "--local-store DIR" in said


# --- put and get ---------------------------------------------------------------------


def test_put_prints_each_files_locator_and_get_writes_it_back(shell: Shell) -> None:
    foo, bar = shell.file("foo", b"foo"), shell.file("bar", b"bar\n")

    said = shell.run("put", foo, bar).stdout.decode()
    locators = [line.split("\t")[0] for line in said.splitlines()]

    assert [line.split("\t")[1] for line in said.splitlines()] == [str(foo), str(bar)]
    assert locators[0] == FOO
    assert shell.run("get", *locators).stdout == b"foobar\n"
    assert shell.run("get", ",".join(locators)).stdout == b"foobar\n"


def test_put_stores_standard_input(shell: Shell) -> None:
    assert shell.run("put", "-", sent=b"foo").stdout.decode() == f"{FOO}\t-\n"
    assert shell.run("put", "-", "-", sent=b"foo").stdout.decode() == f"{FOO}\t-\n{EMPTY}\t-\n"


def test_an_empty_file_is_the_empty_block(shell: Shell) -> None:
    path = shell.file("empty", b"")

    assert shell.run("put", path).stdout.decode() == f"{EMPTY}\t{path}\n"
    assert shell.run("get", EMPTY).stdout == b""


@pytest.mark.parametrize("extra", [0, 5])
def test_a_file_over_one_block_becomes_several(shell: Shell, extra: int) -> None:
    content = os.urandom(1 << 20) * 64 + bytes(extra)
    path = shell.file("large", content)

    locators = shell.run("put", path).stdout.decode().split("\t")[0]
    shell.run("get", "-o", "copy", locators)

    sizes = [KeepLocator(each).size for each in locators.split(",")]
    assert sizes == ([MAX_BLOCK_SIZE, extra] if extra else [MAX_BLOCK_SIZE])
    assert hashlib.sha256((shell.home / "copy").read_bytes()).digest() == (
        hashlib.sha256(content).digest()
    )


def test_a_name_need_not_be_text(shell: Shell) -> None:
    path = os.fsencode(shell.home) + b"/\xff\xfe"
    Path(os.fsdecode(path)).write_bytes(b"foo")
    shell.environment["PYTHONIOENCODING"] = "utf-8:strict"  # as in most people's locales

    assert shell.run("put", path).stdout == FOO.encode() + b"\t" + path + b"\n"


def test_a_store_may_be_set_in_three_ways(shell: Shell, tmp_path: Path) -> None:
    path = shell.file("foo", b"foo")
    shell.environment["KEEPFS_LOCAL_STORE"] = str(tmp_path / "ours")
    shell.run("put", path)
    shell.run("put", "--local-store", tmp_path / "typed", path)
    shell.run("put", "--local-store", "~/at_home", path)

    for store in (tmp_path / "ours", tmp_path / "typed", shell.home / "at_home"):
        assert [each.name for each in store.iterdir()] == [FOO[:32]]
    assert not shell.store.exists()


def test_get_replaces_a_file_only_when_it_has_all_of_it(shell: Shell) -> None:
    old = shell.file("out", b"old")
    missing = f"{'0' * 32}+3"
    stored(shell, b"foo")

    error = shell.error("get", "-o", old, FOO, missing)
    after_failure = (old.read_bytes(), sorted(each.name for each in shell.home.iterdir()))
    shell.run("get", "-o", old, FOO)

    assert f"{missing} not found" in error
    assert after_failure == (b"old", ["out"])
    assert old.read_bytes() == b"foo"


def test_a_corrupt_block_is_not_written_out(shell: Shell) -> None:
    stored(shell, b"foo")
    (shell.store / FOO[:32]).write_bytes(b"fox")

    done = shell.run("get", FOO, code=1)

    assert done.stdout == b""
    assert b"corrupt" in done.stderr


def test_an_invalid_locator_is_a_usage_error(shell: Shell) -> None:
    for command in ("get", "stat", "verify", "where"):
        assert "not a locator" in shell.error(command, FOO.upper(), code=2)
    for text in (f"{FOO},", f"{FOO},foo", "\udcff"):
        assert "not a locator" in shell.error("get", text, code=2)


def test_files_that_cannot_be_read_or_written_are_reported_in_one_line(shell: Shell) -> None:
    stored(shell, b"foo")

    assert "none: No such file or directory" in shell.error("put", "none")
    assert "Is a directory" in shell.error("put", shell.home)
    assert "No such file or directory" in shell.error("get", "-o", "none/out", FOO)
    (shell.home / "file").touch()
    assert "can't store" in shell.error("put", "--local-store", "file/x", "-", sent=b"foo")


def test_a_failure_of_put_names_the_file_once(shell: Shell) -> None:
    path = str(shell.file("hello.txt", b"hello"))
    shell.file("file", b"")

    for given in (path, "none", "/proc/self/mem", "-"):
        error = shell.error("put", "--local-store", "file/x", given, sent=b"foo")
        name = "standard input" if given == "-" else given
        assert error.startswith(f"Error: {name}: ")
        assert error.count(name) == 1


def test_files_before_one_that_fails_are_stored_and_printed(shell: Shell) -> None:
    path = shell.file("foo", b"foo")

    done = shell.run("put", path, "none", code=1)

    assert done.stdout.decode() == f"{FOO}\t{path}\n"


def test_a_closed_pipe_causes_no_traceback(shell: Shell) -> None:
    locator = stored(shell, bytes(1 << 22))
    command = f"'{sys.executable}' -m keepfs get {locator} | head -c 1"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, check=True, env=shell.environment
    )

    assert done.stdout == b"\0"
    assert done.stderr == b""


def test_a_local_store_keeps_one_copy(shell: Shell) -> None:
    said = shell.error("put", "--copies", "2", "-", code=2)

    assert "a local store keeps one copy" in said


# --- stat, verify, where, locate -----------------------------------------------------


def test_stat_prints_sizes_and_fails_if_one_is_missing(shell: Shell) -> None:
    stored(shell, b"foo")
    missing = f"{'0' * 32}+3"

    found = shell.run("stat", FOO, FOO[:32]).stdout.decode()
    done = shell.run("stat", missing, f"{FOO},{FOO}", code=1)

    assert found == f"3\t{FOO}\n3\t{FOO[:32]}\n"
    assert done.stdout.decode() == f"3\t{FOO}\n" * 2
    assert f"{missing} not found" in done.stderr.decode()


def test_verify_and_where_read_a_local_block(shell: Shell) -> None:
    stored(shell, b"foo")
    name = f"local:{shell.store}"

    assert shell.run("verify", FOO).stdout.decode() == f"ok\t{name}\t{FOO}\n"
    assert name in shell.run("where", FOO).stdout.decode()


def test_locate_refuses_files_outside_mounts(shell: Shell) -> None:
    path = shell.file("foo", b"foo")

    assert "isn't in a keepfs mount" in shell.error("locate", path)
    assert "none: No such file" in shell.error("locate", "none")


def test_locate_ignores_attributes_copied_elsewhere(shell: Shell) -> None:
    path = shell.file("copied", b"")
    try:
        os.setxattr(path, "user.keep.state", b"stored")
        os.setxattr(path, "user.keep.locator", FOO.encode())
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")

    assert "isn't in a keepfs mount" in shell.error("locate", path)


# --- the options of mount, and where they come from ----------------------------------------


@pytest.fixture
def options_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, object]]:
    """Return a function that reads a command line of mount, without mounting."""
    for name in list(os.environ):
        if name.startswith(("KEEP", "ARVADOS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def read(*arguments: str) -> dict[str, object]:
        with mount_command.make_context("mount", [*arguments, "/mnt"]) as context:
            return dict(context.params)

    return read


def configure(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keepfs" / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)


def test_the_command_line_overrides_the_environment_and_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options_of: Callable[..., dict[str, object]],
) -> None:
    by_default = options_of()["cache_size"]
    configure(tmp_path, 'cache-size = "1M"\nretries = 7\nread-only = true\n')
    from_file = options_of()
    monkeypatch.setenv("KEEPFS_CACHE_SIZE", "2M")
    monkeypatch.setenv("KEEPFS_READ_ONLY", "0")
    from_environment = options_of()
    from_words = options_of("-o", "cache-size=3M")
    from_command_line = options_of("-o", "cache-size=3M", "--cache-size", "4M")

    assert by_default == 256 << 20
    assert (from_file["cache_size"], from_file["retries"]) == (1 << 20, 7)
    assert from_file["read_only"] is True
    assert from_environment["cache_size"] == 2 << 20
    assert from_environment["read_only"] is False
    assert from_words["cache_size"] == 3 << 20
    assert from_command_line["cache_size"] == 4 << 20


def test_options_may_be_written_as_in_fstab(options_of: Callable[..., dict[str, object]]) -> None:
    said = options_of(
        *("-o", "rw,noauto,_netdev,x-systemd.automount,,allow_other,uid=5"),
        *("-o", "umask=077,log-level=debug,ro"),
    )

    assert (said["allow_other"], said["read_only"], said["nonempty"]) == (True, True, False)
    assert (said["uid"], said["umask"], said["log_level"]) == (5, 0o077, "DEBUG")


def test_each_option_of_the_help_is_one_of_fstab() -> None:
    context = click.Context(mount_command, info_name="mount")
    records = [each.get_help_record(context) for each in mount_command.params]
    options = {name for each in records if each for name in re.findall(r"--([a-z-]+)", each[0])}

    assert {"config", "cache-size", "allow-other", "retain"} < options
    # Of the two that say how the command runs, exec is a word of mount(8).
    assert {name for name in options if not is_known_word(name, mount_command)} == {"foreground"}


def test_a_file_named_as_in_fstab_is_read_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options_of: Callable[..., dict[str, object]],
) -> None:
    configure(tmp_path, "retries = 7")
    for name, retries in (("word", 1), ("variable", 2), ("given", 3)):
        (tmp_path / name).write_text(f"retries = {retries}\n")
    words = ("-o", f"config={tmp_path}/word,copies=2")
    monkeypatch.setenv("KEEPFS_CONFIG", str(tmp_path / "variable"))

    assert options_of()["retries"] == 2
    assert (options_of(*words)["retries"], options_of(*words)["copies"]) == (1, 2)
    for given in (
        ("--config", str(tmp_path / "given"), *words),
        (*words, "--config", str(tmp_path / "given")),
    ):
        assert options_of(*given)["retries"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fast", "unknown option: -o fast"),
        ("foreground", "-o foreground: mount(8) waits until the mount is ready"),
        ("config=/none/x", "the configuration file /none/x doesn't exist"),
        ("config", "-o config needs a value; write -o config=VALUE"),
        ("uid", "-o uid needs a value; write -o uid=VALUE"),
        ("allow_other=1", "-o allow_other takes no value"),
        ("ro=1", "-o ro takes no value"),
        ("uid=me", "'me' is not a valid integer"),
        ("cache-size=many", "'many' isn't a size"),
        ("umask=888", "'888' isn't an octal umask"),
        ("umask=1777", "'1777' isn't an octal umask"),
    ],
)
def test_invalid_words_of_fstab_are_refused(
    options_of: Callable[..., dict[str, object]], words: str, message: str
) -> None:
    with pytest.raises(click.UsageError) as caught:
        options_of("-o", words)

    assert message in caught.value.format_message()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cache_size = 1", "unknown key 'cache_size'"),
        ("mountpoint = 'x'", "unknown key 'mountpoint'"),
        ("config = 'x'", "unknown key 'config'"),
        ("uid = [1]", "uid is a list; write a single value"),
        ("uid", "can't read"),
        ("cache-size = -5", "'-5' isn't a size"),
        ("cache-size = true", "'True' isn't a size"),
        ("uid = true", "'True' is not a valid integer"),
        ("lookup = 'guess'", "'guess' is not one of"),
    ],
)
def test_an_invalid_configuration_file_is_refused(
    tmp_path: Path,
    options_of: Callable[..., dict[str, object]],
    content: str,
    message: str,
) -> None:
    configure(tmp_path, content)

    with pytest.raises(click.UsageError) as caught:
        options_of()
    assert message in caught.value.format_message()


def test_a_number_in_the_file_may_be_a_path(
    tmp_path: Path, options_of: Callable[..., dict[str, object]]
) -> None:
    configure(tmp_path, "local-store = 5")

    assert options_of()["local_store"] == "5"


def test_a_given_configuration_file_must_exist(
    tmp_path: Path, options_of: Callable[..., dict[str, object]]
) -> None:
    path = tmp_path / "mine.toml"
    with pytest.raises(click.UsageError, match=r"the configuration file .* doesn't exist"):
        options_of("--config", str(path))
    path.write_text("uid = 5")

    assert options_of("--config", str(path))["uid"] == 5


def test_the_keys_of_the_file_are_the_settings_of_mount() -> None:
    names = {it.name for it in mount_command.params if isinstance(it, settings.Setting)}

    assert {name.replace("_", "-") for name in names if name} == CONFIG_KEYS


def test_every_command_about_blocks_reads_the_configuration_file(shell: Shell) -> None:
    store = shell.home / "configured"
    configuration = shell.home / ".config" / "keepfs" / "config.toml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(f'local-store = "{store}"\nread-only = true\n')
    del shell.environment["KEEP_LOCAL_STORE"]
    (shell.home / "file").write_bytes(b"content")

    locator = shell.run("put", "file").stdout.decode().partition("\t")[0]

    assert (store / locator[:32]).read_bytes() == b"content"
    for command in ("get", "stat", "verify", "where"):
        shell.run(command, locator)
    other = shell.home / "other.toml"
    other.write_text('local-store = "elsewhere"')
    assert "not found" in shell.error("get", "--config", str(other), locator)


def test_the_file_sets_the_state_directory_of_unsaved(shell: Shell) -> None:
    configuration = shell.home / ".config" / "keepfs" / "config.toml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text('state-dir = "state"')
    (shell.home / "m").mkdir()
    aside = configuration.parent / "state" / "unsaved" / "1"
    aside.mkdir(parents=True)
    (aside / "about.json").write_text("")

    for command in (("list", "m"), ("export", "m", "1", "out"), ("drop", "m", "1")):
        said = shell.error("unsaved", *command)
        assert f"{aside} is not a usable spill record" in said


def test_copies_in_the_file_do_not_apply_to_a_given_local_store(shell: Shell) -> None:
    configuration = shell.home / ".config" / "keepfs" / "config.toml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("copies = 3")
    (shell.home / "file").write_bytes(b"content")

    shell.run("put", "--local-store", "named", "file")

    assert "--copies can't be used" in shell.error(
        "put", "--copies", "3", "--local-store", "x", "file", code=2
    )


def test_an_unknown_key_is_one_message(shell: Shell) -> None:
    configuration = shell.home / ".config" / "keepfs" / "config.toml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text("fast = true")

    said = shell.error("mount", "mnt", code=2)

    assert f"{configuration}: unknown key 'fast'; valid keys: " in " ".join(said.split())


def test_unmounting_an_unmounted_path_is_an_error(shell: Shell) -> None:
    assert "nothing is mounted on" in shell.error("unmount", shell.home)
    assert "isn't a keepfs mount but a proc mount" in shell.error("unmount", "/proc")


def test_the_module_and_the_script_are_equivalent() -> None:
    script = shutil.which("keepfs", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("keepfs isn't installed here")
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"keepfs {__version__}\n"


def test_get_writes_into_pipes_and_through_links_and_keeps_modes(shell: Shell) -> None:
    (shell.home / "file").write_bytes(b"content")
    locator = shell.run("put", "file").stdout.decode().partition("\t")[0]
    pipe, target, link = shell.home / "pipe", shell.home / "target", shell.home / "link"
    os.mkfifo(pipe)
    target.write_bytes(b"before")
    target.chmod(0o600)
    link.symlink_to(target)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        shell.run("get", "-o", str(pipe), locator)
        assert reader.stdout is not None
        assert reader.stdout.read() == b"content"

    shell.run("get", "-o", str(link), locator)

    assert pipe.is_fifo()
    assert link.is_symlink()
    assert target.read_bytes() == b"content"
    assert target.stat().st_mode & 0o777 == 0o600


def test_the_help_shows_its_examples_line_by_line(shell: Shell) -> None:
    lines = shell.run("--help").stdout.decode().splitlines()

    assert any(line.strip().startswith("cp FILE /mnt/keep/upload/") for line in lines)
    assert not any("\\b" in line or "\b" in line for line in lines)


def test_permissions_in_the_file_are_text(
    tmp_path: Path, options_of: Callable[..., dict[str, object]]
) -> None:
    configure(tmp_path, "umask = 0o077")
    with pytest.raises(click.UsageError, match='umask = "022"'):
        options_of()

    configure(tmp_path, 'umask = "077"')
    assert options_of()["umask"] == 0o077


def test_the_environment_overrides_the_store_in_the_file(shell: Shell) -> None:
    configuration = shell.home / ".config" / "keepfs" / "config.toml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text('keep-services = "http://127.0.0.1:1/"')
    (shell.home / "m").write_bytes(b"")

    # KEEP_LOCAL_STORE is set: it counts, and the mount point is what is wrong.
    done = shell.run("mount", "m", code=1)

    assert b"isn't a directory" in done.stderr


def test_every_mount_point_has_a_state_directory_of_its_own() -> None:
    paths = ["/a/-b", "/a-/b", "/", "/root", "/a/b", "/a-b", "/" + "x" * 3000]

    names = {settings.default_state_dir(Path(path)).name for path in paths}

    assert len(names) == len(paths)
    assert max(map(len, names)) < 100


def test_a_missing_user_or_directory_is_one_message(shell: Shell) -> None:
    done = shell.run("stat", "--local-store", "~nosuchuser/x", "a" * 32, code=2)

    assert b"can't resolve" in done.stderr
