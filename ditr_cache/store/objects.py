# SPDX-License-Identifier: Apache-2.0
"""Checked ranged reads of arrays: shard index parsed once, one `preadv` a run of chunks, crc32c verified."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import CorruptStoreError, MetadataError
from ditr_cache.store.layout import array_spec, data_object, shard_index_bytes
from ditr_cache.store.manifest import ArrayEntry
from ditr_cache.store.shard import compressor, decode_chunk

__all__ = ["ArrayReader", "open_inside"]

_IOV_MAX = 1024
_HINT = "Find all damage with: ditr-cache verify STORE"


def open_inside(folder: Path, relative: str) -> int:
    """A file descriptor for an object under `folder`, refusing symbolic links on the way.

    Raises:
        CorruptStoreError: If it is missing.
        MetadataError: If the path goes through a symbolic link, or ends in something else than a plain file.
    """
    # O_NONBLOCK: opening a named pipe would wait for its writer
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        parts = relative.split("/")
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            inner = os.open(part, flags if last else flags | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise MetadataError("a symbolic link; stores hold plain files only", where=folder / relative) from error
        if isinstance(error, FileNotFoundError):
            raise CorruptStoreError("missing", where=folder / relative, hint=_HINT) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise MetadataError("not a plain file", where=folder / relative)
    return fd


class ArrayReader:
    """Rows of one array.

    Args:
        root: The store.
        path: The array's folder relative to it.
        name: Array name.
        entry: What the manifest says of it.
    """

    def __init__(self, root: Path, path: str, name: str, entry: ArrayEntry) -> None:
        self.entry, self.name = entry, name
        self.dtype = np.dtype(entry.dtype).newbyteorder("<")
        self.tail = entry.shape[1:]
        self._where = f"{path}/{data_object(entry.shape)}"
        self._compress = compressor(entry.codec)
        self._sharded = array_spec(name).chunk_rows is not None
        self._lock = threading.Lock()
        self._index: NDArray[np.int64] | None = None
        self._fd = -1
        if entry.data is not None:
            self._fd = open_inside(root, self._where)
            size = os.fstat(self._fd).st_size
            if size != entry.data.size:
                self.close()
                raise CorruptStoreError(
                    f"{size:,} bytes, the manifest says {entry.data.size:,}", where=self._where, hint=_HINT
                )

    def close(self) -> None:
        """Release the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    @property
    def index(self) -> NDArray[np.int64]:
        """`[chunks, 2]` offset and size of every chunk, checksums included."""
        with self._lock:
            if self._index is None:
                self._index = self._read_index()
            return self._index

    def read_all(self) -> NDArray[Any]:
        """The whole array."""
        out = np.empty(self.entry.shape, self.dtype)
        self.read_into(out, 0)
        return out

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop in a fresh array."""
        if not 0 <= start <= stop <= self.entry.shape[0]:
            raise MetadataError(f"rows {start} to {stop} of {self.entry.shape[0]}", where=self._where)
        out = np.empty((stop - start, *self.tail), self.dtype)
        self.read_into(out, start)
        return out

    def read_into(self, out: NDArray[Any], start: int, *, check: bool = True) -> None:
        """Fill `out` `[n, *tail]`, C-contiguous, with the rows from `start` on.

        Args:
            out: Destination.
            start: First row.
            check: Verify crc32c.

        Raises:
            CorruptStoreError: If bytes are missing or do not match their checksum.
        """
        if out.size == 0:
            return
        if self._compress is None:
            self._read_plain(out, start, check)
        else:
            self._read_compressed(out, start)

    def _read_plain(self, out: NDArray[Any], start: int, check: bool) -> None:
        """Scatter: row bytes go straight to `out`, the checksum between two chunks to a slot of its own."""
        step = self.entry.chunk_rows
        first, last = start // step, (start + len(out) - 1) // step
        row_bytes = out.itemsize * int(np.prod(self.tail, dtype=np.int64))
        flat = out.reshape(-1).view(np.uint8)
        head = (start - first * step) * row_bytes
        foot = ((last + 1) * step - start - len(out)) * row_bytes
        body = step * row_bytes
        extra = np.empty(head + foot, np.uint8)
        checksums = np.empty((last - first + 1, 4), np.uint8)
        pieces: list[list[NDArray[np.uint8]]] = []
        at = 0
        for chunk in range(first, last + 1):
            lead = head if chunk == first else 0
            trail = foot if chunk == last else 0
            n = body - lead - trail
            piece = [flat[at : at + n]]
            if lead:
                piece.insert(0, extra[:lead])
            if trail:
                piece.append(extra[head:])
            pieces.append(piece)
            at += n
        index = self.index
        if self._contiguous(index, first, last, body + 4):
            buffers = [b for i, piece in enumerate(pieces) for b in (*piece, checksums[i])]
            self._fill(buffers, int(index[first, 0]))
        else:
            for i, piece in enumerate(pieces):
                offset, size = index[first + i]
                if size != body + 4:
                    raise CorruptStoreError(f"chunk {first + i} has the wrong size", where=self._where, hint=_HINT)
                self._fill([*piece, checksums[i]], int(offset))
        if check:
            expected = checksums.view("<u4")[:, 0].tolist()
            for i, piece in enumerate(pieces):
                value = 0
                for part in piece:
                    value = google_crc32c.extend(value, part)
                if value != expected[i]:
                    raise CorruptStoreError(f"chunk {first + i} is damaged (crc32c)", where=self._where, hint=_HINT)

    def _contiguous(self, index: NDArray[np.int64], first: int, last: int, size: int) -> bool:
        run = index[first : last + 1]
        return bool((run[:, 1] == size).all()) and int(run[-1, 0] - run[0, 0]) == (last - first) * size

    def _read_compressed(self, out: NDArray[Any], start: int) -> None:
        assert self._compress is not None
        step, stop = self.entry.chunk_rows, start + len(out)
        first, last = start // step, (stop - 1) // step
        index = self.index[first : last + 1]
        begin, end = int(index[:, 0].min()), int(index.sum(axis=1).max())
        if end - begin != int(index[:, 1].sum()):
            raise CorruptStoreError("chunks overlap or leave gaps", where=self._where, hint=_HINT)
        raw = np.empty(end - begin, np.uint8)
        self._fill([raw], begin)
        scratch = np.empty((step, *self.tail), self.dtype)
        for i, (offset, size) in enumerate((index - [begin, 0]).tolist()):
            body = raw[offset : offset + size - 4]
            checksum = int.from_bytes(raw[offset + size - 4 : offset + size].tobytes(), "little")
            if google_crc32c.value(body) != checksum:
                raise CorruptStoreError(f"chunk {first + i} is damaged (crc32c)", where=self._where, hint=_HINT)
            low = (first + i) * step
            a, b = max(start, low), min(stop, low + step)
            whole = b - a == step
            target = out[a - start : b - start] if whole else scratch
            self._decode(body, target, first + i)
            if not whole:
                out[a - start : b - start] = scratch[a - low : b - low]

    def _decode(self, body: NDArray[np.uint8], target: NDArray[Any], chunk: int) -> None:
        try:
            decode_chunk(self.entry.codec, body, target)
        except ValueError as error:
            raise CorruptStoreError(f"chunk {chunk} {error}", where=self._where, hint=_HINT) from error

    def _read_index(self) -> NDArray[np.int64]:
        entry = self.entry
        assert entry.data is not None
        chunks = entry.chunks
        if not self._sharded:
            return np.array([[0, entry.data.size]], np.int64)
        raw = np.empty(shard_index_bytes(chunks), np.uint8)
        self._fill([raw], entry.data.size - len(raw))
        if google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:].tobytes(), "little"):
            raise CorruptStoreError("the shard index is damaged (crc32c)", where=self._where, hint=_HINT)
        index = raw[:-4].view("<u8").reshape(chunks, 2)
        end = entry.data.size - len(raw)
        if (index > end).any() or (index[:, 1] < 4).any():
            raise CorruptStoreError("the shard index points outside the shard", where=self._where, hint=_HINT)
        index = index.astype(np.int64)
        stops = index[:, 1].cumsum()
        if stops[-1] != end or (index[:, 0] != stops - index[:, 1]).any():
            raise CorruptStoreError("the chunks overlap, or leave bytes between", where=self._where, hint=_HINT)
        return index

    def _fill(self, buffers: list[Any], offset: int) -> None:
        """Read consecutive bytes into `buffers`."""
        want = sum(b.nbytes for b in buffers)
        if len(buffers) <= _IOV_MAX and os.preadv(self._fd, buffers, offset) == want:
            return
        # a short read (2 GiB limit, signals) or too many pieces
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                got = os.preadv(self._fd, [view], offset)
                if got == 0:
                    raise CorruptStoreError("ends too early", where=self._where, hint=_HINT)
                view, offset = view[got:], offset + got
