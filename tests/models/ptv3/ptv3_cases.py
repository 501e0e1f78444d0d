# SPDX-License-Identifier: Apache-2.0
"""Small networks and small clouds."""

import numpy as np
import torch

from ditr_cache.config.model import ModelConfig
from ditr_cache.models.ptv3.model import PointTransformerV3
from ditr_cache.models.random import draw_weights
from ditr_cache.types import FactoredFeatures, PointBatch

IMAGE_CHANNELS = 12
IN_CHANNELS = 6


def tiny_config(**changes) -> ModelConfig:
    """Three stages, patches of 16; nothing random unless asked for."""
    return ModelConfig(
        **{
            "stride": (2, 2),
            "enc_depths": (2, 1, 2),
            "enc_channels": (8, 16, 16),
            "enc_num_head": (2, 2, 4),
            "enc_patch_size": (16, 16, 16),
            "dec_depths": (1, 2),
            "dec_channels": (8, 16),
            "dec_num_head": (2, 2),
            "dec_patch_size": (16, 16),
            "shuffle_orders": False,
            "drop_path": 0.0,
            "sparse_conv": "torch",
            **changes,
        }
    )


def tiny_model(image_channels=IMAGE_CHANNELS, seed=0, dtype=torch.float64, **changes) -> PointTransformerV3:
    model = PointTransformerV3(tiny_config(**changes), IN_CHANNELS, image_channels)
    draw_weights(model, torch.Generator().manual_seed(seed))
    return model.to(dtype)


def cloud(seed: int, points: int, extent: int = 12) -> np.ndarray:
    """`[points, 3]` distinct voxels in random order, from 0."""
    rng = np.random.default_rng(seed)
    flat = rng.choice(extent**3, points, replace=False)
    grid = np.stack(np.unravel_index(flat, (extent,) * 3), 1).astype(np.int32)
    return grid - grid.min(0)


def make_batch(*clouds: np.ndarray, seed=0, dtype=torch.float64, unseen=0.3) -> PointBatch:
    """A batch whose features depend on cloud contents alone, so that clouds may be left out or joined."""
    rows, index, feat = [], [], []
    for grid in clouds:
        rng = np.random.default_rng([seed, len(grid), int(grid.sum())])
        feat.append(rng.normal(size=(len(grid), IN_CHANNELS)))
        own = rng.normal(size=(max(2, len(grid) // 4), IMAGE_CHANNELS))
        chosen = rng.integers(0, len(own), len(grid)) + sum(map(len, rows))
        index.append(np.where(rng.random(len(grid)) < unseen, -1, chosen))
        rows.append(own)
    grid = np.concatenate(clouds)
    return PointBatch(
        grid_coord=torch.from_numpy(grid),
        coord=torch.from_numpy(grid.astype(np.float32)) * 0.02,
        feat=torch.from_numpy(np.concatenate(feat)).to(dtype),
        offset=torch.tensor(np.cumsum([len(c) for c in clouds])),
        image=FactoredFeatures(
            torch.from_numpy(np.concatenate(rows)).to(dtype), torch.from_numpy(np.concatenate(index).astype(np.int32))
        ),
    )


def identity(config: ModelConfig) -> torch.Tensor:
    """Permutations that leave the curves as they are."""
    return torch.arange(len(config.order)).expand(1 + len(config.stride), -1)
