# SPDX-License-Identifier: Apache-2.0
"""The layers of MinkUNet: every convolution is followed by batch norm, and none has a bias.

N points, M voxels of the next coarser level, C channels. No module is called `block`: that is the name by which
optimisers find the parameters of transformers, which learn at a rate of their own.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu

from ditr_cache.config.model import ModelConfig
from ditr_cache.models.minkunet.levels import GridLevel
from ditr_cache.models.ptv3.layers import Chain, batch_norm
from ditr_cache.models.sparse_conv import StridedConv3d, StrideTable, SubmanifoldConv3d, TransposedConv3d

__all__ = ["Conv", "Down", "Residual", "Residuals", "Up"]

_KERNEL = 3


class Conv(nn.Module):
    """Submanifold convolution and batch norm.

    Args:
        channels_in: Of the input.
        channels_out: Of the output.
        kernel_size: k.
        config: Norm layers and back end.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int, config: ModelConfig) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.conv = SubmanifoldConv3d(channels_in, channels_out, kernel_size, bias=False, backend=config.sparse_conv)
        self.norm = Chain(batch_norm(channels_out, config.norm_conditions))

    def forward(self, x_NC: Tensor, level: GridLevel, condition: str | None) -> Tensor:
        """`[N, C_in]` to `[N, C_out]`."""
        out_NC: Tensor = self.norm(self.conv(x_NC, level.table(self.kernel_size)), condition)
        return out_NC


class Residual(nn.Module):
    """Two convolutions and a shortcut, which is linear where the width changes (basic block of ResNet).

    Args:
        channels_in: Of the input.
        channels_out: Of the output.
        config: Norm layers and back end.
    """

    def __init__(self, channels_in: int, channels_out: int, config: ModelConfig) -> None:
        super().__init__()
        self.first = Conv(channels_in, channels_out, _KERNEL, config)
        self.second = Conv(channels_out, channels_out, _KERNEL, config)
        linear = nn.Linear(channels_in, channels_out, bias=False)
        widen = [linear, batch_norm(channels_out, config.norm_conditions)] if channels_in != channels_out else []
        self.shortcut = Chain(*widen)

    def forward(self, x_NC: Tensor, level: GridLevel, condition: str | None) -> Tensor:
        """`[N, C_in]` to `[N, C_out]`."""
        inner_NC = relu(self.first(x_NC, level, condition))
        return relu(self.second(inner_NC, level, condition) + self.shortcut(x_NC, condition))


class Residuals(nn.Module):
    """Residual blocks one after the other; the first one changes the width.

    Args:
        channels_in: Of the input.
        channels_out: Of the output.
        depth: How many.
        config: Norm layers and back end.
    """

    def __init__(self, channels_in: int, channels_out: int, depth: int, config: ModelConfig) -> None:
        super().__init__()
        widths = [channels_in, *[channels_out] * depth]
        self.residual = nn.ModuleList(Residual(*pair, config) for pair in pairwise(widths))

    def forward(self, x_NC: Tensor, level: GridLevel, condition: str | None) -> Tensor:
        """`[N, C_in]` to `[N, C_out]`."""
        for residual in self.residual:
            x_NC = residual(x_NC, level, condition)
        return x_NC


class Down(nn.Module):
    """Strided convolution, batch norm, ReLU.

    Args:
        channels: Of both levels.
        config: Norm layers and back end.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.conv = StridedConv3d(channels, channels, backend=config.sparse_conv)
        self.norm = Chain(batch_norm(channels, config.norm_conditions))

    def forward(self, x_NC: Tensor, table: StrideTable, condition: str | None) -> Tensor:
        """`[N, C]` to `[M, C]`."""
        return relu(self.norm(self.conv(x_NC, table), condition))


class Up(nn.Module):
    """Transposed convolution, batch norm, ReLU.

    Args:
        channels_in: Of the coarse level.
        channels_out: Of the fine level.
        config: Norm layers and back end.
    """

    def __init__(self, channels_in: int, channels_out: int, config: ModelConfig) -> None:
        super().__init__()
        self.conv = TransposedConv3d(channels_in, channels_out, backend=config.sparse_conv)
        self.norm = Chain(batch_norm(channels_out, config.norm_conditions))

    def forward(self, x_MC: Tensor, table: StrideTable, condition: str | None) -> Tensor:
        """`[M, C_in]` to `[N, C_out]`."""
        return relu(self.norm(self.conv(x_MC, table), condition))
