# SPDX-License-Identifier: Apache-2.0
"""What a store reads, written down; and the same bytes read without it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ditr_cache.errors import CorruptStoreError
from ditr_cache.store.layout import MAX_DOCUMENT_BYTES
from ditr_cache.store.local import open_inside
from ditr_cache.store.storage import Entry, ObjectFile, Range, Storage

__all__ = ["RawReads", "Recorder", "evict"]

_OPEN_FILES = 128


class Recorder:
    """A storage that remembers what it was asked for. For one thread.

    Args:
        storage: Does the reading.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.location, self.remote, self.listable = storage.location, storage.remote, storage.listable
        self._ranges: list[Range] = []
        self._fetched = False

    def take(self) -> list[Range]:
        """What was read since the last call."""
        ranges, self._ranges = self._ranges, []
        return ranges

    def add(self, key: str, start: int, n: int) -> None:
        """Remember one read; one of bytes that were fetched before it is none."""
        if n and not self._fetched:
            self._ranges.append(Range(key, start, start + n))

    def open(self, key: str, size: int | None = None) -> ObjectFile:
        """An object whose reads are remembered."""
        return _RecordedFile(self._storage.open(key, size), key, self)

    def read(self, key: str, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
        """A whole object."""
        data = self._storage.read(key, limit)
        self.add(key, 0, len(data))
        return data

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self._storage.exists(key)

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects below a prefix."""
        return self._storage.list(prefix)

    def forget(self, prefix: str) -> None:
        """Keep nothing of what was read below a prefix."""
        self._storage.forget(prefix)

    @contextmanager
    def fetch(self, ranges: Sequence[Range]) -> Iterator[None]:
        """Ranges that are had together."""
        for found in ranges:
            self.add(found.key, found.start, found.stop - found.start)
        with self._storage.fetch(ranges):
            self._fetched = True
            try:
                yield
            finally:
                self._fetched = False

    def close(self) -> None:
        """Release what the storage holds."""
        self._storage.close()


class _RecordedFile:
    """An open object; see `ObjectFile`."""

    def __init__(self, file: ObjectFile, key: str, recorder: Recorder) -> None:
        self._file, self._key, self._recorder = file, key, recorder
        self.size = file.size

    def read(self, start: int, n: int) -> bytes:
        data = self._file.read(start, n)
        self._recorder.add(self._key, start, len(data))
        return data

    def read_into(self, buffers: list[Any], n: int, start: int) -> None:
        self._file.read_into(buffers, n, start)
        self._recorder.add(self._key, start, n)

    def close(self) -> None:
        self._file.close()


class RawReads:
    """`preadv` of byte ranges into one buffer: no decoding, no checksums, no fresh memory. The least there is to do.

    Args:
        root: Folder of the store.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: OrderedDict[str, int] = OrderedDict()
        self._buffer = memoryview(bytearray())

    def reserve(self, ranges: Sequence[Range]) -> None:
        """Make the buffer large enough, and touch it, so that a reading that is timed does not."""
        size = max((r.stop - r.start for r in ranges), default=0)
        if size > len(self._buffer):
            self._buffer = memoryview(bytearray(b"\1") * size)

    def read(self, ranges: Sequence[Range]) -> None:
        """Read them, one after the other.

        Raises:
            CorruptStoreError: If a file is missing or ends before.
        """
        for found in ranges:
            fd, at = self._open(found.key), found.start
            while at < found.stop:
                got = os.preadv(fd, [self._buffer[: found.stop - at]], at)
                if got == 0:
                    raise CorruptStoreError("ends too early", where=self._root / found.key)
                at += got

    def close(self) -> None:
        """Release all files."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def _open(self, key: str) -> int:
        fd = self._files.get(key)
        if fd is None:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            fd = self._files[key] = open_inside(self._root, key)
        return fd


def evict(root: Path, keys: Sequence[str]) -> None:
    """Ask the system to forget what it holds of some files. What was not yet written to disk stays.

    Raises:
        CorruptStoreError: If a file is missing.
    """
    for key in keys:
        fd = open_inside(root, key)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
