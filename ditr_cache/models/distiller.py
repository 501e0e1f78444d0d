# SPDX-License-Identifier: Apache-2.0
"""D-DITR (arXiv 2503.18944, section 3.2): the network sees points only, and its last layer regresses image features.

N points, D image channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import ConfigError
from ditr_cache.models.backbone import build_backbone
from ditr_cache.models.norm import ConditionalNorm
from ditr_cache.models.similarity import cosine_to_rows
from ditr_cache.types import PointBatch

__all__ = ["NOT_VISIBLE", "Distiller"]

NOT_VISIBLE = 2.0
"""Stands for the cosine of a point without an image feature. None is as large, nor is what a network gives that has
diverged: NaN would be, and would hide that."""


class Distiller(nn.Module):
    """A backbone and a linear regression of image features. The backbone is a `Segmentor`'s, under the same names.

    Args:
        config: Settings of the network; nothing may be injected.
        in_channels: Channels of `PointBatch.feat`.
        image_channels: D of every regression: one for all data sets, or as many as `heads`.
        heads: Data sets with a regression of their own; none: one for all.

    Raises:
        ConfigError: If image features would be injected: the network would copy its targets.
    """

    def __init__(
        self, config: ModelConfig, in_channels: int, image_channels: tuple[int, ...], heads: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        if config.injection != "none":
            raise ConfigError(
                "a network that is shown image features cannot be distilled from them", where="model.injection"
            )
        self.backbone = build_backbone(config, in_channels)
        self.heads = heads
        width = config.width
        self.proj = nn.ModuleList(nn.Linear(width, dim) for dim, _ in zip(image_channels, heads or ("",), strict=True))

    def forward(
        self, batch: PointBatch, permutations: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """How alike regressed and image features are.

        Args:
            batch: With `image`; other arguments as `PointTransformerV3.forward`.
            permutations: Of the curves.
            generator: For what is drawn.

        Returns:
            `[N]` cosine; `NOT_VISIBLE` for points that are not.
        """
        if batch.image is None:
            raise ConfigError("there are no image features to regress")
        x_NC = self.backbone(batch, permutations, generator)
        cosine_N, visible_N = cosine_to_rows(x_NC, self.head(batch.condition), batch.image)
        return torch.where(visible_N, cosine_N, NOT_VISIBLE)

    def head(self, condition: str | None) -> nn.Linear:
        """The regression of a data set.

        Raises:
            ConfigError: If it has none.
        """
        if not self.heads:
            layer = self.proj[0]
        elif condition in self.heads:
            layer = self.proj[self.heads.index(condition)]
        else:
            raise ConfigError(f"there is no head for the data set {condition!r}", where="distill.separate_heads")
        assert isinstance(layer, nn.Linear)
        return layer

    def plain_backbone(self, condition: str | None) -> dict[str, Tensor]:
        """Weights of the backbone as one without norm layers for each data set has them.

        Args:
            condition: Whose norm layers to take; None where there are shared ones only.
        """
        state = self.backbone.state_dict()
        for name, module in self.backbone.named_modules():
            if isinstance(module, ConditionalNorm):
                assert condition is not None
                mine = f"{name}.norm.{module.conditions.index(condition)}."
                kept = {f"{name}.{key.removeprefix(mine)}": x for key, x in state.items() if key.startswith(mine)}
                state = {key: x for key, x in state.items() if not key.startswith(f"{name}.norm.")} | kept
        return dict(state)
