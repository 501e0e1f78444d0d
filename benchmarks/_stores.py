# SPDX-License-Identifier: Apache-2.0
"""Stores of real frames with features of a real ViT, for the benchmarks that read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _harness import data_folder

from ditr_cache.backbones import load_backbone
from ditr_cache.config import BackboneConfig, ImagesConfig, VisibilityConfig
from ditr_cache.datasets import open_dataset
from ditr_cache.errors import FrameError
from ditr_cache.fusion import ViewHits, factor, seen_rows
from ditr_cache.geometry import find_hits
from ditr_cache.images import decode, resize
from ditr_cache.store.encode import BlockSettings, encode_view
from ditr_cache.store.manifest import DatasetEntry, Plan, PlannedBlock, PlannedSample
from ditr_cache.store.reader import FeatureStore, open_store
from ditr_cache.store.writer import StoreWriter
from ditr_cache.types import Float32, View

__all__ = ["NUSCENES", "REDKITCHEN", "Source", "build_store", "work_folder"]

PATCH = 14


@dataclass(frozen=True, slots=True)
class Source:
    """One sample of the real data, and how it is looked at."""

    name: str
    folder: str
    grid: tuple[int, int]
    rule: VisibilityConfig
    align_views: bool


# depth range and margin of golden/projection_7scenes.npz
REDKITCHEN = Source(
    "redkitchen",
    "nerfstudio/redkitchen",
    (30, 40),
    VisibilityConfig(min_depth=0.5, max_depth=4.0, depth_margin=0.2),
    align_views=True,
)
NUSCENES = Source("nuscenes", "nuscenes", (27, 48), VisibilityConfig(depth_margin=None), align_views=False)


def work_folder() -> Path:
    """Where stores and features are kept between benchmarks."""
    folder = Path(os.environ.get("DITR_CACHE_BENCHMARK_WORK", Path(tempfile.gettempdir()) / "ditr-cache-benchmarks"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_store(source: Source, folder: Path, dtype: str = "float16") -> FeatureStore:
    """A new store of one sample with all its views."""
    dataset = open_dataset(data_folder() / source.folder)
    planned = dataset.plan()[0].samples[0]
    scene = dataset.load(planned.id)
    views = scene.views
    hits = list(_view_hits(source, scene.points.coord, scene.points.origin, views))
    maps = _patch_maps(source, views)
    settings = BlockSettings(dim=maps.shape[2], dtype=dtype, align_views=source.align_views)
    writer = StoreWriter.create(folder, {"benchmark": source.name, "dtype": dtype})
    names = tuple(v.name for v in views)
    sample = PlannedSample(id=scene.id, split=planned.split, views=names)
    writer.add_plan(Plan(dataset=DatasetEntry(), blocks=(PlannedBlock(id="block", samples=(sample,)),)))
    block = writer.start_block("block", settings)
    block.add_sample(scene.id, planned.split, scene.points)
    for view, found, map_PD in zip(views, hits, maps, strict=True):
        rows_RD = seen_rows(map_PD.float(), found.row_patch)
        arrays = (found.row_patch, found.hit_point, found.hit_row)
        block.add_view(encode_view(view.name, 0, view.camera, source.grid, rows_RD, None, arrays, settings))
    writer.commit(block.finish(0, {}, {}))
    writer.finalize()
    return open_store(folder)


def _view_hits(source: Source, coord: Float32, origin: Any, views: tuple[View, ...]) -> Iterator[ViewHits]:
    for view in views:
        depth = None if view.depth is None or source.rule.depth_margin is None else view.depth.read()
        found = find_hits(coord, origin, [view.camera], [depth], [source.grid], source.rule)
        yield factor(found[0], source.grid)


def _patch_maps(source: Source, views: tuple[View, ...]) -> torch.Tensor:
    """`[V, P, D]` float16, computed once and kept."""
    default = Path(__file__).resolve().parents[2] / "shared" / "weights" / "dinov2-small-first8blocks"
    weights = Path(os.environ.get("DITR_CACHE_TEST_WEIGHTS", default))
    if not weights.is_dir():
        raise SystemExit("this benchmark needs real weights; set DITR_CACHE_TEST_WEIGHTS to their folder")
    kept = work_folder() / f"{source.name}-{len(views)}-{source.grid[0]}x{source.grid[1]}.npy"
    if not kept.exists():
        backbone = load_backbone(BackboneConfig(weights=weights), "cpu")
        size = (source.grid[0] * PATCH, source.grid[1] * PATCH)
        maps = []
        for view in views:
            data = view.image.read()
            try:
                image = decode(data, view.camera.height, view.camera.width)
            except FrameError as error:
                raise SystemExit(f"{view.name}: {error}") from error
            batch = resize(image, size, ImagesConfig().filter)[None]
            with torch.inference_mode():
                maps.append(backbone(batch).rows[0].half().numpy())
        temporary = kept.with_suffix(".part.npy")
        np.save(temporary, np.stack(maps))
        temporary.replace(kept)
    return torch.from_numpy(np.load(kept))
