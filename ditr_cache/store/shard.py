# SPDX-License-Identifier: Apache-2.0
"""One Zarr v3 array as one object, written as a stream: chunks, then the index, never the whole shard in memory."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd, blosc, zstd
from numpy.typing import NDArray

from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.layout import BLOSC_LEVEL, BLOSC_NAME, VIEW_ARRAYS, Codec, array_document, array_spec, data_object
from ditr_cache.store.receipt import ArrayEntry, ObjectEntry

__all__ = ["CHECKSUM_BYTES", "ArrayWriter", "compressor", "decode_chunk"]

CHECKSUM_BYTES: Final = 4
"""Of the crc32c behind every chunk."""


def compressor(codec: Codec) -> Blosc | Zstd | None:
    """The numcodecs codec between `bytes` and `crc32c`; None where chunks are stored as they are."""
    if codec == "blosc":
        return Blosc(BLOSC_NAME, BLOSC_LEVEL, Blosc.SHUFFLE, 0)
    return Zstd(1) if codec == "zstd" else None


_BLOSC_HEADER: Final = 16
_BLOSC_SIZES: Final = struct.Struct("<I4xI")
"""Decoded and encoded size in a Blosc 1 header, from its fifth byte on."""

# Blosc.decode and Zstd.decode look at their arguments a second time, at 2 microseconds a chunk
_DECODERS: Final = {"blosc": blosc.decompress, "zstd": zstd.decompress}


def decode_chunk(codec: Codec, stored: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Fill `out` with what a chunk holds.

    A checksum proves nothing about who wrote the bytes: what they announce is compared with `out` before anything is
    decoded, and with the bytes that are there, for blosc reads on behind them.

    Args:
        codec: How it was encoded.
        stored: `[n + 4]` the encoded bytes and, behind them, their checksum, which is not looked at.
        out: C-contiguous; exactly what they must decode to.

    Raises:
        ValueError: If they do not. The message continues "chunk 3 ...".
    """
    body = len(stored) - CHECKSUM_BYTES
    if codec == "none":
        if body != out.nbytes:
            raise ValueError(f"has {body:,} bytes, not {out.nbytes:,}")
        out.reshape(-1).view(np.uint8)[:] = stored[:body]
        return
    if codec == "zstd":
        stored = stored[:body]  # its decoder would take the checksum for another frame; blosc's does not see it
        size, encoded = _announced_zstd(stored)
    else:
        size, encoded = _BLOSC_SIZES.unpack_from(stored.data, 4) if body >= _BLOSC_HEADER else (-1, -1)
    if size != out.nbytes or encoded != body:
        raise ValueError(f"would decode to {size:,} bytes, not {out.nbytes:,}")
    try:
        _DECODERS[codec](stored, out)
    except (RuntimeError, ValueError) as error:
        raise ValueError("does not decode") from error


def _announced_zstd(body: NDArray[np.uint8]) -> tuple[int, int]:
    """Decoded size in a Zstandard frame header (RFC 8878, 3.1.1); the encoded size as it stands; -1 without one."""
    head = body[:18].tobytes()
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return -1, -1
    descriptor = head[4]
    single = descriptor >> 5 & 1
    at = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[descriptor >> 6]
    if width == 0:
        return -1, -1
    return int.from_bytes(head[at : at + width], "little") + 256 * (width == 2), len(body)


