# SPDX-License-Identifier: Apache-2.0
"""Norm layers by kind and data set, chains of layers that pass the data set on, and stochastic depth.

P points, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ditr_cache.errors import ConfigError
from ditr_cache.models.norm import ConditionalNorm, PointBatchNorm
from ditr_cache.models.ptv3.context import Context

__all__ = ["Chain", "DropPath", "batch_norm", "layer_norm", "project", "residual", "run"]


def run(layers: Iterable[nn.Module], x_PC: Tensor, condition: str | None) -> Tensor:
    """Apply layers one after the other; those that have a choice of data sets learn which one it is."""
    for layer in layers:
        x_PC = layer(x_PC, condition) if isinstance(layer, ConditionalNorm) else layer(x_PC)
    return x_PC


class Chain(nn.Module):
    """Layers one after the other, under their numbers or their names."""

    def __init__(self, *layers: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        for name, layer in (*((str(i), layer) for i, layer in enumerate(layers)), *named.items()):
            self.add_module(name, layer)

    def forward(self, x_PC: Tensor, condition: str | None) -> Tensor:
        """Apply all layers."""
        return run(self.children(), x_PC, condition)


def batch_norm(channels: int, conditions: tuple[str, ...]) -> nn.Module:
    """Batch statistics over points; one layer a data set if any are named."""
    if conditions:
        return ConditionalNorm(lambda: PointBatchNorm(channels), conditions)
    return PointBatchNorm(channels)


def layer_norm(channels: int, conditions: tuple[str, ...]) -> nn.Module:
    """Statistics over channels; one layer a data set if any are named."""
    if conditions:
        return ConditionalNorm(lambda: nn.LayerNorm(channels), conditions)
    return nn.LayerNorm(channels)


def project(channels_in: int, channels_out: int, conditions: tuple[str, ...]) -> Chain:
    """Linear, batch norm, GELU."""
    return Chain(nn.Linear(channels_in, channels_out), batch_norm(channels_out, conditions), nn.GELU())


class DropPath(nn.Module):
    """Stochastic depth: a branch is dropped at single points and scaled up at the others, in training only.

    Args:
        probability: That a point loses the branch.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x_PC: Tensor, context: Context) -> Tensor | None:
        """Draw the factors of one branch.

        Args:
            x_PC: What the branch is added to.
            context: Source of randomness.

        Returns:
            `[P, 1]` of 0 or 1 / (1 - probability); None for ones, where nothing is dropped.

        Raises:
            ConfigError: In training, if there is no generator.
        """
        if not self.training or self.probability == 0:
            return None
        if context.generator is None:
            raise ConfigError(
                "drop path needs a generator in training: nothing is drawn from global state",
                hint="Pass generator=torch.Generator().manual_seed(...) to the model, or set model.drop_path=0.",
            )
        keep = 1 - self.probability
        return x_PC.new_empty(len(x_PC), 1).bernoulli_(keep, generator=context.generator).div_(keep)

    def extra_repr(self) -> str:
        """The probability."""
        return f"probability={self.probability:.3g}"


def residual(x_PC: Tensor, branch_PC: Tensor, factor_P1: Tensor | None) -> Tensor:
    """`x + factor * branch`."""
    return x_PC + branch_PC if factor_P1 is None else torch.addcmul(x_PC, branch_PC, factor_P1)
