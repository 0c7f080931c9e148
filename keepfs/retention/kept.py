"""What is kept, and how: the modes of retention, and what it needs of store and files."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepfs.fs.upload.file import UploadFile
    from keepfs.keep.locator import KeepLocator


class Mode(enum.Enum):
    """How stored blocks are kept: the values of --retain."""

    COLLECTION = "collection"
    PUT = "put"
    OFF = "off"


class KeptStore(Protocol):
    """The store, as far as its token goes."""

    @property
    def api_token(self) -> str:
        """The token at this moment."""

    def put_again(self, locator: KeepLocator, copies: int) -> KeepLocator:
        """Read a block and store it again. Blocks."""

    def renew(self) -> bool:
        """Read the token again; return whether it has changed. Blocks."""


class KeptFiles(Protocol):
    """upload/, as far as it is in memory."""

    def files(self) -> Iterable[UploadFile]:
        """Go through the files."""
