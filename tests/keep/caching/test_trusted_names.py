"""Names that the API server signed in manifests: all of them are known, and only they are."""

from __future__ import annotations

import hashlib

from keepfs.keep import KeepLocator
from keepfs.keep.caching.grants import Grants
from keepfs.keep.caching.trusted_names import TrustedNames


def digest(number: int) -> str:
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


def hint(number: int, expiry: str = "7fffffff") -> str:
    return f"+A{number:040x}@{expiry}"


def name(number: int) -> str:
    return digest(number) + hint(number)


def manifest_of(numbers: range) -> bytes:
    blocks = " ".join(f"{digest(it)}+3{hint(it)}" for it in numbers)
    return f". {blocks} 0:{3 * len(numbers)}:file\n".encode()


def test_every_name_of_a_long_manifest_may_be_read_from_memory_and_disk() -> None:
    grants = Grants(10)

    grants.signed(manifest_of(range(5000)))

    locators = [KeepLocator(f"{digest(it)}+3{hint(it)}") for it in range(5000)]
    assert all(map(grants.allows, locators))
    assert not grants.allows(KeepLocator(f"{digest(5000)}+3{hint(5000)}"))
    assert not grants.allows(KeepLocator(f"{digest(1)}+3{hint(2)}"))
    assert not grants.allows(KeepLocator(f"{digest(1)}+3"))


def test_names_of_other_clusters_unsigned_and_expired_ones_are_not_trusted() -> None:
    grants = Grants(10)
    remote = f"{digest(1)}+3+Rabcde-{'1' * 40}@7fffffff"
    expired = f"{digest(2)}+3{hint(2, '00000001')}"

    grants.signed(f". {remote} {expired} {digest(3)}+3 0:9:file\n".encode())

    for each in (remote, expired, f"{digest(3)}+3"):
        assert not grants.allows(KeepLocator(each))


def test_a_refused_name_is_not_trusted_again_and_the_others_are() -> None:
    grants = Grants(10)
    grants.signed(manifest_of(range(3)))

    grants.refused(KeepLocator(f"{digest(1)}+3{hint(1)}"))
    grants.signed(manifest_of(range(3)))

    allowed = [grants.allows(KeepLocator(f"{digest(it)}+3{hint(it)}")) for it in range(3)]
    assert allowed == [True, False, True]


def test_a_new_token_ends_the_trust() -> None:
    grants = Grants(10)
    grants.signed(manifest_of(range(3)))

    grants.clear()

    assert not grants.allows(KeepLocator(f"{digest(1)}+3{hint(1)}"))


def test_the_oldest_manifests_are_forgotten_when_there_are_too_many_names() -> None:
    names = TrustedNames(10)
    for begin in (0, 4, 8):
        names.add(names.table_of(manifest_of(range(begin, begin + 4))))
    assert [names.has(name(it)) for it in range(12)] == [False] * 4 + [True] * 8

    names.add(names.table_of(manifest_of(range(4, 8))))  # once more: it is no older one
    names.add(names.table_of(manifest_of(range(20, 24))))
    assert [names.has(name(it)) for it in (5, 8, 20)] == [True, False, True]

    names.add(names.table_of(manifest_of(range(100, 120))))
    assert [names.has(name(it)) for it in (20, 100, 109, 110)] == [False, True, True, False]
