# SPDX-License-Identifier: Apache-2.0
"""What a part of a block is made of, read through ranges; nothing of it is used before its hash was right.

crc32c finds damage, but proves nothing about who wrote the bytes: tables and points are compared with the hashes in the
manifest, rows and hits with those in `view_sha256`, which is one of the tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import CorruptStoreError, MetadataError
from ditr_cache.store.block_reader import BlockReader
from ditr_cache.store.digests import coordinate_digests, view_digest
from ditr_cache.store.layout import POINT_ARRAYS, array_spec
from ditr_cache.store.objects import ArrayReader
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.storage import Range, Storage
from ditr_cache.store.transfer_objects import Tally
from ditr_cache.types import Camera, PointCloud

__all__ = ["PartReader", "StoredView"]

_GROUP_BYTES = 32 << 20
"""Fetched at a time: in memory, for every block that is worked on."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredView:
    """One view as a store has it."""

    name: str
    variant: int
    camera: Camera
    grid: tuple[int, int]
    rows: NDArray[Any]
    """`[R, D]` float16 or int8."""
    affine: NDArray[np.float32] | None
    row_patch: NDArray[np.uint16]
    hit_point: NDArray[np.int32]
    hit_row: NDArray[np.uint16]
    cls: NDArray[np.float16] | None
    sha256: bytes


class PartReader:
    """One block of a store that may be anybody's.

    Args:
        source: The store.
        receipt: The block.
        tally: Counts the bytes that are read.

    Raises:
        StoreError: If the block is missing or its tables make no sense.
    """

    def __init__(self, source: Storage, receipt: Receipt, tally: Tally) -> None:
        self._source, self._receipt, self._tally = source, receipt, tally
        self._block = BlockReader(source, receipt)
        self.bytes = 0
        """Read so far."""
        names = [name for name in receipt.arrays if array_spec(name).chunk_rows is None]
        arrays = [self._block.array(name) for name in names]
        with source.fetch([head for array in arrays for head in array.head()]):
            self._tables = {name: self._whole(array) for name, array in zip(names, arrays, strict=True)}
        self._count(sum(entry.data.size for name in names if (entry := receipt.arrays[name]).data is not None))

    @property
    def aligned(self) -> bool:
        """Whether every view starts on a chunk."""
        arrays, tables = self._receipt.arrays, self._tables
        rows, hits = tables["view_rows"][:, 0], tables["view_hits"][:, 0]
        return not (rows % arrays["features"].chunk_rows).any() and not (hits % arrays["hit_step"].chunk_rows).any()

    def close(self) -> None:
        """Release all files."""
        self._block.close()

    def points(self, wanted: Sequence[int]) -> dict[int, PointCloud]:
        """Points of some samples, by position. Whole arrays are read: their hashes are of the whole.

        Raises:
            CorruptStoreError: If they are not those that were written.
            MetadataError: If tables contradict each other.
        """
        ranges = self._tables["sample_points"].tolist()
        found: dict[int, dict[str, NDArray[Any]]] = {position: {} for position in wanted}
        for name, entry in self._receipt.arrays.items():
            if name not in POINT_ARRAYS and not name.startswith("segment"):
                continue
            array = self._block.array(name)
            with self._source.fetch(array.spans([(0, entry.shape[0])])):
                whole = self._whole(array)
            self._count(entry.data.size if entry.data else 0)
            for position in wanted:
                start, stop = ranges[position]
                if not 0 <= start <= stop <= len(whole) or stop - start != self._receipt.samples[position].points:
                    raise MetadataError("sample_points contradicts the receipt", where=self._receipt.folder)
                found[position][name] = whole[start:stop].copy()
        return {position: self._cloud(position, columns) for position, columns in found.items()}

    def views(self, position: int, names: Sequence[str]) -> Iterator[StoredView]:
        """Views of a sample with all their variants, in the order of storing.

        Raises:
            CorruptStoreError: If they are not those that were written.
            MetadataError: If tables contradict each other.
        """
        block, sample = self._block, self._receipt.samples[position]
        bases = [sample.views.index(name) for name in names]
        if any(not block.has_view(position, base, 0) for base in bases):
            raise MetadataError("a base view is missing", where=self._receipt.folder)
        numbers = [
            block.view(position, base, variant)
            for variant in block.variants(position)
            for base in bases
            if block.has_view(position, base, variant)
        ]
        for group, spans in self._groups(numbers):
            with self._source.fetch(spans):
                for number in group:
                    self._tally.go_on()
                    yield self._view(number, sample.points, sample.views)
            self._count(sum(span.stop - span.start for span in spans))

    def _view(self, number: int, points: int, names: Sequence[str]) -> StoredView:
        block, tables = self._block, self._tables
        rows_RD, patch_R = block.read_rows([number]), block.read_row_patches([number])
        point_H, row_H = block.read_hits(number, points)
        step_H = np.diff(point_H, prepend=0).astype(np.int32)
        digest = view_digest(rows_RD, patch_R, step_H, row_H)
        if digest != tables["view_sha256"][number].tobytes():
            raise CorruptStoreError(f"view {number} has other content (sha256)", where=self._receipt.folder)
        height, width = tables["image_size"][number].tolist()
        rows, columns = tables["grid"][number].tolist()
        camera = Camera(
            tables["intrinsics"][number],
            tables["world_to_camera"][number],
            height,
            width,
            tables["distortion"][number],
        )
        return StoredView(
            name=names[int(tables["view_index"][number])],
            variant=int(tables["view_variant"][number]),
            camera=camera,
            grid=(rows, columns),
            rows=rows_RD,
            affine=tables["affine"][number] if "affine" in tables else None,
            row_patch=patch_R,
            hit_point=point_H.astype(np.int32),
            hit_row=row_H,
            cls=tables["cls"][number] if "cls" in tables else None,
            sha256=digest,
        )

    def _groups(self, numbers: Sequence[int]) -> Iterator[tuple[list[int], list[Range]]]:
        """Views that are fetched together."""
        group: list[int] = []
        spans: list[Range] = []
        size = 0
        for number in numbers:
            own = self._spans(number)
            if group and size > _GROUP_BYTES:
                yield group, spans
                group, spans, size = [], [], 0
            group.append(number)
            spans += own
            size += sum(span.stop - span.start for span in own)
        if group:
            yield group, spans

    def _spans(self, number: int) -> list[Range]:
        rows, hits = self._block.view_rows[number].tolist(), self._block.view_hits[number].tolist()
        wanted = (("features", rows), ("row_patch", rows), ("hit_step", hits), ("hit_row", hits))
        return [span for name, (start, stop) in wanted for span in self._block.array(name).spans([(start, stop)])]

    def _whole(self, array: ArrayReader) -> NDArray[Any]:
        rows = array.read_all()
        digest = hashlib.sha256(rows.data if rows.size else b"")
        if digest.hexdigest() != array.entry.sha256:
            raise CorruptStoreError(f"{array.name} is not what the manifest says (sha256)", where=self._receipt.folder)
        return rows

    def _cloud(self, position: int, columns: dict[str, NDArray[Any]]) -> PointCloud:
        sample = self._receipt.samples[position]
        segments = {name: columns.pop(name) for name in list(columns) if name.startswith("segment")}
        cloud = PointCloud(origin=self._tables["origin"][position], segments=segments, **columns)
        if coordinate_digests(cloud) != (sample.coord_sha256, sample.coord_sha256_sorted):
            raise CorruptStoreError("coordinates are not those of the manifest (sha256)", where=sample.id)
        return cloud

    def _count(self, n: int) -> None:
        self.bytes += n
        self._tally.moved(n)