class ArrayWriter:
    """Appends rows to one array of a block.

    Args:
        folder: The array's folder; must not exist.
        name: Array name of the format.
        dtype: NumPy dtype name, stored little-endian.
        tail: Shape of one row.
        codec: Compression of the chunks.
        fs: Durable operations.
    """

    def __init__(
        self, folder: Path, name: str, dtype: str, tail: tuple[int, ...], codec: Codec, fs: Filesystem
    ) -> None:
        self.rows = 0
        self._folder, self._name, self._tail, self._codec, self._fs = folder, name, tail, codec, fs
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._chunk_rows = array_spec(name).chunk_rows
        self._pending: list[NDArray[Any]] = []
        self._pending_rows = 0
        self._index: list[tuple[int, int]] = []
        self._size = 0
        self._compress = compressor(codec)
        self._object_sha = hashlib.sha256()
        self._content_sha = None if name in VIEW_ARRAYS else hashlib.sha256()
        self._path = folder / data_object((0, *tail))
        fs.make_folder(self._path.parent)
        self._file = fs.open_new(self._path)

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows `[n, *tail]`; full chunks go to disk at once."""
        rows = np.ascontiguousarray(rows, self._dtype)
        assert rows.shape[1:] == self._tail, (self._name, rows.shape, self._tail)
        self.rows += len(rows)
        if self._content_sha is not None:
            self._content_sha.update(rows.data if rows.size else b"")
        if self._chunk_rows is None:
            self._pending.append(rows.copy())
            return
        start = 0
        if self._pending_rows:
            start = min(len(rows), self._chunk_rows - self._pending_rows)
            self._pending.append(rows[:start].copy())
            self._pending_rows += start
            if self._pending_rows < self._chunk_rows:
                return
            self._write_chunks(np.concatenate(self._pending))
            self._pending, self._pending_rows = [], 0
        whole = start + (len(rows) - start) // self._chunk_rows * self._chunk_rows
        self._write_chunks(rows[start:whole])
        if whole < len(rows):
            self._pending = [rows[whole:].copy()]
            self._pending_rows = len(rows) - whole

    def pad_to_chunk(self) -> None:
        """Zero rows up to the next chunk, so that what follows starts on one."""
        assert self._chunk_rows is not None
        if self._pending_rows:
            self.append(np.zeros((self._chunk_rows - self._pending_rows, *self._tail), self._dtype))

    def close(self) -> ArrayEntry:
        """Write what is pending, the index and, last, the metadata; flush all of it."""
        shape = (self.rows, *self._tail)
        chunk_rows = self._chunk_rows or max(1, self.rows)
        if self._pending:
            rows = np.concatenate(self._pending)
            padding = (-len(rows)) % chunk_rows
            rows = np.concatenate([rows, np.zeros((padding, *self._tail), self._dtype)]) if padding else rows
            if rows.size:
                self._write_chunks(rows)
        if self._chunk_rows is not None and self._index:
            index = np.array(self._index, "<u8").tobytes()
            self._put(index + google_crc32c.value(index).to_bytes(4, "little"))
        data = None
        if self._size:
            self._fs.sync_file(self._file)
            data = ObjectEntry(size=self._size, sha256=self._object_sha.hexdigest())
        self._file.close()
        if data is None:
            # an array without elements has no chunks; an empty file would read as a corrupt one
            self._fs.remove(self._path)
        else:
            for folder in (self._path.parent, *self._path.parents[1 : len(self._tail) + 1]):
                self._fs.sync_folder(folder)
        document = json.dumps(
            array_document(self._name, self._dtype.name, shape, chunk_rows, self._codec, BLOSC_LEVEL), indent=2
        ).encode()
        self._fs.write(self._folder / "zarr.json", document)
        self._fs.sync_folder(self._folder)
        return ArrayEntry(
            dtype=self._dtype.name,
            shape=shape,
            chunk_rows=chunk_rows,
            codec=self._codec,
            sha256=None if self._content_sha is None else self._content_sha.hexdigest(),
            metadata=ObjectEntry(size=len(document), sha256=hashlib.sha256(document).hexdigest()),
            data=data,
        )

    def abort(self) -> None:
        """Close the file; what was written is left for the collector."""
        self._file.close()

    def _write_chunks(self, rows: NDArray[Any]) -> None:
        # gathered first: one hash update and one write a call instead of two a chunk
        step = self._chunk_rows or len(rows)
        pieces, at = [], self._size
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            body = chunk.reshape(-1).view(np.uint8) if self._compress is None else self._compress.encode(chunk)
            pieces += [body, google_crc32c.value(body).to_bytes(4, "little")]
            self._index.append((at, len(body) + 4))
            at += len(body) + 4
        if pieces:
            self._put(b"".join(pieces))

    def _put(self, data: Any) -> None:
        self._object_sha.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._size += len(data)
