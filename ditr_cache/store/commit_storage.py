# SPDX-License-Identifier: Apache-2.0
"""What the commit protocol asks of a place, beyond reading and writing objects.

Folders and buckets answer it each in their own way, and the protocol itself does not know which it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.storage import Entry, WritableStorage

__all__ = ["CommitStorage", "Seen"]


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it was when somebody looked."""

    data: bytes | None
    """None: there was none."""
    tag: Any = None
    """What tells this version from later ones; means something to its storage only."""


class CommitStorage(WritableStorage, Protocol):
    """A place where a store can be filled by many at once."""

    locks: bool
    """Whether `lock` keeps others out. Where nothing can, what they might still need is collected after a day only."""

    def lock(self) -> AbstractContextManager[None]:
        """Keep other finalisers and collectors out, where that is possible. Not re-entrant."""

    def prove(self) -> None:
        """Find out whether exclusive creation is exclusive here.

        Raises:
            StoreError: If it is not.
        """

    def prepare(self) -> None:
        """Make the folders of a store, where there are folders."""

    def entries(self, folder: str) -> list[Entry]:
        """What is directly in a folder (ends with `/`, or is empty), hidden things too; keys of folders end with `/`.

        Raises:
            StoreError: If the store's own folder is a file.
        """

    def newest(self, prefix: str) -> float:
        """When anything below a folder was last changed, in seconds since 1970; never, if it is gone."""

    def flush(self, folder: str) -> None:
        """Return only when what has been listed in a folder survives a power cut."""

    def look(self, key: str) -> Seen:
        """An object as it is now, for `swap`."""

    def swap(self, key: str, data: bytes, seen: Seen) -> bool:
        """Replace an object, unless somebody else has since it was `seen`. False then.

        A lost reply makes our own success look like somebody else's: the bytes that stand there decide.
        """

    def workspace(self, folder: str) -> tuple[Path, Filesystem]:
        """Where a block is written, a piece at a time, before it is published."""

    def publish(self, folder: str, keys: Iterable[str]) -> None:
        """Bring a finished block from its workspace to its place. Nothing to do for what is there already.

        Raises:
            OSError: If that fails. The workspace is gone then, too.
        """

    def withdraw(self, folder: str, receipt: str) -> None:
        """Take a block back of which the receipt could not be created, unless it stands all the same.

        Object storage leaves it to the collector: a request that seems lost may still arrive.
        """
