# SPDX-License-Identifier: Apache-2.0
"""What one block must hold, beyond the right bytes: documents, tables, views and points that make sense."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.store.digests import coordinate_digests
from ditr_cache.store.layout import FORMAT_VERSION, MAX_VIEW_ROWS, array_document, array_spec, data_object
from ditr_cache.store.receipt import ArrayEntry, Coverage, Receipt
from ditr_cache.store.verify_array import ArrayStream, Findings, read_document
from ditr_cache.types import PointCloud

__all__ = ["check_block"]

Tables = dict[str, NDArray[Any]]


def check_block(found: Findings, receipt: Receipt, *, deep: bool) -> None:
    """Compare a block with its receipt.

    Args:
        found: Where problems go.
        receipt: Already valid by itself.
        deep: Read and decode the data objects too. False: documents, and the sizes of the data objects.
    """
    sizes = _sizes(found, receipt.folder)
    if found.storage.remote:
        found.sizes |= sizes
    _check_documents(found, receipt)
    _check_entries(found, receipt, sizes)
    if not deep:
        return
    streams = {name: ArrayStream(found, receipt.folder, name, entry) for name, entry in receipt.arrays.items()}
    try:
        content = _Content(found, receipt, streams)
        if content.tables_make_sense():
            content.check_views()
            content.check_points()
    finally:
        for stream in streams.values():
            stream.close()


def _check_documents(found: Findings, receipt: Receipt) -> None:
    path = f"{receipt.folder}/zarr.json"
    document = _parse(found, path, read_document(found, path, receipt.metadata))
    if document is not None:
        samples = [{"id": s.id, "split": s.split, "views": list(s.views)} for s in receipt.samples]
        expected = {"format_version": FORMAT_VERSION, "block": receipt.block, "samples": samples}
        attributes = document.get("attributes")
        ours = attributes.get("ditr_cache") if isinstance(attributes, dict) else None
        group = document.get("zarr_format"), document.get("node_type")
        ours = ours if isinstance(ours, dict) else {}
        if group != (3, "group") or any(ours.get(key) != value for key, value in expected.items()):
            found.problem(path, "is not the group that the receipt describes")
    for name, entry in receipt.arrays.items():
        path = f"{receipt.folder}/{name}/zarr.json"
        document = _parse(found, path, read_document(found, path, entry.metadata))
        if document is not None and document not in _documents(name, entry):
            found.problem(path, "is not the array that the receipt describes")


def _documents(name: str, entry: ArrayEntry) -> Iterator[dict[str, Any]]:
    """What may describe an array: how hard its writer compressed is the writer's choice."""
    for level in range(1, 10) if entry.codec == "blosc" else (0,):
        yield array_document(name, entry.dtype, entry.shape, entry.chunk_rows, entry.codec, level)


def _parse(found: Findings, path: str, data: bytes | None) -> dict[str, Any] | None:
    if data is None:
        return None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        found.problem(path, "is not a JSON object")
        return None
    return document


def _check_entries(found: Findings, receipt: Receipt, sizes: dict[str, int]) -> None:
    """Every object is there and has its size; what else lies there is only noted."""
    expected = set(receipt.objects)
    for name, entry in receipt.arrays.items():
        if entry.data is None:
            continue
        path = f"{receipt.folder}/{name}/{data_object(entry.shape)}"
        with found.guard(path):
            size = sizes[path] if path in sizes else _size(found, path)
            if size != entry.data.size:
                found.problem(path, f"{size:,} bytes, the receipt says {entry.data.size:,}")
    for path in sorted(sizes.keys() - expected):
        found.note(path, "is no part of the store")


