# SPDX-License-Identifier: Apache-2.0
"""Filling a store in a folder: a file lock keeps finalisers apart, and blocks are written where they stay."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from ditr_cache.errors import CorruptStoreError, StoreError
from ditr_cache.store.commit_storage import Seen
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.local import LocalStorage
from ditr_cache.store.storage import Entry

__all__ = ["LocalCommitStorage"]


class LocalCommitStorage(LocalStorage):
    """See `CommitStorage`.

    Args:
        root: The folder; need not exist.
        fs: Durable operations.
    """

    locks = True

    def __init__(self, root: Path, fs: Filesystem | None = None) -> None:
        super().__init__(root, fs)
        self._root = root

    def lock(self) -> AbstractContextManager[None]:
        """The store's file lock."""
        return self._fs.lock(self._root / ".lock")

    def prove(self) -> None:
        """link(2) is exclusive on local file systems and NFS."""

    def prepare(self) -> None:
        """Make the folders of a store; archives have no empty ones, and a power cut may take them.

        Raises:
            StoreError: If one of them is a link: what is written, and removed, would be elsewhere.
        """
        for name in ("plans", "blocks", "receipts", "failures", ".lock"):
            if (self._root / name).is_symlink():
                raise StoreError("is a link out of the store", where=self._root / name, hint="Move what it names here.")
        for name in ("plans", "blocks", "receipts", "failures"):
            self._fs.make_folder(self._root / name)

    def entries(self, folder: str) -> list[Entry]:
        """What is directly in a folder; those that go meanwhile are left out."""
        found = []
        try:
            paths = sorted((self._root / folder).iterdir())
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise StoreError("this is a file, a store is a folder", where=self._root / folder) from error
        for path in paths:
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            slash = "/" if stat.S_ISDIR(status.st_mode) else ""
            found.append(Entry(f"{folder}{path.name}{slash}", status.st_size, status.st_mtime))
        return found

    def newest(self, prefix: str) -> float:
        """When anything below a folder, or itself, was last changed."""
        walk = os.walk(self._root / prefix)
        entries = ((parent, name) for parent, folders, files in walk for name in (".", *folders, *files))
        return max((_changed(Path(parent, name)) for parent, name in entries), default=math.inf)

    def flush(self, folder: str) -> None:
        """Flush a folder's entries: others can be seen before their writers have flushed them."""
        self._fs.sync_folder(self._root / folder)

    def look(self, key: str) -> Seen:
        """An object as it is now; the lock keeps it so."""
        try:
            return Seen(self.read(key))
        except CorruptStoreError:
            return Seen(None)

    def swap(self, key: str, data: bytes, seen: Seen) -> bool:
        """Replace an object; the lock has kept others out."""
        self.replace(key, data)
        return True

    def workspace(self, folder: str) -> tuple[Path, Filesystem]:
        """The block's own place."""
        return self._root / folder, self._fs

    def publish(self, folder: str, keys: Iterable[str]) -> None:
        """It was written where it stays."""

    def withdraw(self, folder: str, receipt: str) -> None:
        """Remove it, unless it has its receipt: a full disk must not keep the block as well."""
        if not self.exists(receipt):
            self.remove_tree(folder)


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        # its writer is alive and has just cleaned up: nothing to collect
        return math.inf
