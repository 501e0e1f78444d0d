# SPDX-License-Identifier: Apache-2.0
"""Clouds for timing networks, each with two ways to its image features: rows of a store, and the patches of its views.

N points, P rows of the store, V views of h x w pixels, D feature channels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditr_cache.store.choose import Draw as Choice
from ditr_cache.store.choose import draw_views
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.collate import collate
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.dataset import FeatureStoreDataset
from ditr_cache.training.sampler import Draw
from ditr_cache.types import FactoredFeatures, PointBatch

__all__ = ["BenchScene", "generated_scene", "stored_scenes"]

GRID = (30, 40)
"""Patches of a generated scene's images: 420 x 560 pixels in patches of 14, the official size for ScanNet."""
CLASSES = 20
"""Where there are no labels, which are then drawn at random."""

_VOXEL = 0.02
_HEIGHT = 125
_TILE = 5
"""Voxels along a side of what one patch sees: 26 points a patch, as in 7-Scenes RedKitchen (docs/design/001)."""
_UNSEEN = 10
"""Every so manieth tile is seen by no view."""


@dataclass(frozen=True, slots=True, eq=False)
class BenchScene:
    """One cloud; CPU tensors."""

    batch: PointBatch
    """With labels, without image features."""
    classes: int
    cached: FactoredFeatures
    """`rows` `[P, D]` as stored."""
    images: tuple[Tensor, ...]
    """uint8 `[v, 3, h, w]`: views of one size together. Noise: what they show does not matter for time."""
    patch_N: Tensor
    """`[N]` int64 into the patches of all `images`, one after the other; -1 where no view sees the point."""
    read_s: float | None = None
    """Seconds that reading it from the store took, the second time."""

    @property
    def views(self) -> int:
        """V."""
        return sum(map(len, self.images))

    def bytes(self, arm: str) -> int:
        """Of the tensors that an arm is given."""
        given = [self.batch.grid_coord, self.batch.coord, self.batch.feat, self.batch.offset, self.batch.segment]
        if arm == "cached":
            given += [self.cached.rows, self.cached.index, self.cached.affine, self.cached.row_view]
        elif arm == "online":
            given += [*self.images, self.patch_N]
        return sum(tensor.nbytes for tensor in given if tensor is not None)


def stored_scenes(
    store: FeatureStore, sample_ids: Sequence[str], config: TrainConfig, patch_size: int
) -> list[BenchScene]:
    """Samples as evaluation sees them: views taken evenly, later over earlier, transforms of `data.val`.

    Args:
        store: Where from.
        sample_ids: Which.
        config: Settings of the data path.
        patch_size: Of the ViT, which decides the size of images: the store's patch grids stay.

    Raises:
        ConfigError: If the store lacks an array that the settings ask for.
    """
    data = FeatureStoreDataset(store, sample_ids, config.data, "eval", config.run.seed, labels=False)
    condition = str(store.identity["dataset"]["name"]) if config.model.norm_conditions else None
    classes = len(store.class_names.get(data.label_set or "", ())) or None
    return [_stored(data, sample_id, patch_size, classes, condition) for sample_id in sample_ids]


def generated_scene(points: int, views: int, dim: int, patch_size: int, channels: int) -> BenchScene:
    """The floor and the walls of a hall in voxels of 2 cm; every 5 x 5 of them look up one patch, a tenth none.

    Args:
        points: N.
        views: V, of 30 x 40 patches each.
        dim: D.
        patch_size: Pixels.
        channels: Of the network's input.
    """
    generator = torch.Generator().manual_seed(0)
    voxel_N3, tile_N = _hall(points)
    tiles, patches = int(tile_N.max()) + 1, views * GRID[0] * GRID[1]
    # spread over all views; a larger hall than they can see in patches of their own shares them
    patch_N = tile_N * patches // tiles if tiles <= patches else tile_N % patches
    patch_N = np.where(tile_N % _UNSEEN == _UNSEEN - 1, -1, patch_N)
    used_P, index_N = np.unique(patch_N, return_inverse=True)
    seen = used_P >= 0
    batch = PointBatch(
        grid_coord=torch.from_numpy(voxel_N3),
        coord=torch.from_numpy(voxel_N3 * np.float32(_VOXEL)),
        feat=torch.randn(points, channels, generator=generator),
        offset=torch.tensor([points]),
        segment=torch.randint(0, CLASSES, (points,), generator=generator),
    )
    cached = FactoredFeatures(
        torch.randn(int(seen.sum()), dim, generator=generator).half(),
        torch.from_numpy(index_N.reshape(-1) - int(not seen.all())).int(),
    )
    images = _noise({(GRID[0] * patch_size, GRID[1] * patch_size): views})
    return BenchScene(batch, CLASSES, cached, images, torch.from_numpy(patch_N))


def _stored(
    data: FeatureStoreDataset, sample_id: str, patch_size: int, classes: int | None, condition: str | None
) -> BenchScene:
    store, count, draw = data.store, data.config.views.evaluation_count, Draw(0, 0, sample_id)
    item = data[draw]
    start = time.perf_counter()
    read = store.read(sample_id, count=count, pick="strided", rule="last", seed=0)
    read_s = time.perf_counter() - start
    batch = collate([item], data.config.features, condition=condition)
    assert batch.image is not None
    views = draw_views(range(len(store.samples[sample_id].view_names)), count, "strided", Choice(0))
    grids = {view: store.grid(sample_id, view) for view in views}
    # views of one size are encoded together
    order = sorted(views, key=lambda view: grids[view])
    sizes: dict[tuple[int, int], int] = {}
    first, rows = np.full(len(store.samples[sample_id].view_names) + 1, 0), 0
    for view in order:
        height, width = grids[view]
        first[view] = rows
        rows += height * width
        size = (height * patch_size, width * patch_size)
        sizes[size] = sizes.get(size, 0) + 1
    view_n, patch_n = (array[item.sample.point].astype(np.int64) for array in (read.view, read.patch))
    patch_N = np.where(view_n >= 0, first[view_n] + patch_n, -1)
    segment = batch.segment
    if segment is None:
        classes = CLASSES
        segment = torch.randint(0, CLASSES, (len(batch.coord),), generator=torch.Generator().manual_seed(0))
    classes = classes or int(segment.max()) + 1
    cloud = replace(batch, image=None, segment=segment)
    return BenchScene(cloud, classes, batch.image, _noise(sizes), torch.from_numpy(patch_N), read_s)


def _noise(sizes: Mapping[tuple[int, int], int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)
        for size, count in sizes.items()
    )


def _hall(points: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """`[N, 3]` voxels, and which tile each is in."""
    height = max(1, min(_HEIGHT, math.isqrt(points // 5)))
    side = math.ceil(math.sqrt(4 * height**2 + points) - 2 * height)
    u, v = (axis.reshape(-1) for axis in np.mgrid[1 : side + 1, 1 : side + 1])
    voxels, places = [(u, v, 0 * u)], [(u, v)]
    u, v = (axis.reshape(-1) for axis in np.mgrid[1 : side + 1, 0:height])
    for wall in (0, side + 1):
        voxels += [(0 * u + wall, u, v), (u, 0 * u + wall, v)]
        places += [(u, v)] * 2
    wide, tiles = 1 + (side + 1) // _TILE, 0
    tile = []
    for u, v in places:
        tile.append(tiles + u // _TILE + wide * (v // _TILE))
        tiles = int(tile[-1].max()) + 1
    voxel_N3 = np.concatenate([np.stack(columns, 1) for columns in voxels])[:points]
    return voxel_N3.astype(np.int32), np.concatenate(tile)[:points].astype(np.int64)
