"""Mutated manifests: ours refuses with one error, or reads what the SDK reads.

    scripts/fuzz-manifest N [SEED]

Each text is parsed whole and in small pieces; the outcomes must be equal. Where ours accepts
it, the text parses again to the same value, and the SDK's normal form and portable data hash equal
ours. Where they may differ, `DIFFERENCES` says why.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from keepfs.collections.manifest_errors import ManifestError
from keepfs.collections.parsing import parse
from tests.collections.sdk import read_by_sdk
from tests.soak.arguments import numbers_and_seed

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_SHOWN = 5
_SIGNED = b"+A1f27a35dd9af37191d63ad8eb8985624451e7b79@5835c8bc"

#: What is mutated.
SEEDS = (
    b". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:foo\n",
    (
        b". 930625b054ce894ac40596c3f5a0d947+33%b 0:0:a 0:0:b 0:33:output.txt\n"
        b"./c d41d8cd98f00b204e9800998ecf8427e+0 0:0:d\n" % _SIGNED
    ),
    (
        b". c449ed86671e4a34a8b8b9430850beba+67108864 09fcfea01c3a141b89dd0dcfa1b7768e+22534144"
        b" 0:89643008:Docker\\040image.tar\n"
    ),
    (
        b"./dir d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n./a/b/c"
        b" 3858f62230ac3c915f300c664312c63f+6+K@xyzzy%b+Zfoo 0:3:bar 3:3:foo 1:4:bar\n" % _SIGNED
    ),
    (
        b". acbd18db4cc2f85cedef654fccc4a4d8+3 37b51d194a7513e45b56f6524f2d51f2+3"
        b" 3:3:b 0:3:a 0:6:a-b/c 2:2:d/\xc3\xa9 0:0:0\n"
    ),
    (
        b"./\xc3\xa9\\011 acbd18db4cc2f85cedef654fccc4a4d8+3 37b51d194a7513e45b56f6524f2d51f2+3"
        b" 0:3:x\\072y\\134 3:3:\xf0\x9f\x98\x80 2:3:x\\072y\\134\n"
        b"./z acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:f\n"
        b"./\xc3\xa9\\011 acbd18db4cc2f85cedef654fccc4a4d8+3 1:2:x\\072y\\134 0:3:a:b\n"
    ),
    b"",
)
#: What is put in, or in place of something else.
PIECES = (
    *(b" ", b"\n", b"  ", b"\t", b"\0", b"/", b"/.", b"/..", b":", b"\\", b".", b"./", b"0:0:f"),
    *(
        b"0:0:\\056",
        b"0:3:foo",
        b" 0:3:d/f",
        b"+3",
        b"+",
        b"+Z",
        b"+Z ",
        b"+03",
        b"+A",
        b"\\\\",
        b"\\057",
    ),
    *(b"\\000", b"\\377", b"\\303\\251", b"\xc3\xa9", b"\xff", b"\xc2\x85", b"\xe3\x80\x80"),
    *(b"9", b"0", b"00", b"9223372036854775807", b"18446744073709551616", b"-1", b"\xd9\xa3"),
    *(b"d41d8cd98f00b204e9800998ecf8427e+0 ", b"acbd18db4cc2f85cedef654fccc4a4d8+3 "),
    *(b"acbd18db4cc2f85cedef654fccc4a4d8+9223372036854775807 ", b". ", b"./a "),
)


class Difference(NamedTuple):
    """Why the SDK may read another manifest than ours does.

    Attributes:
        found: Tells whether a text may have it.
        reason: Why ours is right, or why it does not matter.
    """

    found: Callable[[str], object]
    reason: str


DIFFERENCES = {
    "escaped bytes over \\177": Difference(
        re.compile(r"\\[23][0-7]{2}").search,
        "the SDK takes the digits for a code point; the API server and keep-web for a byte",
    ),
    "two backslashes": Difference(
        re.compile(r"\\\\").search,
        "the SDK takes them for two; the API server and keep-web for one",
    ),
    "blanks beyond ASCII": Difference(
        lambda text: any(it.isspace() and it not in " \n" for it in text),
        "the SDK splits names at them, though it prints them as they are",
    ),
    "an empty block beside others": Difference(
        re.compile(r"(?<= )[0-9a-f]{32}[+]0+(?:[+ ])").search,
        "the SDK names it in the normal form, or does not find the bytes behind it",
    ),
    "a size with leading zeros": Difference(
        re.compile(r"[0-9a-f]{32}[+]0[0-9]").search,
        "the SDK keeps the zeros where it keeps the hints",
    ),
    "a hint of one letter": Difference(
        re.compile(r"[+][A-Z](?:[+ ])").search,
        "the SDK refuses it; the grammar and the services do not",
    ),
}


def mutated(draw: random.Random) -> bytes:
    """Draw a manifest with a few mistakes in it."""
    text = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randrange(4)):
        place = draw.randrange(len(text) + 1)
        match draw.randrange(6):
            case 0:
                text[place:place] = draw.choice(PIECES)
            case 1:
                text[place : place + draw.randrange(1, 9)] = draw.choice(PIECES)
            case 2:
                del text[place : place + draw.randrange(1, 40)]
            case 3:
                lines = draw.choice(SEEDS).splitlines(keepends=True)
                text[place:place] = draw.choice(lines) if lines else b""
            case 4:
                tokens = text.split(b" ")
                tokens.insert(draw.randrange(len(tokens) + 1), draw.choice(tokens))
                text[:] = b" ".join(tokens)
            case _:
                if place < len(text):
                    text[place] ^= 1 << draw.randrange(8)
    return bytes(text)


def ours(text: bytes, step: int) -> tuple[str, str] | ManifestError:
    """Return the normal form and hash that we compute, the text being read in pieces."""
    try:
        found = parse(text[start : start + step] for start in range(0, len(text), step))
    except ManifestError as error:
        return error
    normal = found.text()
    if parse(normal) != found:
        raise AssertionError(f"{text!r} is not what its normal form says")
    return normal, found.portable_data_hash()


def compare(text: bytes, step: int) -> str:
    """Have a text read by all.

    Returns:
        "accepted" or "refused" where the outcomes agree; the name of the difference that
        explains them; else what they are.
    """
    whole, pieces = ours(text, 1 << 20), ours(text, step)
    if isinstance(whole, ManifestError) or isinstance(pieces, ManifestError):
        if getattr(whole, "args", whole) != getattr(pieces, "args", pieces):
            return f"whole: {whole}, in pieces of {step}: {pieces}"
        return "refused"
    if whole != pieces:
        return f"whole: {whole}, in pieces of {step}: {pieces}"
    shown = text.decode()
    try:
        theirs: object = tuple(read_by_sdk(shown))
    except Exception as error:  # noqa: BLE001 - the SDK's errors are of any class
        theirs = error
    if whole == theirs:
        return "accepted"
    for name, difference in DIFFERENCES.items():
        if difference.found(shown):
            return name
    return f"ours: {whole}, the SDK's: {theirs!r}"


def fuzz(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Compare `count` texts.

    Returns:
        How many there were of each kind (accepted, refused, and each listed
        difference), and the first differences that nothing explains.
    """
    draw = random.Random(seed)  # noqa: S311 - not a secret
    kinds: Counter[str] = Counter()
    unexplained: list[str] = []
    for _ in range(count):
        text = mutated(draw)
        found = compare(text, draw.choice((1, 2, 7, 64)))
        if found in DIFFERENCES or found in {"accepted", "refused"}:
            kinds[found] += 1
            continue
        kinds["UNEXPLAINED"] += 1
        if len(unexplained) < _MOST_SHOWN:
            unexplained.append(f"{text!r}: {found}"[:2000])
    return kinds, unexplained


def main() -> None:
    """Run as a script."""
    count, seed = numbers_and_seed(100_000)
    kinds, unexplained = fuzz(count, seed)
    for kind, number in kinds.most_common():
        print(f"{number:9} {kind}")
    for text in unexplained:
        print(text)
    sys.exit(bool(unexplained))


if __name__ == "__main__":
    main()
