"""The registry of messages: ids, texts, the document, and that tests provoke each message."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from keepfs.messages.message import Message, ids_in, without_ids
from keepfs.messages.registry import MESSAGES, explanation, find
from tests.cli.test_cli import Shell
from tests.messages.document import document
from tests.messages.provoking import PROVOKED

ROOT = Path(__file__).parents[2]
#: Exceptions whose text a user sees.
SHOWN = frozenset(
    (
        *("ClickException", "UsageError", "BadParameter", "StoreError", "MountError"),
        *("MountpointError", "CatalogError", "ControlError", "UploadedError"),
        "AlreadyServedError",
    )
)


def calls() -> list[tuple[str, ast.Call]]:
    """Return each call in keepfs/, with its place."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path in sorted((ROOT / "keepfs").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def test_each_message_is_provoked_by_a_test() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"tests.messages.{path.stem}")

    assert set(MESSAGES) == PROVOKED


def test_the_document_is_current() -> None:
    assert (ROOT / "docs" / "troubleshooting.md").read_text() == document(), (
        "run scripts/troubleshooting"
    )


def test_each_message_has_an_id_of_words_and_says_cause_and_cure() -> None:
    for each in MESSAGES.values():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", each.id)
        assert each.cause.endswith("."), each.id
        assert each.cure.endswith("."), each.id


def test_texts_that_users_see_come_from_the_registry() -> None:
    literal = [
        place
        for place, call in calls()
        if isinstance(call.func, (ast.Name, ast.Attribute))
        and (call.func.id if isinstance(call.func, ast.Name) else call.func.attr) in SHOWN
        and call.args
        and isinstance(call.args[0], (ast.Constant, ast.JoinedStr, ast.BinOp))
    ]

    assert literal == [], "make a message of it, or use one of keepfs/messages/"


def test_each_use_of_a_message_gives_its_fields() -> None:
    constants = {
        (module.__name__.rpartition(".")[2], name): value
        for module in map(
            importlib.import_module,
            (f"keepfs.messages.{it.stem}" for it in (ROOT / "keepfs/messages").glob("of_*.py")),
        )
        for name, value in vars(module).items()
        if isinstance(value, Message)
    }
    used = set()
    for place, call in calls():
        if not (isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)):
            continue
        message = constants.get((call.func.value.id, call.func.attr))
        if message is not None:
            used.add(message.id)
            assert {each.arg for each in call.keywords} == message.fields(), place

    by_table = {"bad-value", "usage", *(it.id for it in constants.values() if it.text == "{text}")}
    assert set(MESSAGES) - used - by_table == set()


def test_a_text_has_one_id() -> None:
    inner = Message("the-inner", "no {what}", "", "")(what="block")
    outer = Message("the-outer", "can't go on: {reason}; retry\nat {place}", "", "")

    text = outer(reason=inner, place="once")

    assert text == "can't go on: no block; retry [the-outer]\nat once"
    assert ids_in(text) == ["the-outer"]
    assert outer.pattern().fullmatch(without_ids(text))


@pytest.mark.parametrize(
    "text",
    [
        "not-mounted",
        "[not-mounted]",
        "Error: nothing is mounted on /mnt; findmnt -t fuse.keepfs lists them [not-mounted]",
        "2026-01-01 WARNING keepfs: a [b] c [not-mounted]\nsecond line",
    ],
)
def test_a_message_is_found_by_its_id_or_its_text(text: str) -> None:
    message = find(text)

    assert message is not None
    assert message.id == "not-mounted"


def test_explain_prints_cause_and_cure(tmp_path: Path) -> None:
    shell = Shell(tmp_path)

    said = shell.run("explain", "token-refused").stdout.decode()

    assert said == explanation(MESSAGES["token-refused"]) + "\n"
    assert "Cause:" in said
    assert "Make a new token" in said
    listed = shell.run("explain").stdout.decode()
    assert all(f"\n  {each} " in listed for each in MESSAGES)
