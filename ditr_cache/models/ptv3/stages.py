# SPDX-License-Identifier: Apache-2.0
"""Stages of the encoder and of the decoder: one change of level, then blocks.

N points, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from ditr_cache.config.model import ModelConfig
from ditr_cache.models.ptv3.block import Block
from ditr_cache.models.ptv3.context import Context
from ditr_cache.models.ptv3.level import Level
from ditr_cache.models.ptv3.pooling import SerialisedPooling, SerialisedUnpooling

__all__ = ["Stage", "TokenStage"]


class Stage(nn.Module):
    """Blocks of one stage, and what comes before them: `down`, `up` or nothing.

    Args:
        side: Encoder or decoder.
        s: Number of the stage, finest first.
        config: Depths, widths, heads, patch sizes, drop path.
    """

    down: SerialisedPooling
    up: SerialisedUnpooling

    def __init__(self, side: Literal["enc", "dec"], s: int, config: ModelConfig, **before: nn.Module) -> None:
        super().__init__()
        for name, module in before.items():
            self.add_module(name, module)
        depths: tuple[int, ...] = getattr(config, f"{side}_depths")
        channels, heads, patch_size = (
            getattr(config, f"{side}_{n}")[s] for n in ("channels", "num_head", "patch_size")
        )
        rates = torch.linspace(0, config.drop_path, sum(depths), device="cpu")[sum(depths[:s]) :][: depths[s]].tolist()
        # the decoder runs from the coarsest stage up, with the highest rate first
        rates = rates[::-1] if side == "dec" else rates
        for i, rate in enumerate(rates):
            self.add_module(f"block{i}", Block(channels, heads, patch_size, i, rate, config))

    def blocks(self) -> list[Block]:
        """In the order they run in."""
        return [child for child in self.children() if isinstance(child, Block)]

    def forward(self, x: Tensor, level: Level, context: Context, conv_input: Tensor | None = None) -> Tensor:
        """Run the blocks `[N, C]` to `[N, C]`; `conv_input` is what the first one's convolution sees instead of x."""
        for block in self.blocks():
            x, conv_input = block(x, level, context, conv_input), None
        return x


class TokenStage(Stage):
    """A stage in whose attention every patch also sees the class tokens of its cloud."""

    proj_cls: nn.Linear

    def forward(self, x: Tensor, level: Level, context: Context, conv_input: Tensor | None = None) -> Tensor:
        """As `Stage`, with the class tokens at its width."""
        tokens = context.cls.projected(self.proj_cls)
        return super().forward(x, level, replace(context, tokens=tokens), conv_input)
