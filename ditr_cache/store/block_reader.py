# SPDX-License-Identifier: Apache-2.0
"""One committed block, open for reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import ConfigError, MetadataError
from ditr_cache.store.kernels import running_sum
from ditr_cache.store.layout import MAX_VIEW_ROWS, POINT_ARRAYS
from ditr_cache.store.objects import ArrayReader
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.storage import Storage
from ditr_cache.types import PointCloud

__all__ = ["BlockReader"]

_ON_DEMAND = frozenset({"cls", "intrinsics", "world_to_camera", "distortion", "image_size", "view_sha256"})
"""Tables that reading features does without."""


class BlockReader:
    """Views and samples of one block. Thread-safe; holds an open object an array that was used."""

    def __init__(self, storage: Storage, receipt: Receipt) -> None:
        self.receipt = receipt
        self._storage = storage
        self._arrays: dict[str, ArrayReader] = {}
        if storage.remote:
            self._preload()
        self._view_of = self._index_views()

    def array(self, name: str) -> ArrayReader:
        """Reader of one array."""
        if name not in self._arrays:
            entry = self.receipt.arrays[name]
            self._arrays[name] = ArrayReader(self._storage, f"{self.receipt.folder}/{name}", name, entry)
        return self._arrays[name]

    def close(self) -> None:
        """Release all files."""
        for reader in self._arrays.values():
            reader.close()
        self._arrays = {}

    @cached_property
    def view_rows(self) -> NDArray[np.int64]:
        """`[V, 2]` start and stop of every view's rows, checked against R."""
        ranges = self._ranges("view_rows", self.receipt.arrays["features"].shape[0])
        if (ranges[:, 1] - ranges[:, 0] > MAX_VIEW_ROWS).any():
            raise MetadataError(f"a view has more than {MAX_VIEW_ROWS:,} rows", where=self.receipt.folder)
        return ranges

    @cached_property
    def view_hits(self) -> NDArray[np.int64]:
        """`[V, 2]` start and stop of every view's hits, checked against H."""
        return self._ranges("view_hits", self.receipt.arrays["hit_step"].shape[0])

    @cached_property
    def sample_points(self) -> NDArray[np.int64]:
        """`[S, 2]` start and stop of every sample's points."""
        return self._ranges("sample_points", None)

    @cached_property
    def affine(self) -> NDArray[np.float32] | None:
        """`[V, 2, D]` of an int8 store."""
        return self.array("affine").read_all() if "affine" in self.receipt.arrays else None

    def fetched(self, views: Sequence[int], sample: int, *, cls: bool = False) -> AbstractContextManager[None]:
        """A context in which reading all of some views of a sample, and its points, takes one round trip in all."""
        if not self._storage.remote:
            return nullcontext()
        rows, hits = [self._row_ranges[v] for v in views], [self._hit_ranges[v] for v in views]
        spans = {"features": rows, "row_patch": rows, "hit_step": hits, "hit_row": hits}
        start, stop = self.sample_points[sample].tolist()
        spans |= {name: [(start, stop)] for name in self._point_arrays}
        ranges = [span for name, wanted in spans.items() for span in self.array(name).spans(wanted)]
        if cls and "cls" in self.receipt.arrays:
            ranges += self.array("cls").head()
        return self._storage.fetch(ranges)

    def variants(self, sample: int) -> tuple[int, ...]:
        """The `view_variant` values that a sample has, ascending."""
        return tuple(sorted({v for s, _, v in self._view_of if s == sample}))

    def has_view(self, sample: int, base: int, variant: int) -> bool:
        """Whether there is such a view."""
        return (sample, base, variant) in self._view_of

    def view(self, sample: int, base: int, variant: int) -> int:
        """Row of the view tables for a base view and variant.

        Raises:
            KeyError: If there is none.
        """
        return self._view_of[sample, base, variant]

    def read_rows(self, views: Sequence[int], *, check: bool = True) -> NDArray[Any]:
        """Feature rows of `views`, one after the other, without padding: `[P, D]`; one `preadv` a view."""
        return self.array("features").read_ranges([self._row_ranges[v] for v in views], check=check)

    def read_row_patches(self, views: Sequence[int]) -> NDArray[np.uint16]:
        """`[P]` raster indices of the rows that `read_rows` gives."""
        return self.array("row_patch").read_ranges([self._row_ranges[v] for v in views])

    def read_class_tokens(self, views: Sequence[int]) -> NDArray[np.float16]:
        """`[V, D]` class tokens of `views`.

        Raises:
            ConfigError: If the store has none.
        """
        if "cls" not in self.receipt.arrays:
            raise ConfigError(
                "this store has no class tokens",
                where=self.receipt.block,
                hint="Extract with a backbone that has one, or choose an injection of patch features.",
            )
        tokens_VD: NDArray[np.float16] = self.array("cls").read_all()[list(views)]
        return tokens_VD

    def read_hits(self, view: int, points: int) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """One view's hits; see `read_hits_many`."""
        return next(self.read_hits_many([view], points))

    def read_hits_many(
        self, views: Sequence[int], points: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint16]]]:
        """Hits of each view: points `[H]` ascending (int64, ready to index with), rows of the view `[H]`.

        Args:
            views: Rows of the view tables, of one sample.
            points: N of the sample.

        Raises:
            MetadataError: If a hit names a point or a row that does not exist.
        """
        ranges = [self._hit_ranges[v] for v in views]
        if any(stop - start > points for start, stop in ranges):
            raise MetadataError("a view sees more points than there are", where=self.receipt.folder)
        # map and not a loop: a loop variable would keep an array alive while the next is decoded
        return map(
            self._checked_hits,
            [self._row_ranges[view] for view in views],
            self.array("hit_step").decode_ranges(ranges),
            self.array("hit_row").decode_ranges(ranges),
            [points] * len(views),
        )

    def _checked_hits(
        self, rows: tuple[int, int], step_H: NDArray[np.int32], row_H: NDArray[np.uint16], points: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        point_H = running_sum(step_H)
        if len(step_H):
            ascending = step_H[0] >= 0 and (len(step_H) == 1 or int(step_H[1:].min()) > 0)
            if not ascending or point_H[-1] >= points or int(row_H.max()) >= rows[1] - rows[0]:
                raise MetadataError("hits point outside their sample or view", where=self.receipt.folder)
        return point_H, row_H

    def read_points(self, sample: int) -> PointCloud | None:
        """A sample's points; None where the store leaves them out."""
        if "coord" not in self.receipt.arrays:
            return None
        start, stop = self.sample_points[sample].tolist()
        if stop - start != self.receipt.samples[sample].points:
            raise MetadataError("sample_points contradicts the receipt", where=self.receipt.folder)
        columns = {name: self.array(name).read(start, stop) for name in self._point_arrays}
        segments = {name: columns.pop(name) for name in list(columns) if name.startswith("segment")}
        origin = self.array("origin").read(sample, sample + 1)[0]
        return PointCloud(origin=origin, segments=segments, **columns)

    @cached_property
    def _point_arrays(self) -> list[str]:
        return [n for n in self.receipt.arrays if n in POINT_ARRAYS or n.startswith("segment")]

    @cached_property
    def _row_ranges(self) -> list[tuple[int, int]]:
        return [(start, stop) for start, stop in self.view_rows.tolist()]

    @cached_property
    def _hit_ranges(self) -> list[tuple[int, int]]:
        return [(start, stop) for start, stop in self.view_hits.tolist()]

    def _preload(self) -> None:
        """Tables and shard indexes in one round trip; class tokens and cameras are left until they are asked for."""
        wanted = [self.array(name) for name in self.receipt.arrays if name not in _ON_DEMAND]
        with self._storage.fetch([head for array in wanted for head in array.head()]):
            for array in wanted:
                array.preload()

    def _ranges(self, name: str, limit: int | None) -> NDArray[np.int64]:
        ranges = self.array(name).read_all()
        if limit is None:
            limit = sum(s.points for s in self.receipt.samples)
        before = np.concatenate([[0], ranges[:-1, 1]]) if len(ranges) else np.zeros(0, np.int64)
        if (ranges[:, 0] < before).any() or (ranges[:, 1] < ranges[:, 0]).any() or (ranges > limit).any():
            raise MetadataError(f"{name} is not a list of ascending ranges below {limit}", where=self.receipt.folder)
        return ranges

    def _index_views(self) -> dict[tuple[int, int, int], int]:
        tables = [self.array(n).read_all().tolist() for n in ("view_sample", "view_index", "view_variant")]
        found: dict[tuple[int, int, int], int] = {}
        for view, key in enumerate(zip(*tables, strict=True)):
            sample, base, variant = key
            if not (0 <= sample < len(self.receipt.samples) and 0 <= base < len(self.receipt.samples[sample].views)):
                raise MetadataError("a view belongs to no sample", where=self.receipt.folder)
            if variant < 0 or key in found:
                raise MetadataError("a view is listed twice", where=self.receipt.folder)
            found[key] = view
        return found
