# SPDX-License-Identifier: Apache-2.0
"""Small random stores, and a slow oracle for what reading them must give."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditr_cache.store.encode import BlockSettings, EncodedView, encode_view
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.manifest import DatasetEntry, Plan, PlannedBlock, PlannedSample
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.writer import StoreWriter
from ditr_cache.types import Camera, PointCloud

IDENTITY = {
    "format_version": 1,
    "dataset": {"name": "random", "version": "1"},
    "backbone": {"name": "noise", "random_seed": 0},
    "images": {"mean": [0.5, 0.25, 0.125], "size": [30, 40]},
}
DATASET = DatasetEntry(class_names={"segment": ("floor", "wände")}, label_maps={"segment": {"7": 0, "9": 1}})
PROVENANCE = {"ditr_cache": "0", "device": "cpu", "seconds": 0.5, "deterministic": True, "commit": None}


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A temporary folder, in memory where there is some: stores of many small files are nine times as fast there."""
    memory = Path("/dev/shm")
    usable = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 28
    with tempfile.TemporaryDirectory(prefix="ditr-cache-", dir=memory if usable else None) as folder:
        yield Path(folder)


class NoSync(Filesystem):
    """Without the flushing, which takes nine tenths of the time of a tiny store."""

    def write(self, path: Path, data: bytes) -> None:
        with path.open("xb") as file:
            file.write(data)

    def sync_file(self, file: FileIO) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        assert path.is_dir()


@dataclass(frozen=True)
class ViewSpec:
    name: str
    variant: int
    camera: Camera
    grid: tuple[int, int]
    rows: np.ndarray
    row_patch: np.ndarray
    hit_point: np.ndarray
    hit_row: np.ndarray
    cls: np.ndarray | None

    def encode(self, settings: BlockSettings) -> EncodedView:
        return encode_view(
            self.name,
            self.variant,
            self.camera,
            self.grid,
            torch.from_numpy(self.rows),
            None if self.cls is None else torch.from_numpy(self.cls),
            (self.row_patch, self.hit_point, self.hit_row),
            settings,
        )


