# SPDX-License-Identifier: Apache-2.0
"""MinkUNet (arXiv 1904.08755, section 5) with image features injected into its decoder (DITR, arXiv 2503.18944).

With default settings it is MinkUNet34C, which others call Res16UNet34C: kernel 5 in the stem, 2 for changes of level, 3
elsewhere. With three input channels and 20 classes it has 37,856,052 parameters; papers say 37.9 M.

DITR trains MinkUNet by distillation alone and says nothing of how to inject into it. Here, as in Point Transformer V3,
f_l^2D has the width of the decoder's stage and is added where its level is reached from below:

    x_l = blocks([up(x_{l+1}) + f_l^2D, skip_l])

N points, C channels, D image channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from ditr_cache.config.model import ModelConfig
from ditr_cache.models.minkunet.blocks import Conv
from ditr_cache.models.minkunet.levels import GridPyramid, build_grid_pyramid
from ditr_cache.models.minkunet.stages import DecoderStage, EncoderStage
from ditr_cache.models.ptv3.context import Context
from ditr_cache.models.ptv3.images import LevelImage, pool_images
from ditr_cache.models.ptv3.sites import image_sum, sites
from ditr_cache.types import PointBatch

__all__ = ["MinkUNet"]


class MinkUNet(nn.Module):
    """The network without its head.

    Args:
        config: Its settings: `config.minkunet`, and those that it shares with Point Transformer V3.
        in_channels: Channels of `PointBatch.feat`.
        image_channels: D; not needed where `config.injection` is `none`.

    Raises:
        ConfigError: If image features shall be injected and D is missing.
    """

    def __init__(self, config: ModelConfig, in_channels: int, image_channels: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.sites = sites(config, image_channels)
        shape = config.minkunet
        self.stem = Conv(in_channels, shape.stem_channels, shape.stem_kernel, config)
        skips = (shape.stem_channels, *shape.enc_channels)
        self.enc = nn.ModuleList(
            EncoderStage(skips[s], width, depth, config)
            for s, (width, depth) in enumerate(zip(shape.enc_channels, shape.enc_depths, strict=True))
        )
        below = (*shape.dec_channels[1:], shape.enc_channels[-1])
        self.dec = nn.ModuleList(
            DecoderStage(below[s], skips[s], width, depth, image_channels if s in self.sites.decoder else None, config)
            for s, (width, depth) in enumerate(zip(shape.dec_channels, shape.dec_depths, strict=True))
        )
        conditions = config.norm_conditions
        self.before = image_sum(image_channels if self.sites.before else None, shape.stem_channels, conditions)
        self.after = image_sum(image_channels if self.sites.after else None, config.width, conditions)

    def forward(
        self, batch: PointBatch, permutations: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Features of the finest level. Nothing is drawn.

        Args:
            batch: B clouds; `image` where image features are injected.
            permutations: Of curves; there are none here.
            generator: Not used.

        Returns:
            `[N, config.width]` in the order of the input points.

        Raises:
            ConfigError: If image features are missing.
        """
        context = Context(batch.condition)
        pyramid = build_grid_pyramid(batch, len(self.enc), self.config.sparse_conv)
        images = pool_images(batch.image, pyramid.clusters(), self.sites.levels, self.config)
        x = relu(self.stem(batch.feat, pyramid.levels[0], batch.condition))
        x = self.before(x, images[0], context)
        x = self._decode(self._encode(x, pyramid, context), images, pyramid, context)
        out: Tensor = self.after(x, images[0], context)
        return out

    def _encode(self, x: Tensor, pyramid: GridPyramid, context: Context) -> list[Tensor]:
        """The output of the stem and of every encoder stage, finest first."""
        outputs = [x]
        for s, stage in enumerate(self.enc):
            outputs.append(stage(outputs[-1], pyramid, s, context))
        return outputs

    def _decode(self, skips: list[Tensor], images: list[LevelImage], pyramid: GridPyramid, context: Context) -> Tensor:
        """From the coarsest level back to the points."""
        *skips, x = skips
        for s in reversed(range(len(self.dec))):
            x = self.dec[s](x, skips[s], images[s], pyramid, s, context)
        return x
