"""Sizes as people write them, and the configuration file."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.config.options import (
    MountOptions,
    OptionsError,
    StoreOptions,
    default_config_file,
    default_config_files,
    format_size,
    parse_size,
    read_config_file,
    read_default_files,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("268435456", 2**28),
        ("256M", 2**28),
        ("256MB", 2**28),
        (" 256 MiB ", 2**28),
        ("1.5g", 3 * 2**29),
        ("1k", 1024),
        ("2TiB", 2**41),
        ("0.5", 0),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1e3", "1 000", "256MM", "1P", ".5", "5.", "٣", "1\n2", "0x10", "inf"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it as 256M"):
        parse_size(text)


@pytest.mark.parametrize("text", ["9" * 400, "8388608T", str(2**63), f"{'9' * 400}.5k"])
def test_a_size_larger_than_any_disk_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(ValueError, match="larger than any disk; write it as 256M") as caught:
        parse_size(text)

    assert len(str(caught.value)) < 150


@given(st.integers(0, 2**50))
def test_a_size_that_was_written_is_read_as_it_was(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.text())
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_size(text) >= 0


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (2**20, "1 MiB"), (2**30, "1 GiB")]
)
def test_a_size_is_written_in_the_largest_unit_that_fits(size: int, text: str) -> None:
    assert format_size(size) == text


def test_the_configuration_file_has_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    at_home = default_config_file()
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")  # to be ignored, the standard says
    still_at_home = default_config_file()
    monkeypatch.setenv("XDG_CONFIG_HOME", "/elsewhere")
    elsewhere = default_config_file()

    assert at_home == still_at_home == tmp_path / ".config/keepfs/config.toml"
    assert str(elsewhere) == "/elsewhere/keepfs/config.toml"


def test_who_has_no_home_has_no_configuration_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)

    assert default_config_file() is None


def test_a_relative_path_is_meant_from_where_the_file_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text('local-store = "blocks"\nstate-dir = "~/state"\nlog-file = "/log"\n')
    monkeypatch.chdir(tmp_path)

    for name in (path, Path("config.toml")):
        assert read_config_file(name) == {
            "local-store": str(tmp_path / "blocks"),
            "state-dir": "~/state",
            "log-file": "/log",
        }
    path.write_text('local-store = ""')  # none, for the SDK too
    assert read_config_file(path) == {"local-store": ""}


def test_a_configuration_file_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_config_file(tmp_path / "none.toml") == {}


def test_a_configuration_file_has_options_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('copies = 3\ncache-size = "1G"\n')

    assert read_config_file(path) == {"copies": 3, "cache-size": "1G"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"coppies = 3", "unknown key 'coppies'; valid keys: allow-other, cache-size, collection"),
        (b"copies", "can't read"),
        (b"\xff", "can't read"),
        (b"copies = [1, 2]", "copies is a list; write a single value"),
        (b"[copies]\na = 1", "copies is a dict; write a single value"),
        (b"umask = 22", "umask is a number; write text"),
        (b"['/mnt']\ncoppies = 3", r"\['/mnt'\] unknown key 'coppies'; valid keys: allow"),
        (b"'/mnt' = 3", "/mnt is a mount point and must be a table"),
    ],
)
def test_an_invalid_configuration_file_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)

    with pytest.raises(OptionsError, match=message) as caught:
        read_config_file(path)
    assert str(path) in str(caught.value)


TABLES = """
copies = 3
keep-services = "http://localhost:1/"
["/mnt/one"]
local-store = "blocks"
["/mnt/two/"]
copies = 1
"""


def test_a_table_of_a_mount_point_overrides_the_rest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(TABLES)

    assert read_config_file(path) == {"copies": 3, "keep-services": "http://localhost:1/"}
    assert read_config_file(path, {Path("/mnt/one")}) == {
        "copies": 3,
        "local-store": str(tmp_path / "blocks"),  # instead of the services
    }
    assert read_config_file(path, {Path("/mnt/two")})["copies"] == 1


def test_a_service_has_its_own_configuration_directory_before_the_users_and_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, user, machine = (tmp_path / name for name in ("service", "home", "etc"))
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", f"relative:{own}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(user))
    files = default_config_files(machine)
    assert files == [own / "config.toml", user / "keepfs" / "config.toml", machine / "config.toml"]
    for file, text in zip(
        files,
        ("copies = 1", "copies = 2\nretries = 2", "retries = 3\n['/mnt']\ncache-size = '1G'"),
        strict=True,
    ):
        file.parent.mkdir(parents=True)
        file.write_text(text)

    settings = read_default_files({Path("/mnt")}, machine)

    assert settings == {"copies": 1, "retries": 2, "cache-size": "1G"}
    files[2].write_text("colour = 1")
    with pytest.raises(OptionsError, match="unknown key 'colour'"):
        read_default_files((), machine)


def test_a_configuration_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="can't read"):
        read_config_file(tmp_path)


def test_the_public_settings_say_where_the_blocks_are_and_never_the_token(tmp_path: Path) -> None:
    local = MountOptions(
        mountpoint=tmp_path, state_dir=tmp_path, store=StoreOptions(local_store=tmp_path)
    )
    cluster = StoreOptions(token_file=tmp_path / "secret", storage_classes=("hot", "cold"))

    assert local.public_settings() == {
        "blocks": str(tmp_path),
        "cache-size": "256 MiB",
        "staging-size": "512 MiB",
        "read-only": "no",
    }
    assert cluster.public_settings()["blocks"] == "at the cluster's services"
    assert cluster.public_settings()["storage-classes"] == "hot,cold"
    assert "secret" not in str(cluster.public_settings())
