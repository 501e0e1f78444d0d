# SPDX-License-Identifier: Apache-2.0
"""Checked ranged reads of arrays: shard index parsed once, one read a run of chunks, crc32c verified."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import CorruptStoreError, MetadataError
from ditr_cache.store.layout import array_spec, data_object, shard_index_bytes
from ditr_cache.store.receipt import ArrayEntry
from ditr_cache.store.shard import CHECKSUM_BYTES, decode_chunk
from ditr_cache.store.storage import ObjectFile, Range, Storage

__all__ = ["ArrayReader"]

_CRC32C_RESIDUE = 0x48674BC7
"""crc32c of any bytes with their own crc32c behind them."""
_HINT = "Find all damage with: ditr-cache verify STORE"


class ArrayReader:
    """Rows of one array.

    Args:
        storage: The store.
        path: The array's folder relative to it.
        name: Array name.
        entry: What the manifest says of it.
    """

    def __init__(self, storage: Storage, path: str, name: str, entry: ArrayEntry) -> None:
        self.entry, self.name = entry, name
        self.dtype = np.dtype(entry.dtype).newbyteorder("<")
        self.tail = entry.shape[1:]
        self._where = f"{path}/{data_object(entry.shape)}"
        self._sharded = array_spec(name).chunk_rows is not None
        self._row_bytes = entry.chunk_bytes // entry.chunk_rows
        self._slices: dict[int, list[slice]] = {0: [], CHECKSUM_BYTES: []}
        self._lock = threading.Lock()
        self._index: NDArray[np.int64] | None = None
        self._extents: list[list[int]] | None = None
        self._kept: NDArray[Any] | None = None
        self._file: ObjectFile | None = None
        if entry.data is not None:
            self._file = storage.open(self._where, entry.data.size)
            size = self._file.size
            if size != entry.data.size:
                self.close()
                raise CorruptStoreError(
                    f"{size:,} bytes, the manifest says {entry.data.size:,}", where=self._where, hint=_HINT
                )

    def close(self) -> None:
        """Release the object."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def index(self) -> NDArray[np.int64]:
        """`[chunks, 2]` offset and size of every chunk, checksums included."""
        with self._lock:
            if self._index is None:
                self._index = self._read_index()
            return self._index

    def preload(self) -> None:
        """Parse a shard's index, or keep a whole table, so that neither is asked for again."""
        if self._sharded:
            if self.entry.data is not None:
                _ = self.index
        elif self._kept is None:
            self._kept = self.read_all()

    def head(self) -> list[Range]:
        """What has to be had before rows can be: the whole of a table, the index of a shard that is not known yet."""
        data = self.entry.data
        if data is None or (self._kept if not self._sharded else self._index) is not None:
            return []
        return [Range(self._where, data.size - shard_index_bytes(self.entry.chunks) if self._sharded else 0, data.size)]

    def spans(self, ranges: Sequence[tuple[int, int]]) -> list[Range]:
        """The bytes of the chunks that hold some ranges of rows.

        Raises:
            CorruptStoreError: If the shard's index is damaged.
            MetadataError: If there are no such rows.
        """
        self._count(ranges)
        step = self.entry.chunk_rows
        found = []
        for start, stop in ranges:
            if start < stop:
                last = self.index[(stop - 1) // step]
                found.append(Range(self._where, int(self.index[start // step, 0]), int(last.sum())))
        return found

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
        if self._kept is not None:
            out[...] = self._kept[start : start + len(out)]
        elif self.entry.codec == "none":
            self._read_plain(out, [(start, start + len(out))], check)
        else:
            self._read_compressed(out, start)

    def read_ranges(self, ranges: Sequence[tuple[int, int]], *, check: bool = True) -> NDArray[Any]:
        """Rows start..stop of every range, one range after the other, in a fresh array.

        Args:
            ranges: Start and stop of each.
            check: Verify crc32c.

        Raises:
            CorruptStoreError: If bytes are missing or do not match their checksum.
            MetadataError: If there are no such rows.
        """
        out = np.empty((self._count(ranges), *self.tail), self.dtype)
        if self.entry.codec == "none" and out.size:
            self._read_plain(out, ranges, check)
        elif out.size:
            at = 0
            for start, stop in ranges:
                if start < stop:
                    self._read_compressed(out[at : at + stop - start], start)
                at += stop - start
        return out

    def decode_ranges(self, ranges: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any]]:
        """Rows start..stop of every range of a compressed array, one after the other.

        Who lets go of an array before taking the next has it decoded into memory that is still in the processor's
        cache: a third faster than all of them into fresh memory.

        Raises:
            CorruptStoreError: If bytes are missing or do not match their checksum.
            MetadataError: If there are no such rows.
        """
        self._count(ranges)
        step = self.entry.chunk_rows
        shared, kept = -1, np.empty(0, self.dtype)
        for start, stop in ranges:
            first, end = start // step, -(-stop // step) if stop > start else start // step
            decoded = np.empty((end - first, step, *self.tail), self.dtype)
            known = int(first < end and first == shared)
            if known:
                # views that do not start on a chunk: the one before ends in this one
                decoded[0] = kept
            if first + known < end:
                for chunk, stored in enumerate(self._encoded(first + known, end - 1), first + known):
                    self._decode(stored, decoded[chunk - first], chunk)
            yield decoded.reshape(-1, *self.tail)[start - first * step : stop - first * step]
            if stop % step and first < end:
                shared, kept = end - 1, decoded[-1]

    def _count(self, ranges: Sequence[tuple[int, int]]) -> int:
        rows, total = self.entry.shape[0], 0
        for start, stop in ranges:
            if not 0 <= start <= stop <= rows:
                raise MetadataError(f"rows {start} to {stop} of {rows}", where=self._where)
            total += stop - start
        return total

    def _read_plain(self, out: NDArray[Any], ranges: Sequence[tuple[int, int]], check: bool) -> None:
        """Scatter: row bytes go straight to `out`.

        With `check`, the checksum behind a chunk goes to a slot of its own. Without, it goes to `out` as well, and then
        the next chunk on top of it: half as many buffers for the kernel.
        """
        stride = int(self.index[0, 1])  # plain chunks are all of one size, one behind the other
        flat, row = out.reshape(-1).view(np.uint8), self._row_bytes
        # slices of a memoryview are made, and passed to the kernel, in a third of the time of an array's
        target, body = flat.data, row * self.entry.chunk_rows
        check = check or row < CHECKSUM_BYTES  # the last chunk's rows must cover it
        extra = 0 if check else CHECKSUM_BYTES
        at = 0
        for start, stop in ranges:
            if start == stop:
                continue
            first, lead = divmod(start * row, body)
            end = at + (stop - start) * row
            head = min(body - lead, end - at) if lead else 0
            rest = target[at + head : end]
            pieces: list[Any] = [rest[cut] for cut in self._cuts(-(-len(rest) // body), extra)]
            if head:
                pieces.insert(0, target[at : min(at + head + extra, end)])
            if check:
                self._fill_checked(pieces, flat[at:end], first, lead, stride)
            else:
                self._fill(pieces, end - at + extra * (len(pieces) - 1), first * stride + lead)
            at = end

    def _cuts(self, n: int, extra: int) -> list[slice]:
        """The chunks of a buffer of n of them; kept, for making them took as long as using them."""
        cuts = self._slices[extra]
        if n > len(cuts):
            body = self._row_bytes * self.entry.chunk_rows
            cuts = self._slices[extra] = [slice(i * body, (i + 1) * body + extra) for i in range(n)]
        return cuts[:n]

    def _fill_checked(self, pieces: list[Any], flat: NDArray[np.uint8], first: int, lead: int, stride: int) -> None:
        """Fill `flat`, cut into `pieces`, with the chunks from `first` on, less `lead` bytes and what is too much."""
        n, body = len(pieces), stride - CHECKSUM_BYTES
        trail = n * body - lead - len(flat)
        around, checksums = np.empty(lead + trail, np.uint8), np.empty(n, "<u4")
        slots = checksums.view(np.uint8).data
        buffers = [slots] * (2 * n)
        buffers[::2] = pieces
        buffers[1::2] = [slots[i : i + 4] for i in range(0, 4 * n, 4)]
        if trail:
            buffers.insert(-1, around[lead:].data)
        if lead:
            buffers.insert(0, around[:lead].data)
        self._fill(buffers, n * stride, first * stride)
        if n == 1:
            found = [_crc32c(around[:lead], flat, around[lead:])]
        else:
            low, high = body - lead if lead else 0, len(flat) + trail - body if trail else len(flat)
            found = [google_crc32c.value(chunk) for chunk in flat[low:high].reshape(-1, body)]
            if lead:
                found.insert(0, _crc32c(around[:lead], flat[:low]))
            if trail:
                found.append(_crc32c(flat[high:], around[lead:]))
        if found != checksums.tolist():
            damaged = first + int(np.flatnonzero(checksums != found)[0])
            raise CorruptStoreError(f"chunk {damaged} is damaged (crc32c)", where=self._where, hint=_HINT)

    def _read_compressed(self, out: NDArray[Any], start: int) -> None:
        step, stop = self.entry.chunk_rows, start + len(out)
        first, last = start // step, (stop - 1) // step
        scratch = np.empty((step, *self.tail), self.dtype)
        for chunk, stored in enumerate(self._encoded(first, last), first):
            low = chunk * step
            a, b = max(start, low), min(stop, low + step)
            whole = b - a == step
            target = out[a - start : b - start] if whole else scratch
            self._decode(stored, target, chunk)
            if not whole:
                out[a - start : b - start] = scratch[a - low : b - low]

    def _encoded(self, first: int, last: int) -> Iterator[NDArray[np.uint8]]:
        """Chunks first..last as they are stored, with their checksums, which are checked; one `preadv`."""
        if self._extents is None:
            self._extents = self.index.tolist()
        index = self._extents[first : last + 1]
        begin, end = index[0][0], sum(index[-1])
        raw = np.empty(end - begin, np.uint8)
        self._fill([raw.data], len(raw), begin)
        for chunk, (offset, size) in enumerate(index, first):
            stored = raw[offset - begin : offset - begin + size]
            if google_crc32c.value(stored) != _CRC32C_RESIDUE:
                raise CorruptStoreError(f"chunk {chunk} is damaged (crc32c)", where=self._where, hint=_HINT)
            yield stored

    def _decode(self, stored: NDArray[np.uint8], target: NDArray[Any], chunk: int) -> None:
        try:
            decode_chunk(self.entry.codec, stored, target)
        except ValueError as error:
            raise CorruptStoreError(f"chunk {chunk} {error}", where=self._where, hint=_HINT) from error

    def _read_index(self) -> NDArray[np.int64]:
        entry = self.entry
        assert entry.data is not None
        chunks = entry.chunks
        if not self._sharded:
            return np.array([[0, entry.data.size]], np.int64)
        raw = np.empty(shard_index_bytes(chunks), np.uint8)
        self._fill([raw.data], len(raw), entry.data.size - len(raw))
        if _crc32c(raw[:-4]) != int.from_bytes(raw[-4:].tobytes(), "little"):
            raise CorruptStoreError("the shard index is damaged (crc32c)", where=self._where, hint=_HINT)
        index = raw[:-4].view("<u8").reshape(chunks, 2)
        end = entry.data.size - len(raw)
        if (index > end).any() or (index[:, 1] < 4).any():
            raise CorruptStoreError("the shard index points outside the shard", where=self._where, hint=_HINT)
        index = index.astype(np.int64)
        stops = index[:, 1].cumsum()
        if stops[-1] != end or (index[:, 0] != stops - index[:, 1]).any():
            raise CorruptStoreError("the chunks overlap, or leave bytes between", where=self._where, hint=_HINT)
        if entry.codec == "none" and (index[:, 1] != entry.chunk_bytes + 4).any():
            raise CorruptStoreError("a chunk has the wrong size", where=self._where, hint=_HINT)
        return index

    def _fill(self, buffers: list[Any], want: int, offset: int) -> None:
        """Read `want` consecutive bytes into `buffers`, which hold as many."""
        assert self._file is not None
        self._file.read_into(buffers, want, offset)


def _crc32c(*parts: NDArray[np.uint8]) -> int:
    value = 0
    for part in parts:
        value = google_crc32c.extend(value, part)
    return value