def _sizes(found: Findings, folder: str) -> dict[str, int]:
    """Bytes of all that lies in a block's folder, hidden files and links too; nothing where that cannot be seen."""
    storage, sizes = found.storage, {}
    if not storage.remote:
        root = Path(storage.location)
        for parent, _, files in os.walk(root / folder):
            for path in (Path(parent, file) for file in files):
                sizes[path.relative_to(root).as_posix()] = path.lstat().st_size
    elif storage.listable:
        with found.guard(folder):
            sizes = {entry.key: entry.size for entry in storage.list(f"{folder}/")}
    return sizes


def _size(found: Findings, path: str) -> int:
    file = found.storage.open(path)
    file.close()
    return file.size


class _Content:
    """The decoded arrays of one block; every stream is read front to back once."""

    def __init__(self, found: Findings, receipt: Receipt, streams: dict[str, ArrayStream]) -> None:
        self._found, self._receipt, self._streams = found, receipt, streams
        self._tables: Tables = {}
        for name, entry in receipt.arrays.items():
            if array_spec(name).chunk_rows is None:
                rows = streams[name].take(entry.shape[0])
                if rows is not None:
                    self._tables[name] = rows

    def tables_make_sense(self) -> bool:
        """Whether the view and sample tables can be followed; everything wrong in them is a problem."""
        tables, arrays, samples = self._tables, self._receipt.arrays, self._receipt.samples
        needed = {"view_rows", "view_hits", "view_sample", "view_index", "view_variant", "sample_points", "grid"}
        before = len(self._found.problems)
        if needed - tables.keys() or "view_sha256" not in tables:
            return False
        for name in tables.keys() & {"affine", "cls", "intrinsics", "world_to_camera", "distortion", "origin"}:
            if not np.isfinite(tables[name]).all():
                self._problem(name, "is not finite")
        self._check_ranges("view_rows", arrays["features"].shape[0], most=MAX_VIEW_ROWS)
        self._check_ranges("view_hits", arrays["hit_step"].shape[0])
        self._check_ranges("sample_points", sum(s.points for s in samples), whole=True)
        lengths = np.diff(tables["sample_points"])[:, 0].tolist()
        if lengths != [s.points for s in samples]:
            self._problem("sample_points", "is not what the receipt says of the samples")
        keys = list(zip(*(tables[n].tolist() for n in ("view_sample", "view_variant", "view_index")), strict=True))
        if any(not 0 <= s < len(samples) or not 0 <= i < len(samples[s].views) or v < 0 for s, v, i in keys):
            self._problem("view_sample", "a view belongs to no sample")
        elif any(a >= b for a, b in itertools.pairwise(keys)):
            self._problem("view_sample", "views are not in the order of sample, variant, base view")
        elif [(s, i) for s, v, i in keys if v == 0] != [
            (s, i) for s, sample in enumerate(samples) for i in range(len(sample.views))
        ]:
            self._problem("view_index", "a base view is missing")
        grid = tables["grid"].astype(np.int64)
        if (grid < 1).any() or (grid.prod(axis=1) > MAX_VIEW_ROWS).any():
            self._problem("grid", "a patch grid is empty or too large")
        if "image_size" in tables and (tables["image_size"] < 1).any():
            self._problem("image_size", "an image has no pixels")
        return len(self._found.problems) == before

    def check_views(self) -> None:
        """Rows, hits and hash of every view; what lies between the rows of two views is zero."""
        streams, arrays = self._streams, self._receipt.arrays
        rows_at, hits_at, seen = 0, 0, np.zeros(0, bool)
        total = dict.fromkeys(Coverage.model_fields, 0)
        previous = -1
        tables = (self._tables[n].tolist() for n in ("view_rows", "view_hits", "view_sample", "view_variant"))
        for view, ((start, stop), (first, last), sample, variant) in enumerate(zip(*tables, strict=True)):
            if sample != previous:
                total["seen"] += int(seen.sum())
                seen, previous = np.zeros(self._receipt.samples[sample].points, bool), sample
            for name in ("features", "row_patch"):
                streams[name].skip_padding(start - rows_at)
            for name in ("hit_step", "hit_row"):
                streams[name].skip_padding(first - hits_at)
            point_H = self._check_view(view, stop - start, len(seen))
            if point_H is None:
                return
            rows_at, hits_at = stop, last
            if variant == 0:
                seen[point_H] = True
                for key, n in (("views", 1), ("rows", stop - start), ("hits", len(point_H))):
                    total[key] += n
        for name, at in (("features", rows_at), ("row_patch", rows_at), ("hit_step", hits_at), ("hit_row", hits_at)):
            streams[name].skip_padding(arrays[name].shape[0] - at)
        total["seen"] += int(seen.sum())
        total["points"] = sum(s.points for s in self._receipt.samples)
        if total != self._receipt.coverage.model_dump():
            self._found.problem(self._receipt.folder, "the receipt's coverage is not what the views see")

    def _check_view(self, view: int, rows: int, points: int) -> NDArray[np.int64] | None:
        """Points `[H]` that a view sees; None where they cannot be known."""
        start, stop = self._tables["view_hits"][view].tolist()
        if stop - start > points:
            self._problem("view_hits", f"view {view} sees more points than there are")
            return None
        digest, finite = hashlib.sha256(), True
        for piece in self._streams["features"].pieces(rows):
            digest.update(piece.data)
            finite = finite and bool(np.isfinite(piece).all())
        patch_R = self._streams["row_patch"].take(rows)
        step_H = self._streams["hit_step"].take(stop - start)
        row_H = self._streams["hit_row"].take(stop - start)
        if patch_R is None or step_H is None or row_H is None or not self._streams["features"].intact:
            return None
        for array in (patch_R, step_H, row_H):
            digest.update(array.tobytes())
        if digest.digest() != self._tables["view_sha256"][view].tobytes():
            self._problem("view_sha256", f"view {view} has other content (sha256)")
        if not finite:
            self._problem("features", f"view {view} is not finite")
        if rows and (
            int(patch_R[-1]) >= int(self._tables["grid"][view].prod()) or (np.diff(patch_R.astype(int)) <= 0).any()
        ):
            self._problem("row_patch", f"view {view} has patches outside its grid, or not in ascending order")
        point_H: NDArray[np.int64] = step_H.cumsum(dtype=np.int64)
        if not len(point_H):
            return point_H
        if int(row_H.max()) >= rows:
            self._problem("hit_row", f"view {view} has hits outside its rows")
        if point_H[0] < 0 or (step_H[1:] <= 0).any() or point_H[-1] >= points:
            self._problem("hit_step", f"view {view} has hits outside its sample, or not in ascending order")
            return None
        return point_H

    def check_points(self) -> None:
        """The coordinates are the ones that the digests were taken of."""
        coord, origin = self._streams.get("coord"), self._tables.get("origin")
        if coord is None or origin is None:
            return
        for position, sample in enumerate(self._receipt.samples):
            coord_N3 = coord.take(sample.points)
            if coord_N3 is None:
                return
            digests = coordinate_digests(PointCloud(coord_N3, origin[position]))
            if digests != (sample.coord_sha256, sample.coord_sha256_sorted):
                self._problem("coord", f"sample {sample.id} has other coordinates than its digests say")

    def _check_ranges(self, name: str, limit: int, *, most: int | None = None, whole: bool = False) -> None:
        ranges = self._tables[name]
        bounds = np.concatenate([[0], ranges.reshape(-1), [limit]])
        gaps = bounds[::2] != bounds[1::2]
        if (bounds[1:] < bounds[:-1]).any() or (whole and gaps.any()):
            self._problem(name, f"is not a list of ascending ranges below {limit:,}")
        elif most is not None and (np.diff(ranges) > most).any():
            self._problem(name, f"a view has more than {most:,} rows")

    def _problem(self, array: str, what: str) -> None:
        self._found.problem(f"{self._receipt.folder}/{array}", what)
