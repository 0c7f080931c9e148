"""Who may read which block in by_id/."""

from __future__ import annotations

import os
import stat

import pytest

from keepfs.fs.nodes import Caller, Metadata, file_mode
from keepfs.fs.owners import MAX_BLOCKS, Owners
from keepfs.keep import KeepLocator

ALICE, BOB, CAROL = Caller(1, 1, 0), Caller(2, 2, 0), Caller(3, 1, 0)
FOO, BAR = (
    KeepLocator(f"{digest}+3+A{'5' * 40}@ffffffff")
    for digest in ("acbd18db4cc2f85cedef654fccc4a4d8", "37b51d194a7513e45b56f6524f2d51f2")
)
ELSEWHERE = KeepLocator(str(FOO).replace("5" * 40, "6" * 40))


def a_file(mode: int, owner: Caller = ALICE) -> Metadata:
    return Metadata(file_mode(mode), owner.uid, owner.gid)


@pytest.fixture
def owners() -> Owners:
    return Owners(Metadata(file_mode(0o444), 0, 0, 5))


def told(owners: Owners, *locators: KeepLocator) -> tuple[int, int, int]:
    """Return mode, user and group of a name."""
    metadata = owners.metadata(locators)
    assert metadata is not None
    assert stat.S_ISREG(metadata.mode)
    assert metadata.mtime_ns == 5
    return stat.S_IMODE(metadata.mode), metadata.uid, metadata.gid


def readers(owners: Owners, *locators: KeepLocator) -> list[Caller]:
    return [it for it in (ALICE, BOB, CAROL) if owners.may_all_be_read(locators, it)]


def test_a_block_that_was_not_stored_here_has_no_owner(owners: Owners) -> None:
    assert owners.metadata([FOO]) is None
    assert readers(owners, FOO) == []


@pytest.mark.parametrize(
    ("mode", "who"),
    [
        (0o600, [ALICE]),
        (0o640, [ALICE, CAROL]),
        (0o644, [ALICE, BOB, CAROL]),
        (0o4755, [ALICE, BOB, CAROL]),
        (0o004, [BOB]),
        (0o000, []),
    ],
)
def test_a_block_has_the_read_permissions_of_its_file(
    owners: Owners, mode: int, who: list[Caller]
) -> None:
    owners.add(FOO, a_file(mode))

    assert told(owners, FOO) == (mode & 0o444, ALICE.uid, ALICE.gid)
    assert readers(owners, FOO) == who
    assert owners.may_all_be_read([FOO], Caller(0, 0, 0))


def test_the_last_mode_counts(owners: Owners) -> None:
    owners.add(FOO, a_file(0o644))
    owners.add(FOO, a_file(0o600))

    assert told(owners, FOO)[0] == 0o400


def test_a_block_of_several_owners_may_be_read_by_all(owners: Owners) -> None:
    owners.add(FOO, a_file(0o600))
    owners.add(FOO, a_file(0o600, BOB))

    assert told(owners, FOO) == (0o444, 0, 0)
    assert readers(owners, FOO) == [ALICE, BOB]  # listed for those that may read a file of it


def test_another_signature_gives_a_separate_right(owners: Owners) -> None:
    owners.add(FOO, a_file(0o600))

    assert owners.metadata([ELSEWHERE]) is None
    assert told(owners, KeepLocator(f"{FOO}+Zx"))[0] == 0o400


def test_without_signatures_blocks_are_matched_by_digest(owners: Owners) -> None:
    owners.add(KeepLocator(FOO.stripped()), a_file(0o600))

    assert told(owners, ELSEWHERE)[0] == 0o400


def test_a_list_may_be_read_by_those_who_may_read_all_of_it(owners: Owners) -> None:
    owners.add(FOO, a_file(0o640))
    owners.add(BAR, a_file(0o644))
    of_one = told(owners, FOO, BAR)
    owners.add(ELSEWHERE, a_file(0o600, BOB))

    assert of_one == (0o440, ALICE.uid, ALICE.gid)
    assert readers(owners, FOO, BAR) == [ALICE, CAROL]
    assert told(owners, FOO, ELSEWHERE) == (0, 0, 0)
    assert readers(owners, FOO, ELSEWHERE) == []
    owners.add(FOO, a_file(0o644))
    owners.add(ELSEWHERE, a_file(0o644, BOB))
    assert told(owners, FOO, ELSEWHERE) == (0o444, 0, 0)


def test_only_the_last_blocks_are_remembered(owners: Owners) -> None:
    for number in range(MAX_BLOCKS + 1):
        owners.add(KeepLocator(f"{number:032x}+3"), a_file(0o600))

    assert owners.metadata([KeepLocator(f"{0:032x}+3")]) is None
    assert owners.metadata([KeepLocator(f"{1:032x}+3")]) is not None


def test_a_block_that_is_stored_again_is_remembered_for_longer(owners: Owners) -> None:
    for number in (*range(MAX_BLOCKS), 0, MAX_BLOCKS):
        owners.add(KeepLocator(f"{number:032x}+3"), a_file(0o600))

    assert owners.metadata([KeepLocator(f"{0:032x}+3")]) is not None
    assert owners.metadata([KeepLocator(f"{1:032x}+3")]) is None


def test_a_callers_other_groups_count_too() -> None:
    caller = Caller(1, 77, os.getpid())

    assert {77, *os.getgroups()} == caller.groups
    assert Caller(1, 77, 2**22 + 1).groups == {77}  # its process has ended
