"""The registry of messages: ids, texts, the document, and that tests provoke each message."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from keepfs.messages.message import Message, ids_in, without_ids
from keepfs.messages.registry import MESSAGES, explanation, find_message
from tests.cli.test_cli import Shell
from tests.messages.document import document
from tests.messages.provoking import PROVOKED

ROOT = Path(__file__).parents[2]
#: Exceptions whose text a user sees.
SHOWN = frozenset(
    (
        *("ClickException", "UsageError", "BadParameter", "StoreError", "MountError"),
        *("MountpointError", "CatalogError", "ControlError", "UploadedError"),
        *("AlreadyServedError", "MountAbandonedError", "MetricsError"),
    )
)


def calls(folder: str = "keepfs") -> list[tuple[str, ast.Call]]:
    """Return each call in the Python files of a folder, with its place."""
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def made_by_the_registry(node: ast.AST) -> bool:
    """Return whether an expression is a message of the registry, or the text of a failure."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=module))):
            return module.startswith("of_")
        case ast.Call(func=ast.Name(id="failure_text")):
            return True
    return False


def warnings_without_id(source: str) -> list[int]:
    """Return the lines that log a warning or error, or print one, with a text of their own.

    A call is accepted if its only text is `"%s"`, or a prefix such as `"%s: %s"`, and an
    argument is a message; or a name that only messages are assigned to in the same function.
    """
    tree = ast.parse(source)
    found = []
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    for function in functions:
        names: dict[str, list[bool]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names.setdefault(node.targets[0].id, []).append(made_by_the_registry(node.value))

        def is_message(node: ast.AST, names: dict[str, list[bool]] = names) -> bool:
            if isinstance(node, ast.Name):
                return all(names.get(node.id, [False]))
            return made_by_the_registry(node)

        for node in ast.walk(function):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="_log" | "log"), attr=level),
                    args=arguments,
                ) if level in {"warning", "error", "exception", "critical", "log"}:
                    start = 1 if level == "log" else 0
                    text, *values = arguments[start:]
                    is_plain = isinstance(text, ast.Constant) and not re.search(
                        r"[A-Za-z]", str(text.value).replace("%s", "")
                    )
                    if not (is_plain and any(map(is_message, values))):
                        found.append(node.lineno)
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="click"), attr="echo"),
                    args=[ast.JoinedStr(values=[ast.Constant(value=str(prefix)), *rest])],
                ) if prefix.startswith(("Warning", "Error")) and any(
                    isinstance(it, ast.Constant) for it in rest
                ):
                    found.append(node.lineno)
    return sorted(set(found))


def test_each_message_is_provoked_by_a_test() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"tests.messages.{path.stem}")

    checked = {
        argument.value
        for _, call in calls("tests")
        if isinstance(call.func, ast.Name) and call.func.id == "assert_shows"
        for argument in call.args[1:]
        if isinstance(argument, ast.Constant)
    }

    assert set(MESSAGES) - PROVOKED - checked == set()
    assert PROVOKED | checked <= set(MESSAGES)


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


def test_each_logged_warning_has_the_id_of_a_message() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "keepfs").rglob("*.py"))
        for line in warnings_without_id(path.read_text())
    ]

    assert found == [], "make a message of it in keepfs/messages/, and log that"


@pytest.mark.parametrize(
    ("statement", "is_found"),
    [
        ('_log.warning("no room: %s", error)', True),
        ('_log.warning("%s", error)', True),
        ('_log.exception("it failed")', True),
        ('_log.log(level, "it failed: %s", error)', True),
        ('said = str(error); _log.error("%s", said)', True),
        ('click.echo(f"Warning: {path} is old", err=True)', True),
        ('_log.info("%s is stored", path)', False),
        ('_log.warning("%s", of_stores.BAD_COPY(service=1, locator=2, reason=3))', False),
        ('said = of_stores.NOT_FOUND(text=1); _log.error("%s", said, exc_info=True)', False),
        ('click.echo(f"Warning: {said}", err=True)', False),
    ],
)
def test_a_warning_without_id_is_found(statement: str, *, is_found: bool) -> None:
    assert bool(warnings_without_id(f"def f():\n    {statement}\n")) == is_found


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
    message = find_message(text)

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
