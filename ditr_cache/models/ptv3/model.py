# SPDX-License-Identifier: Apache-2.0
"""Point Transformer V3 (arXiv 2312.10035) with image features injected into its decoder (DITR, arXiv 2503.18944).

N points, C channels, D image channels, O curves, S stages.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import ConfigError
from ditr_cache.models.ptv3.block import Embedding
from ditr_cache.models.ptv3.context import Context
from ditr_cache.models.ptv3.images import LevelImage, pool_images
from ditr_cache.models.ptv3.level import Pyramid, build_pyramid
from ditr_cache.models.ptv3.pooling import ImageUnpooling, SerialisedPooling, SerialisedUnpooling
from ditr_cache.models.ptv3.sites import image_sum, sites
from ditr_cache.models.ptv3.stages import Stage, TokenStage
from ditr_cache.models.ptv3.tokens import NoTokens, class_tokens
from ditr_cache.models.random import device_generator, draw_permutations
from ditr_cache.types import PointBatch

__all__ = ["PointTransformerV3"]


class PointTransformerV3(nn.Module):
    """The network without its head. Names and shapes of its weights are the official ones.

    Args:
        config: Its settings.
        in_channels: Channels of `PointBatch.feat`.
        image_channels: D; not needed where `config.injection` is `none`.

    Raises:
        ConfigError: If image features shall be injected and D is missing.
    """

    def __init__(self, config: ModelConfig, in_channels: int, image_channels: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.sites = sites(config, image_channels)
        self.embedding = Embedding(in_channels, config)
        self.enc = nn.ModuleDict({f"enc{s}": self._encoder_stage(s) for s in range(len(config.enc_depths))})
        stages = reversed(range(len(config.dec_depths)))
        self.dec = nn.ModuleDict({f"dec{s}": self._decoder_stage(s, image_channels) for s in stages})
        conditions = config.norm_conditions
        self.before = image_sum(image_channels if self.sites.before else None, config.enc_channels[0], conditions)
        self.after = image_sum(image_channels if self.sites.after else None, config.dec_channels[0], conditions)
        # DMF-Net's way: the second network segments what the first one and the images have said
        plain = config.model_copy(update={"injection": "none"})
        self.second = PointTransformerV3(plain, config.dec_channels[0]) if self.sites.second else None

    def forward(
        self, batch: PointBatch, permutations: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Features of the finest level.

        Args:
            batch: B clouds; `image` where image features are injected.
            permutations: `[1 + poolings, O]` of the curves: row 0 after encoding, row l at pooling l. None: drawn
                from `generator` if `config.shuffle_orders`, in evaluation too, else the curves stay as configured.
            generator: On the CPU; drives permutations, and in training drop path.

        Returns:
            `[N, dec_channels[0]]` in the order of the input points.

        Raises:
            ConfigError: If something is to be drawn and there is no generator, or image features are missing.
        """
        permutations = self._permutations(permutations, generator)
        cls = class_tokens(batch) if self.sites.cls else NoTokens()
        context = Context(batch.condition, device_generator(generator, batch.feat.device), cls)
        pyramid = build_pyramid(batch, self.config, permutations)
        images = pool_images(batch.image, pyramid.clusters, self.sites.levels, self.config)
        return self._network(batch.feat, images, pyramid, context)

    def _network(self, feat: Tensor, images: list[LevelImage], pyramid: Pyramid, context: Context) -> Tensor:
        """Stem, encoder, decoder, and in between whatever enters from the images."""
        x = self.embedding(feat, pyramid.levels[0], context)
        x = self.before(x, images[0], context)
        skips = self._encode(x, pyramid, context)
        x = self._decode(skips, images, pyramid, context)
        x = self.after(x, images[0], context)
        return x if self.second is None else self.second._network(x, images, pyramid, context)

    def _encode(self, x: Tensor, pyramid: Pyramid, context: Context) -> list[Tensor]:
        """The output of every encoder stage, finest first."""
        outputs: list[Tensor] = []
        for s, (stage, level) in enumerate(zip(_stages(self.enc), pyramid.levels, strict=True)):
            if s > 0:
                x = stage.down(x, pyramid.clusters[s - 1], context)
            x = stage(x, level, context)
            outputs.append(x)
        return outputs

    def _decode(self, skips: list[Tensor], images: list[LevelImage], pyramid: Pyramid, context: Context) -> Tensor:
        """From the coarsest level back to the points."""
        *skips, x = skips
        levels = zip(_stages(self.dec), skips[::-1], images[::-1], pyramid.levels[-2::-1], strict=True)
        for (stage, skip, image, level), clusters in zip(levels, pyramid.clusters[::-1], strict=True):
            x, skip = stage.up(x, skip, clusters, image, context)
            # upstream forgets to update its sparse tensor (PTv3 issues 65, 149): the convolution sees the skip alone
            stale = skip if self.config.compatibility == "official" else None
            x = stage(x, level, context, stale)
        return x

    def _permutations(self, permutations: Tensor | None, generator: torch.Generator | None) -> Tensor:
        poolings, curves = len(self.config.stride), len(self.config.order)
        if permutations is None:
            if self.config.shuffle_orders:
                return draw_permutations(poolings, curves, generator)
            return torch.arange(curves).expand(1 + poolings, -1)
        if permutations.shape != (1 + poolings, curves):
            raise ConfigError(
                f"permutations of shape {tuple(permutations.shape)}; {poolings} poolings and {curves} curves need "
                f"{(1 + poolings, curves)}"
            )
        return permutations

    def _encoder_stage(self, s: int) -> Stage:
        config = self.config
        if s == 0:
            return Stage("enc", s, config)
        sizes = config.enc_channels[s - 1], config.enc_channels[s]
        return Stage("enc", s, config, down=SerialisedPooling(*sizes, config.norm_conditions, config.segment))

    def _decoder_stage(self, s: int, image_channels: int | None) -> Stage:
        config = self.config
        coarse = (*config.dec_channels, config.enc_channels[-1])[s + 1]
        sizes = coarse, config.enc_channels[s], config.dec_channels[s]
        if image_channels is not None and s in self.sites.decoder:
            return Stage("dec", s, config, up=ImageUnpooling(*sizes, image_channels, config.norm_conditions))
        up = SerialisedUnpooling(*sizes, config.norm_conditions)
        if image_channels is not None and self.sites.cls:
            return TokenStage("dec", s, config, up=up, proj_cls=nn.Linear(image_channels, config.dec_channels[s]))
        return Stage("dec", s, config, up=up)


def _stages(modules: nn.ModuleDict) -> list[Stage]:
    """In the order they run in."""
    return cast("list[Stage]", list(modules.values()))
