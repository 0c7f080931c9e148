"""Arvados's own settings: which file counts, what it says, and what the environment overrules."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from keepfs.config.arvados import (
    Settings,
    ca_file,
    credential,
    is_yes,
    load_settings,
    local_store_directory,
    parse_settings,
    settings_files,
)


def write(path: Path, text: str) -> Path:
    """Write a file, and the folders it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- the file's text ---


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("ARVADOS_A=1\n", {"ARVADOS_A": "1"}),
        ("  ARVADOS_A =  1 \t\n", {"ARVADOS_A": "1"}),
        ("ARVADOS_A=1=2\n", {"ARVADOS_A": "1=2"}),
        ("ARVADOS_A=\n", {"ARVADOS_A": ""}),
        ("ARVADOS_A\n", {}),
        ("# ARVADOS_A=1\n", {}),
        ("  # ARVADOS_A=1\n", {}),
        ("export ARVADOS_A=1\n", {}),
        ("KEEP_LOCAL_STORE=/x\n", {}),
        ('ARVADOS_A="1" # no comment\n', {"ARVADOS_A": '"1" # no comment'}),
        ("\n\nARVADOS_A=1\nARVADOS_A=2", {"ARVADOS_A": "2"}),
        ("ARVADOS_A=1\r\nARVADOS_B=2\r\n", {"ARVADOS_A": "1", "ARVADOS_B": "2"}),
    ],
)
def test_a_settings_file_is_read_as_the_go_programs_read_it(
    text: str, values: dict[str, str]
) -> None:
    assert parse_settings(text) == values


# --- which file ---


def test_the_places_of_the_file_in_their_order() -> None:
    environ = {
        "CONFIGURATION_DIRECTORY": "/run/a:relative:/run/b",
        "XDG_CONFIG_HOME": "/home/x/.cfg",
        "HOME": "/home/x",
        "XDG_CONFIG_DIRS": "/etc/one:two:/etc/three",
    }

    assert [str(path) for path in settings_files(environ)] == [
        "/run/a/settings.conf",
        "/run/b/settings.conf",
        "/home/x/.cfg/arvados/settings.conf",
        "/etc/keepfs/settings.conf",
        "/etc/one/arvados/settings.conf",
        "/etc/three/arvados/settings.conf",
        "/etc/arvados/settings.conf",
    ]


@pytest.mark.parametrize("own", [{}, {"XDG_CONFIG_HOME": "relative"}, {"XDG_CONFIG_HOME": ""}])
def test_without_a_place_of_ones_own_it_is_in_the_home_directory(own: dict[str, str]) -> None:
    paths = [str(path) for path in settings_files({"HOME": "/home/x", **own})]

    assert paths == [
        "/home/x/.config/arvados/settings.conf",
        "/etc/keepfs/settings.conf",
        "/etc/xdg/arvados/settings.conf",
        "/etc/arvados/settings.conf",
    ]


def test_without_the_variable_the_users_home_is_looked_up() -> None:
    home = pwd.getpwuid(os.geteuid()).pw_dir

    assert f"{home}/.config/arvados/settings.conf" in map(str, settings_files({}))


def test_without_a_home_there_is_only_the_machines_file() -> None:
    assert [str(path) for path in settings_files({"HOME": ""})] == [
        "/etc/keepfs/settings.conf",
        "/etc/xdg/arvados/settings.conf",
        "/etc/arvados/settings.conf",
    ]


def test_the_token_of_the_service_manager_is_a_file_unless_it_is_empty(tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert credential(environ) is None
    for nothing in ("", "-", "\n"):
        write(tmp_path / "token", nothing)
        assert credential(environ) is None
    write(tmp_path / "token", "v2/x/y")

    assert credential(environ) == tmp_path / "token"
    assert credential({"CREDENTIALS_DIRECTORY": "relative"}) is credential({}) is None


def test_only_the_first_file_that_exists_is_read(tmp_path: Path) -> None:
    first = write(tmp_path / "one/arvados/settings.conf", "ARVADOS_API_HOST=one\n")
    write(tmp_path / "two/arvados/settings.conf", "ARVADOS_API_HOST=two\nARVADOS_API_TOKEN=t\n")

    settings = load_settings(
        {
            "XDG_CONFIG_HOME": f"{tmp_path}/none",
            "XDG_CONFIG_DIRS": f"{tmp_path}/one:{tmp_path}/two",
        }
    )

    assert settings == Settings(api_host="one", source=first)


def test_a_file_that_may_not_be_read_is_no_reason_to_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "arvados/settings.conf", "ARVADOS_API_HOST=one\n")

    def refuse(self: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)

    with pytest.raises(PermissionError, match=str(path)):
        load_settings({"XDG_CONFIG_HOME": str(tmp_path)})


# --- what they say ---


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    write(
        tmp_path / "arvados/settings.conf",
        "ARVADOS_API_HOST=file\nARVADOS_API_TOKEN=file\nARVADOS_KEEP_PROXY=http://file/\n",
    )

    settings = load_settings(
        {
            "XDG_CONFIG_HOME": str(tmp_path),
            "ARVADOS_API_HOST": " env ",
            "ARVADOS_KEEP_PROXY": "",
            "ARVADOS_KEEP_SERVICES": "http://a/ http://b/",
        }
    )

    assert settings.api_host == "env"
    assert settings.api_token == "file"  # noqa: S105 - none
    assert settings.keep_proxy == ""
    assert settings.keep_services == "http://a/ http://b/"


def test_nothing_said_is_nothing_set() -> None:
    assert load_settings({"XDG_CONFIG_DIRS": "/nonexistent"}) == Settings()


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARVADOS_API_HOST", "here")
    monkeypatch.setenv("KEEP_LOCAL_STORE", "/blocks")

    assert load_settings().api_host == "here"
    assert local_store_directory() == "/blocks"


def test_the_local_store_is_not_taken_from_the_file(tmp_path: Path) -> None:
    write(tmp_path / "arvados/settings.conf", "KEEP_LOCAL_STORE=/file\n")

    assert local_store_directory({"XDG_CONFIG_HOME": str(tmp_path)}) == ""


def test_the_token_is_not_shown() -> None:
    assert "s3cret" not in repr(Settings(api_token="s3cret"))  # noqa: S106 - none


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "True", "y", "YES", " yes "])
def test_yes(text: str) -> None:
    assert is_yes(text)
    assert load_settings({"ARVADOS_API_HOST_INSECURE": text}).insecure


@pytest.mark.parametrize("text", ["", "0", "no", "false", "on", "2"])
def test_no(text: str) -> None:
    assert not is_yes(text)


# --- certificate authorities ---


def test_the_named_bundle_goes_first(tmp_path: Path) -> None:
    named, other = write(tmp_path / "named.pem", ""), write(tmp_path / "other.pem", "")

    assert ca_file({"SSL_CERT_FILE": str(named)}, [other]) == named
    assert ca_file({"SSL_CERT_FILE": str(tmp_path / "none.pem")}, [other]) == other
    assert ca_file({}, [tmp_path / "none.pem", other]) == other
    assert ca_file({}, [tmp_path / "none.pem"]) is None


def test_the_named_bundle_is_taken_from_the_process_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = write(tmp_path / "named.pem", "")
    monkeypatch.setenv("SSL_CERT_FILE", str(named))

    assert ca_file() == named
