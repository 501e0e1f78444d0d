# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation: the network and one linear layer.

N points, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ditr_cache.config.model import ModelConfig
from ditr_cache.models.backbone import build_backbone
from ditr_cache.types import PointBatch

__all__ = ["Segmentor"]


class Segmentor(nn.Module):
    """A network with a segmentation head; names and shapes are those of upstream's `DefaultSegmentorV2`.

    Args:
        config: Settings of the network.
        in_channels: Channels of `PointBatch.feat`.
        classes: K.
        image_channels: D, where image features are injected.

    Raises:
        ConfigError: As `build_backbone`.
    """

    def __init__(self, config: ModelConfig, in_channels: int, classes: int, image_channels: int | None = None) -> None:
        super().__init__()
        self.backbone = build_backbone(config, in_channels, image_channels)
        self.seg_head = nn.Linear(config.width, classes)

    def forward(
        self, batch: PointBatch, permutations: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Class scores `[N, K]`; arguments as `PointTransformerV3.forward`."""
        logits_NK: Tensor = self.seg_head(self.backbone(batch, permutations, generator))
        return logits_NK
