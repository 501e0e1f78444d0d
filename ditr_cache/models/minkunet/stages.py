# SPDX-License-Identifier: Apache-2.0
"""Stages of the encoder and of the decoder: one change of level, then residual blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ditr_cache.config.model import ModelConfig
from ditr_cache.models.minkunet.blocks import Down, Residuals, Up
from ditr_cache.models.minkunet.levels import GridPyramid
from ditr_cache.models.ptv3.context import Context
from ditr_cache.models.ptv3.images import LevelImage
from ditr_cache.models.ptv3.sites import image_sum

__all__ = ["DecoderStage", "EncoderStage"]


class EncoderStage(nn.Module):
    """One level down, then residual blocks.

    Args:
        channels_in: Of the finer level.
        channels_out: Of this one.
        depth: Residual blocks.
        config: Norm layers and back end.
    """

    def __init__(self, channels_in: int, channels_out: int, depth: int, config: ModelConfig) -> None:
        super().__init__()
        self.down = Down(channels_in, config)
        self.residuals = Residuals(channels_in, channels_out, depth, config)

    def forward(self, x: Tensor, pyramid: GridPyramid, s: int, context: Context) -> Tensor:
        """From level s of the pyramid to the next coarser one."""
        x = self.down(x, pyramid.strides[s], context.condition)
        out: Tensor = self.residuals(x, pyramid.levels[s + 1], context.condition)
        return out


class DecoderStage(nn.Module):
    """One level up, image features added, the skip connection beside them, then residual blocks.

    Args:
        channels_in: Of the coarser level.
        channels_skip: Of the encoder at this level.
        channels_out: Of this level.
        depth: Residual blocks.
        image_channels: D; None where nothing is injected.
        config: Norm layers and back end.
    """

    def __init__(
        self,
        channels_in: int,
        channels_skip: int,
        channels_out: int,
        depth: int,
        image_channels: int | None,
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.up = Up(channels_in, channels_out, config)
        self.image = image_sum(image_channels, channels_out, config.norm_conditions)
        self.residuals = Residuals(channels_out + channels_skip, channels_out, depth, config)

    def forward(
        self, x: Tensor, skip: Tensor, image: LevelImage, pyramid: GridPyramid, s: int, context: Context
    ) -> Tensor:
        """From level s + 1 of the pyramid to level s."""
        up = self.up(x, pyramid.strides[s], context.condition)
        up = self.image(up, image, context)
        out: Tensor = self.residuals(torch.cat([up, skip], 1), pyramid.levels[s], context.condition)
        return out
