# SPDX-License-Identifier: Apache-2.0
"""One array read from its first byte to its last, once: hashed, checked, and handed out row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import StoreError
from ditr_cache.store.layout import MAX_DOCUMENT_BYTES, array_spec, data_object, shard_index_bytes
from ditr_cache.store.receipt import ArrayEntry, ObjectEntry
from ditr_cache.store.shard import decode_chunk
from ditr_cache.store.storage import ObjectFile, Storage

__all__ = ["ArrayStream", "Findings", "Problem", "read_document"]

T = TypeVar("T")

_STEP = 1 << 21
"""Bytes that are read at a time. A block has about ten large arrays, which are read side by side."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, or worth knowing."""

    path: str
    """Object, relative to the store."""
    what: str


@dataclass(slots=True)
class Findings:
    """What has been found so far."""

    storage: Storage
    progress: Callable[[int], object] | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of objects on a server that a listing has told, which saves asking for each."""

    def problem(self, path: str, what: str) -> None:
        """Record damage."""
        self.problems.append(Problem(path, what))

    def note(self, path: str, what: str) -> None:
        """Record what is odd but no damage."""
        self.notes.append(Problem(path, what))

    def add_bytes(self, n: int) -> None:
        """Count bytes that were looked at."""
        self.bytes += n
        if self.progress is not None:
            self.progress(n)

    def attempt(self, path: str, read: Callable[[], T]) -> T | None:
        """What `read` returns; None and a problem of `path` if it goes wrong."""
        try:
            return read()
        except (StoreError, OSError) as error:
            self._record(path, error)
            return None

    @contextmanager
    def guard(self, path: str) -> Iterator[None]:
        """Turn what goes wrong inside into a problem of `path`."""
        try:
            yield
        except (StoreError, OSError) as error:
            self._record(path, error)

    def _record(self, path: str, error: StoreError | OSError) -> None:
        self.problem(path, _said(error))


def _said(error: StoreError | OSError) -> str:
    return error.what if isinstance(error, StoreError) else f"cannot be read: {error.strerror or error}"


def read_document(found: Findings, path: str, entry: ObjectEntry | None = None) -> bytes | None:
    """All bytes of a small object, compared with what is said of it; None and a problem if it cannot be read."""
    data: bytes | None = None
    with found.guard(path):
        expected = found.sizes.get(path, MAX_DOCUMENT_BYTES if entry is None else entry.size)
        # servers are not asked how large an object is where that is known
        limit = min(max(expected, 1), MAX_DOCUMENT_BYTES) if found.storage.remote else MAX_DOCUMENT_BYTES
        data = found.storage.read(path, limit)
        size = len(data)
        found.objects += 1
        found.add_bytes(size)
        if entry is not None and size != entry.size:
            found.problem(path, f"{size:,} bytes, the receipt says {entry.size:,}")
        elif entry is not None and hashlib.sha256(data).hexdigest() != entry.sha256:
            found.problem(path, "sha256 is not that of the receipt")
    return data


class ArrayStream:
    """Rows of one array in order. Memory: one chunk, and 2 MiB that were read ahead.

    Args:
        found: Where problems go.
        folder: The block's folder, relative to the store.
        name: Array name.
        entry: What the receipt says of it; checked by the receipt's own rules.
    """

    def __init__(self, found: Findings, folder: str, name: str, entry: ArrayEntry) -> None:
        self.intact = True
        """Whether all rows handed out so far are the ones that were written."""
        self._found, self._entry, self._name = found, entry, name
        self._path = f"{folder}/{name}/{data_object(entry.shape)}"
        self._file: ObjectFile | None = None
        self._size, self._next, self._at = 0, 0, 0
        self._ahead, self._ahead_at, self._unreadable = b"", 0, False
        self._index: list[tuple[int, int]] = []
        self._rest: NDArray[Any] = np.empty((0, *entry.shape[1:]), np.dtype(entry.dtype).newbyteorder("<"))
        self._object_sha, self._content_sha = hashlib.sha256(), hashlib.sha256()
        if entry.data is None:
            return
        with found.guard(self._path):
            self._file = found.storage.open(self._path, found.sizes.get(self._path))
            self._size = self._file.size
            if self._size == entry.data.size:
                self._index = self._read_index(array_spec(name).chunk_rows is not None)
            else:
                self._damaged(f"{self._size:,} bytes, the receipt says {entry.data.size:,}")
        self.intact = self.intact and self._file is not None
        found.objects += self._file is not None

    def pieces(self, n: int) -> Iterator[NDArray[Any]]:
        """The next `n` rows, at most a chunk at a time. Ends early, and `intact` turns False, if they are damaged."""
        while n > 0 and self.intact:
            if not len(self._rest):
                self._rest = self._next_chunk()
                if not len(self._rest):
                    self.intact = False
                    return
            piece, self._rest = self._rest[:n], self._rest[n:]
            n -= len(piece)
            yield piece

    def take(self, n: int) -> NDArray[Any] | None:
        """The next `n` rows in one array; None if they are damaged."""
        rows = np.concatenate([self._rest[:0], *self.pieces(n)])
        return rows if self.intact else None

    def skip_padding(self, n: int) -> None:
        """The next `n` rows belong to nothing and have to be zero."""
        if any(piece.view(np.uint8).any() for piece in self.pieces(n)):
            self._found.problem(self._path, "rows that belong to no view are not zero")

    def close(self) -> None:
        """Check what has not been asked for, and the hashes of it all."""
        if self._file is None:
            return
        with self._found.guard(self._path):
            while self._next < len(self._index) and not self._unreadable:
                self._next_chunk()
            while not self._unreadable and (data := self._read(self._at, _STEP)):
                self._take_bytes(data)
        self._file.close()
        self._file = None
        entry = self._entry
        assert entry.data is not None
        if self._unreadable:
            # which has been said; nothing is known of the bytes
            return
        if self._size == entry.data.size and self._object_sha.hexdigest() != entry.data.sha256:
            self._found.problem(self._path, "sha256 is not that of the receipt")
        if self.intact and entry.sha256 not in (None, self._content_sha.hexdigest()):
            self._found.problem(self._path, "decodes to other content than the receipt says (sha256)")

    def _read(self, start: int, n: int) -> bytes:
        """At most `n` bytes from `start` on, out of larger reads: what comes next will be asked for next."""
        assert self._file is not None
        n = min(n, self._size - start)
        if n <= 0:
            return b""
        at = start - self._ahead_at
        if at < 0 or at + n > len(self._ahead):
            # a server that does not give it need not be asked for the rest
            self._unreadable = True
            self._ahead, self._ahead_at, at = self._file.read(start, max(n, _STEP)), start, 0
            self._unreadable = False
        return self._ahead[at : at + n]

    def _damaged(self, what: str) -> None:
        self.intact = False
        self._found.problem(self._path, what)

    def _take_bytes(self, data: bytes) -> None:
        self._object_sha.update(data)
        self._at += len(data)
        self._found.add_bytes(len(data))

    def _read_index(self, sharded: bool) -> list[tuple[int, int]]:
        chunks = self._entry.chunks
        if not sharded:
            return [(0, self._size)]
        end = self._size - shard_index_bytes(chunks)
        assert self._file is not None
        raw = self._file.read(end, shard_index_bytes(chunks))
        if google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            self._damaged("the shard index is damaged (crc32c)")
            return []
        index = np.frombuffer(raw[:-4], "<u8").reshape(chunks, 2)
        if (index > end).any() or (index[:, 1] < 4).any():
            self._damaged("the shard index points outside the shard")
            return []
        sizes = index[:, 1].astype(np.int64)
        stops = sizes.cumsum()
        if stops[-1] != end or (index[:, 0] != stops - sizes).any():
            self._damaged("the chunks overlap, or leave bytes between them")
            return []
        return [(int(a), int(b)) for a, b in index.tolist()]

    def _next_chunk(self) -> NDArray[Any]:
        """Rows of the next chunk without padding; none, and `intact` is False, if it is damaged."""
        none = self._rest[:0]
        if self._next >= len(self._index):
            return none
        number, (offset, size) = self._next, self._index[self._next]
        self._next += 1
        entry = self._entry
        if size > 2 * entry.chunk_bytes + _STEP:
            self._damaged(f"chunk {number} is larger than a compressor can make it")
            return none
        try:
            data = self._read(offset, size)
        except (StoreError, OSError) as error:
            self._damaged(_said(error))
            return none
        self._take_bytes(data)
        if len(data) != size or google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
            self._damaged(f"chunk {number} is damaged (crc32c)")
            return none
        chunk = np.empty((entry.chunk_rows, *entry.shape[1:]), none.dtype)
        try:
            decode_chunk(entry.codec, np.frombuffer(data, np.uint8), chunk)
        except ValueError as error:
            self._damaged(f"chunk {number} {error}")
            return none
        rows = chunk[: entry.shape[0] - number * entry.chunk_rows]
        if chunk[len(rows) :].view(np.uint8).any():
            self._found.problem(self._path, "the padding of the last chunk is not zero")
        self._content_sha.update(rows.data)
        return rows