@dataclass(frozen=True)
class SampleSpec:
    id: str
    split: str
    points: PointCloud
    views: tuple[ViewSpec, ...]
    """In the order of storing: variant, then base view."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(v.name for v in self.views if v.variant == 0)

    def view(self, base: int, variant: int = 0) -> ViewSpec:
        return next(v for v in self.views if v.name == self.names[base] and v.variant == variant)


@dataclass(frozen=True)
class BlockSpec:
    id: str
    samples: tuple[SampleSpec, ...]

    @property
    def plan(self) -> PlannedBlock:
        return PlannedBlock(
            id=self.id, samples=tuple(PlannedSample(id=s.id, split=s.split, views=s.names) for s in self.samples)
        )


def random_points(rng: np.random.Generator, n: int) -> PointCloud:
    return PointCloud(
        coord=rng.normal(size=(n, 3)).astype(np.float32),
        origin=rng.normal(size=3) * 1e6,
        color=rng.integers(0, 256, (n, 3)).astype(np.uint8),
        normal=rng.normal(size=(n, 3)).astype(np.float32),
        strength=rng.random(n).astype(np.float32),
        segments={"segment": rng.integers(-1, 2, n).astype(np.int32), "segment20": np.arange(n, dtype=np.int32)},
        instance=rng.integers(-1, 9, n).astype(np.int32),
    )


def random_view(
    rng: np.random.Generator, name: str, variant: int, n: int, dim: int, cls: bool, hits: int | None = None
) -> ViewSpec:
    grid = int(rng.integers(1, 12)), int(rng.integers(1, 12))
    h = int(rng.integers(0, n + 1)) if hits is None else hits
    hit_point = np.sort(rng.choice(n, h, replace=False)).astype(np.int32)
    row_patch, hit_row = np.unique(rng.integers(0, grid[0] * grid[1], h), return_inverse=True)
    camera = Camera(
        rng.normal(size=(3, 3)),
        rng.normal(size=(4, 4)),
        int(rng.integers(1, 2000)),
        int(rng.integers(1, 2000)),
        rng.normal(size=8),
    )
    # away from zero, so that int8 stays within the error that the format allows
    rows = rng.uniform(1, 3, (len(row_patch), dim)).astype(np.float32) * np.float32(1 + variant)
    return ViewSpec(
        name,
        variant,
        camera,
        grid,
        rows,
        row_patch.astype(np.uint16),
        hit_point,
        hit_row.astype(np.uint16),
        rng.normal(size=dim).astype(np.float32) if cls else None,
    )


def random_block(
    seed: int,
    block: str = "b0",
    *,
    samples: int = 1,
    points: int | tuple[int, int] = (1, 60),
    views: int = 3,
    variants: Sequence[int] = (0,),
    dim: int = 8,
    cls: bool = False,
) -> BlockSpec:
    rng = np.random.default_rng(seed)
    made = []
    for s in range(samples):
        n = points if isinstance(points, int) else int(rng.integers(points[0], points[1] + 1))
        specs = [random_view(rng, f"view {v}", variant, n, dim, cls) for variant in variants for v in range(views)]
        made.append(SampleSpec(f"{block}/s{s}", "train" if s % 2 == 0 else "val", random_points(rng, n), tuple(specs)))
    return BlockSpec(block, tuple(made))


def write_block(
    writer: StoreWriter, block: BlockSpec, settings: BlockSettings, generation: int = 0, provenance: Any = None
) -> Receipt:
    """Everything but the commit."""
    out = writer.start_block(block.id, settings)
    for sample in block.samples:
        out.add_sample(sample.id, sample.split, sample.points)
        for view in sample.views:
            out.add_view(view.encode(settings))
    return out.finish(generation, DATASET.model_dump(mode="json"), provenance or PROVENANCE)


def build_store(
    path: Path,
    blocks: Iterable[BlockSpec],
    settings: BlockSettings | None = None,
    *,
    fs: Filesystem | None = None,
    identity: Any = None,
    finalize: bool = True,
) -> StoreWriter:
    blocks = list(blocks)
    settings = settings or BlockSettings(dim=8, dtype="float16")
    writer = StoreWriter.create(path, identity or IDENTITY, fs or NoSync())
    writer.add_plan(Plan(dataset=DATASET, blocks=tuple(b.plan for b in blocks)))
    for block in blocks:
        assert writer.commit(write_block(writer, block, settings))
    if finalize:
        writer.finalize()
    return writer


def run_extraction(
    path: Path,
    fs: Filesystem,
    blocks: Sequence[BlockSpec],
    settings: BlockSettings,
    *,
    planned: Sequence[BlockSpec] | None = None,
    finalize: bool = True,
) -> None:
    """What an extraction does to a store, as the pipeline does it: resumes, and survives being beaten."""
    writer = StoreWriter.create(path, IDENTITY, fs)
    writer.add_plan(Plan(dataset=DATASET, blocks=tuple(b.plan for b in planned or blocks)))
    for block in blocks:
        if writer.has_receipt(block.id):
            continue
        out = None
        try:
            out = writer.start_block(block.id, settings)
            for sample in block.samples:
                out.add_sample(sample.id, sample.split, sample.points)
                for view in sample.views:
                    out.add_view(view.encode(settings))
            receipt = out.finish(0, {}, {})
        except FileNotFoundError:
            # a collector took the files: only because another writer was first
            if out is not None:
                writer.abandon(out)
            assert writer.has_receipt(block.id)
            continue
        writer.commit(receipt)
    if finalize:
        writer.finalize()


def oracle_index(sample: SampleSpec, views: Sequence[tuple[int, int]], rule: str) -> np.ndarray:
    """`[N, 2]` (position in `views`, row in the view) that serves a point; -1 unseen. Slow and obvious."""
    out = np.full((len(sample.points), 2), -1)
    order = list(enumerate(views))
    for position, (base, variant) in order if rule == "last" else reversed(order):
        view = sample.view(base, variant)
        for point, row in zip(view.hit_point.tolist(), view.hit_row.tolist(), strict=True):
            out[point] = position, row
    return out


def tree_digest(root: Path) -> dict[str, str]:
    """sha256 of every file of a store."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def without_points(block: BlockSpec) -> BlockSpec:
    """The same with coordinates alone, for blocks that need not be large."""
    return replace(
        block,
        samples=tuple(replace(s, points=PointCloud(s.points.coord, s.points.origin)) for s in block.samples),
    )
