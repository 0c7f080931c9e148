"""Findings of `keepfs cache`: damaged blocks, and what could not be listed, read or removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.messages import of_stores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Most paths in one line of the output; there may be a failure for each block.
_MOST_NAMED = 5


class CacheFindings:
    """What `keepfs cache` finds that is not as it should be."""

    def __init__(self) -> None:
        # The reason by digest, and by action and path.
        self._damaged: dict[str, str] = {}
        self._failed: dict[tuple[str, Path], str] = {}

    def __bool__(self) -> bool:
        return bool(self._damaged or self._failed)

    def note_damage(self, md5sum: str, reason: str) -> None:
        """Note a damaged block."""
        self._damaged[md5sum] = reason

    def note_failure(self, action: str, path: Path, error: OSError) -> None:
        """Note what could not be done; not again for the files of a folder that isn't listed.

        Args:
            action: "list", "read" or "remove".
            path: The path of the folder or file.
            error: Why.
        """
        if ("list", path.parent) not in self._failed:
            self._failed[action, path] = error.strerror or str(error)

    def counts(self) -> str:
        """Return the numbers of failures as the end of a line; empty if there are none."""
        actions = [action for action, _ in self._failed]
        verbs = {"list": "listed", "read": "read", "remove": "removed"}
        counted = {verb: actions.count(action) for action, verb in verbs.items()}
        return "".join(f", {number} not {verb}" for verb, number in counted.items() if number)

    def lines(self) -> Iterator[str]:
        """Yield the messages: one for each damaged block, and for each kind of failure."""
        failed = dict(self._failed)
        for md5sum, reason in self._damaged.items():
            text = f"{md5sum}: {reason}"
            left = [key for key in failed if key[0] == "remove" and key[1].name == md5sum]
            if left:
                yield of_stores.DISK_CACHE_FILE_LEFT(path=text, reason=failed.pop(left[0]))
            else:
                yield of_stores.DISK_CACHE_FILE_REMOVED(path=text)
        kinds: dict[tuple[str, str], list[str]] = {}
        for (action, path), reason in failed.items():
            kinds.setdefault((action, reason), []).append(str(path))
        for (action, reason), paths in kinds.items():
            what = ", ".join(paths[:_MOST_NAMED])
            if len(paths) > _MOST_NAMED:
                what += f" and {len(paths) - _MOST_NAMED} more (--json lists all)"
            yield of_stores.DISK_CACHE_UNREACHED(action=action, what=what, reason=reason)

    def row(self) -> dict[str, object]:
        """Return the fields `damaged` and `failed` of the JSON output."""
        failed = [
            {"action": action, "path": str(path), "reason": reason}
            for (action, path), reason in self._failed.items()
        ]
        return {"damaged": list(self._damaged), "failed": failed}
