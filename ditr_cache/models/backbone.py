# SPDX-License-Identifier: Apache-2.0
"""The network that the settings name, without a head."""

from __future__ import annotations

from ditr_cache.config.model import ModelConfig
from ditr_cache.models.minkunet.model import MinkUNet
from ditr_cache.models.ptv3.model import PointTransformerV3

__all__ = ["Backbone", "build_backbone"]

Backbone = PointTransformerV3 | MinkUNet
"""Takes `(batch, permutations=None, generator=None)` to `[N, config.width]`."""


def build_backbone(config: ModelConfig, in_channels: int, image_channels: int | None = None) -> Backbone:
    """The network of `config.network`.

    Args:
        config: Its settings.
        in_channels: Channels of `PointBatch.feat`.
        image_channels: D, where image features are injected.

    Raises:
        ConfigError: If image features shall be injected and D is missing.
    """
    kind = MinkUNet if config.network == "minkunet" else PointTransformerV3
    return kind(config, in_channels, image_channels)
