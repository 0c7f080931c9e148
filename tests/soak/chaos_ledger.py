"""What each file of the chaos soak may have, by what its writer was told.

Values only: no mount, no threads. A record belongs to one writer, and while the
mount has ended to whoever verifies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.soak.chaos_content import ABSENT, Content, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.soak.chaos_content import Seen
    from tests.soak.chaos_findings import Findings


class Part(NamedTuple):
    """What a write that failed may have left in a file: a first part of what was to be written.

    Attributes:
        content: All of it.
        least: Bytes that were in the file before the call that failed.
        most: Bytes that are in it if that call has written all of its own.
    """

    content: Content
    least: int
    most: int

    def is_seen(self, seen: Seen | None) -> bool:
        """Tell whether this is what was found."""
        in_range = seen is not None and self.least <= seen.size <= self.most
        return in_range and self.content.begins_with(seen)


@dataclass(slots=True)
class Record:
    """One file.

    Attributes:
        path: Below upload/.
        acknowledged: The last content of which a call said that it is stored.
        later: Contents that were begun after it and not acknowledged.
        live: What a reader of this mount must see; None where a write failed
            midway, so that a first part of the last of `later` is right too.
        kept: A content whose store has failed: it must be there until it is
            replaced, and outlive an orderly end of the mount.
        safe: A kept content that an end of the mount has put aside: it must
            outlive any further end.
        part: What a write that failed may have left, which the close after it stored.
        new: What `NAME.new` is written to have, to be renamed over it.
        failed_at: When the last close failed, in monotonic seconds; None if
            the file has been replaced since.
    """

    path: str
    acknowledged: Content = ABSENT
    later: list[Content] = field(default_factory=list)
    live: Content | None = ABSENT
    kept: Content | None = None
    safe: Content | None = None
    part: Part | None = None
    new: Content | None = None
    failed_at: float | None = None

    def begin(self, content: Content) -> None:
        """Note that a change to this content has begun."""
        self.later.append(content)
        self.kept = self.safe = self.part = None
        self.failed_at = None
        self.live = None

    def ended(self, content: Content) -> None:
        """Note that a call said that this content is stored."""
        self.acknowledged, self.live = content, content
        self.later = []
        self.kept = self.safe = self.part = None
        self.failed_at = None

    def failed(self, content: Content, at: float, *, whole: bool) -> None:
        """Note that this content couldn't be stored.

        Args:
            content: What was to be stored.
            at: When, in monotonic seconds.
            whole: Whether all of it was written, and only the store failed.
        """
        self.failed_at = at
        if whole:
            self.live = self.kept = content

    # --- what may be found ------------------------------------------------------

    def check_live(self, seen: Seen | None, findings: Findings) -> None:
        """Compare what a reader of the running mount saw."""
        if self.live is not None:
            findings.content(self.path, seen, [self.live])
        else:
            findings.content(self.path, seen, [self.acknowledged, *self.later], self.later)

    def check_after_end(
        self,
        there: Seen | None,
        beside: Mapping[str, Seen],
        findings: Findings,
        *,
        orderly: bool,
        drained: bool = False,
    ) -> None:
        """Compare what the next mount shows after an end of the one before.

        Args:
            there: What the file has; None: it isn't there.
            beside: What files like `NAME~unsaved` have.
            findings: Gets what is wrong.
            orderly: Whether the mount ended as it should, and had the time to
                put aside what isn't stored.
            drained: Whether it was told to end, if only to be killed meanwhile. Then
                it stores what is open: half of a file that has no other version.
        """
        may = [self.acknowledged, *self.later, *filter(None, (self.kept, self.safe))]
        is_new = drained and self.acknowledged is ABSENT
        if self.part is None or not self.part.is_seen(there):
            findings.content(self.path, there, may, self.later if is_new else ())
        for name, seen in beside.items():
            if self.acknowledged.is_seen(seen) or _are_equal(seen, there):
                findings.report(
                    "stale copy", name, "only what isn't stored beside the file", str(seen)
                )
            else:
                findings.content(name, seen, may, self.later)
        for promised in (self.kept if orderly else None, self.safe):
            if promised is None or promised.is_seen(there):
                continue
            if not any(promised.is_seen(seen) for seen in beside.values()):
                findings.report(
                    "a kept file is lost",
                    self.path,
                    f"{promised}, here or as {self.path}~unsaved",
                    f"{there or 'no file'} here, {len(beside)} files beside",
                )

    def adopt(self, there: Seen | None) -> None:
        """Go on from what was found: it is what the file has from now on."""
        unsaved = filter(None, (self.kept, self.safe, self.live))
        known = [self.acknowledged, *self.later, *unsaved]
        for content in reversed(known):
            if content.is_seen(there):
                break
        else:
            # A first part, or reported already: nothing builds on it.
            content = ABSENT
            if there is not None:
                content = Content(f"{there}, as found", Recipe("", 0), there.size, there.md5)
        self.ended(content)

    def put_aside(self) -> None:
        """Note an orderly end of the mount: what was kept is safe now."""
        self.safe = self.safe or self.kept


def _are_equal(one: Seen, other: Seen | None) -> bool:
    return other is not None and (one.size, one.md5) == (other.size, other.md5)


_BESIDE = re.compile(r"~unsaved(-[0-9]+)?$")


def original_of(name: str) -> str | None:
    """Return the file that a name like `NAME~unsaved` stands beside; None for another name."""
    return _BESIDE.sub("", name) if _BESIDE.search(name) else None
