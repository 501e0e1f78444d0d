# SPDX-License-Identifier: Apache-2.0
"""Writes one block: samples, then their views, in order; every array is a stream, so memory is one view's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import QuantisationError, SampleError
from ditr_cache.store.digests import coordinate_digests
from ditr_cache.store.documents import construct
from ditr_cache.store.encode import BlockSettings, EncodedView
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.layout import FORMAT_VERSION, Codec, group_document
from ditr_cache.store.quantize import MAX_COSINE_ERROR_P99
from ditr_cache.store.receipt import Coverage, FrameNote, ObjectEntry, Receipt, SampleEntry
from ditr_cache.store.shard import ArrayWriter
from ditr_cache.types import PointCloud

__all__ = ["BlockWriter"]


class BlockWriter:
    """Writes one block into a folder of its own.

    Args:
        folder: `blocks/<block>-<uuid>`; must not exist.
        block: Block id.
        uuid: 32 hex digits.
        settings: The store's.
        fs: Durable operations.
    """

    def __init__(self, folder: Path, block: str, uuid: str, settings: BlockSettings, fs: Filesystem) -> None:
        self.folder, self.block, self.uuid, self.settings, self._fs = folder, block, uuid, settings, fs
        self._arrays: dict[str, ArrayWriter] = {}
        self._samples: list[dict[str, Any]] = []
        self._sample_points: list[tuple[int, int]] = []
        self._small: dict[str, list[Any]] = {
            k: []
            for k in [
                "view_rows",
                "view_hits",
                "view_sample",
                "view_index",
                "view_variant",
                "view_sha256",
                "intrinsics",
                "world_to_camera",
                "distortion",
                "image_size",
                "grid",
                "cls",
                "affine",
                "origin",
            ]
        }
        self._errors: list[NDArray[np.float32]] = []
        self.known_error: float | None = None
        """int8 only: the error that was measured when rows that come with none were made."""
        self._total = {"points": 0, "seen": 0, "hits": 0, "rows": 0, "views": 0}
        self._seen: NDArray[np.bool_] = np.zeros(0, bool)
        self._point_names: AbstractSet[str] = frozenset()
        self.dropped: list[FrameNote] = []
        self.skipped: list[FrameNote] = []
        streams: tuple[tuple[str, str, tuple[int, ...], Codec], ...] = (
            ("features", settings.dtype, (settings.dim,), settings.compress),
            ("row_patch", "uint16", (), "none"),
            ("hit_step", "int32", (), "blosc"),
            ("hit_row", "uint16", (), "blosc"),
        )
        try:
            fs.make_folder(folder)
            for name, dtype, tail, codec in streams:
                self._open(name, dtype, tail, codec)
        except OSError:
            self.abort()
            raise

    @property
    def has_samples(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self._samples)

    def add_sample(self, sample_id: str, split: str, points: PointCloud) -> None:
        """Begin a sample. Its views follow.

        Raises:
            SampleError: If its points have other attributes than those of the samples before it.
        """
        columns = self._columns(sample_id, points)
        exact, order_free = coordinate_digests(points)
        self._begin_sample(sample_id, split, len(points), exact, order_free)
        self._add_points(points, columns)

    def add_known_sample(self, sample: SampleEntry, points: PointCloud | None) -> None:
        """Begin a sample that another store has: its digests are known, its points may not be.

        Args:
            sample: What that store says of it; its views follow.
            points: Already compared with its digests; None where this store keeps no points.

        Raises:
            SampleError: If its points have other attributes than those of the samples before it.
        """
        columns = {} if points is None else self._columns(sample.id, points)
        self._begin_sample(sample.id, sample.split, sample.points, sample.coord_sha256, sample.coord_sha256_sorted)
        if points is not None:
            self._add_points(points, columns)

    def _columns(self, sample_id: str, points: PointCloud) -> dict[str, NDArray[Any]]:
        columns: dict[str, NDArray[Any] | None] = {
            "coord": points.coord,
            "color": points.color,
            "normal": points.normal,
            "strength": points.strength,
            "instance": points.instance,
            **points.segments,
        }
        present = {name: array for name, array in columns.items() if array is not None}
        if self._samples and present.keys() != self._point_names:
            raise SampleError("its points have other attributes than those of the samples before it", where=sample_id)
        self._point_names = present.keys()
        return present

    def _begin_sample(self, sample_id: str, split: str, points: int, exact: str, order_free: str) -> None:
        self._count_seen()
        self._pad()
        start = self._sample_points[-1][1] if self._sample_points else 0
        self._sample_points.append((start, start + points))
        self._samples.append(
            {
                "id": sample_id,
                "split": split,
                "points": points,
                "views": [],
                "coord_sha256": exact,
                "coord_sha256_sorted": order_free,
            }
        )
        self._total["points"] += points
        self._seen = np.zeros(points, bool)

    def _add_points(self, points: PointCloud, columns: Mapping[str, NDArray[Any]]) -> None:
        if not self.settings.points:
            return
        self._small["origin"].append(points.origin)
        for name, array in columns.items():
            dtype = {"color": "uint8", "coord": "float32", "normal": "float32", "strength": "float32"}.get(
                name, "int32"
            )
            if name not in self._arrays:
                self._open(name, dtype, array.shape[1:], "none")
            self._arrays[name].append(array)

    def add_view(self, view: EncodedView) -> None:
        """Append a view of the current sample. Order within a sample: variant, then view."""
        features, sample = self._arrays["features"], self._samples[-1]
        if self.settings.align_views:
            self._pad()
        start, hit_start = features.rows, self._arrays["hit_step"].rows
        features.append(view.rows)
        self._arrays["row_patch"].append(view.row_patch)
        self._arrays["hit_step"].append(view.hit_step)
        self._arrays["hit_row"].append(view.hit_row)
        if view.variant == 0:
            sample["views"].append(view.name)
            self._seen[view.hit_point] = True
            self._total["hits"] += len(view.hit_point)
            self._total["rows"] += len(view.rows)
            self._total["views"] += 1
        if view.cosine_error is not None:
            self._errors.append(view.cosine_error)
        small = self._small
        small["view_rows"].append((start, start + len(view.rows)))
        small["view_hits"].append((hit_start, hit_start + len(view.hit_row)))
        small["view_sample"].append(len(self._samples) - 1)
        small["view_index"].append(sample["views"].index(view.name))
        small["view_variant"].append(view.variant)
        small["view_sha256"].append(np.frombuffer(view.sha256, np.uint8))
        small["intrinsics"].append(view.camera.intrinsics)
        small["world_to_camera"].append(view.camera.world_to_camera)
        small["distortion"].append(view.camera.distortion)
        small["image_size"].append((view.camera.height, view.camera.width))
        small["grid"].append(view.grid)
        if view.affine is not None:
            small["affine"].append(view.affine)
        if view.cls is not None:
            small["cls"].append(view.cls)

    def finish(
        self, generation: int, dataset: Mapping[str, Any], provenance: Mapping[str, str | int | float | bool | None]
    ) -> Receipt:
        """Write the small arrays, the metadata and flush it all. The block counts only once its receipt is created.

        Raises:
            QuantisationError: If int8 loses more than the format allows.
        """
        self._count_seen()
        error = None
        if self.settings.dtype == "int8":
            errors = np.concatenate(self._errors) if self._errors else np.zeros(0, np.float32)
            error = max(float(np.quantile(errors, 0.99)) if len(errors) else 0.0, self.known_error or 0.0)
            if error > MAX_COSINE_ERROR_P99:
                raise QuantisationError(
                    f"int8 loses too much: cosine error p99 is {error:.1e}, allowed {MAX_COSINE_ERROR_P99:.0e}",
                    where=self.block,
                    hint="Store float16 instead, in a new store: -s store.dtype=f16",
                )
        self._write_small()
        entries = {name: writer.close() for name, writer in self._arrays.items()}
        document = self._group_document(dataset)
        self._fs.write(self.folder / "zarr.json", document)
        self._fs.sync_folder(self.folder)
        self._fs.sync_folder(self.folder.parent)
        return construct(
            Receipt,
            format_version=FORMAT_VERSION,
            block=self.block,
            generation=generation,
            uuid=self.uuid,
            metadata=ObjectEntry(size=len(document), sha256=hashlib.sha256(document).hexdigest()),
            arrays=dict(sorted(entries.items())),
            samples=tuple(SampleEntry(**{**s, "views": tuple(s["views"])}) for s in self._samples),
            coverage=Coverage(**self._total),
            dropped=tuple(self.dropped),
            skipped=tuple(self.skipped),
            int8_cosine_error_p99=error,
            provenance=dict(provenance),
        )

    def abort(self) -> None:
        """Close and remove what was written; nothing refers to it."""
        for writer in self._arrays.values():
            writer.abort()
        self._fs.remove_tree(self.folder)

    def _open(self, name: str, dtype: str, tail: Sequence[int], codec: Codec) -> None:
        self._arrays[name] = ArrayWriter(self.folder / name, name, dtype, tuple(tail), codec, self._fs)

    def _pad(self) -> None:
        """Let what follows start on a chunk of features and of hits, so that a read decodes nothing else."""
        arrays = self._arrays
        for name in ("features", "hit_step", "hit_row"):
            arrays[name].pad_to_chunk()
        arrays["row_patch"].append(np.zeros(arrays["features"].rows - arrays["row_patch"].rows, np.uint16))

    def _count_seen(self) -> None:
        self._total["seen"] += int(self._seen.sum())
        self._seen = np.zeros(0, bool)

    def _write_small(self) -> None:
        views, samples, dim = len(self._small["view_rows"]), len(self._samples), self.settings.dim
        specs: dict[str, tuple[str, tuple[int, ...]]] = {
            "view_rows": ("int64", (views, 2)),
            "view_hits": ("int64", (views, 2)),
            "view_sample": ("int32", (views,)),
            "view_index": ("int32", (views,)),
            "view_variant": ("int16", (views,)),
            "view_sha256": ("uint8", (views, 32)),
            "intrinsics": ("float64", (views, 3, 3)),
            "world_to_camera": ("float64", (views, 4, 4)),
            "distortion": ("float64", (views, 8)),
            "image_size": ("int32", (views, 2)),
            "grid": ("int32", (views, 2)),
        }
        if self.settings.dtype == "int8":
            specs["affine"] = ("float32", (views, 2, dim))
        if self.settings.class_token:
            specs["cls"] = ("float16", (views, dim))
        if self.settings.points:
            specs["origin"] = ("float64", (samples, 3))
        for name, (dtype, shape) in specs.items():
            self._open(name, dtype, shape[1:], "none")
            self._arrays[name].append(np.array(self._small[name], dtype).reshape(shape))
        self._open("sample_points", "int64", (2,), "none")
        self._arrays["sample_points"].append(np.array(self._sample_points, np.int64).reshape(samples, 2))

    def _group_document(self, dataset: Mapping[str, Any]) -> bytes:
        attributes = {
            "ditr_cache": {
                "format_version": FORMAT_VERSION,
                "block": self.block,
                "samples": [{k: s[k] for k in ("id", "split", "views")} for s in self._samples],
                **dataset,
            }
        }
        return json.dumps(group_document(attributes), indent=2).encode()
