# SPDX-License-Identifier: Apache-2.0
"""The layers between levels: a convolution onto coarser voxels, and a transposed one back onto finer ones.

N points of the fine level, M voxels of the coarse one. The kernel is as wide as the stride. Neither layer has a bias:
batch norm follows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ditr_cache.models.sparse_conv.layer import autocasted
from ditr_cache.models.sparse_conv.neighbours import Backend
from ditr_cache.models.sparse_conv.strides import StrideTable

__all__ = ["StridedConv3d", "TransposedConv3d"]


class _LevelConv3d(nn.Module):
    """Parameter: `weight [out, sx, sy, sz, in]`, as spconv 2 keeps it; the kernel starts at the lowest fine voxel.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        stride: s.
        backend: What tables this layer takes; `auto` takes any.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2, backend: Backend = "auto") -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride, self.backend = in_channels, out_channels, stride, backend
        self.weight = nn.Parameter(torch.empty(out_channels, stride, stride, stride, in_channels))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw weights uniformly within 1 / sqrt(size of an output channel's kernel), as `SubmanifoldConv3d`."""
        bound = 1 / math.sqrt(self.in_channels * self.stride**3)
        nn.init.uniform_(self.weight, -bound, bound, generator)

    def extra_repr(self) -> str:
        """Shapes, for `print(model)`."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"

    def _check(self, table: StrideTable, rows: int, have: int) -> None:
        if table.stride != self.stride or rows != have:
            raise ValueError(
                f"a table of {rows} points and stride {table.stride} does not fit "
                f"{have} points and stride {self.stride}"
            )
        if self.backend not in ("auto", table.backend):
            raise ValueError(f"this layer runs with {self.backend}, the table was built for {table.backend}")


class StridedConv3d(_LevelConv3d):
    """Onto the next coarser level: y(m) = sum over fine voxels u of m of W_o x(u), o where u lies in m."""

    def forward(self, x: Tensor, table: StrideTable) -> Tensor:
        """Convolve.

        Args:
            x: `[N, in]` floating. Autocast applies as to `SubmanifoldConv3d`.
            table: Of the same N points and stride.

        Returns:
            `[M, out]`.

        Raises:
            ValueError: If the table is of other points, another stride or another back end.
        """
        self._check(table, len(table.coarse_N), len(x))
        return table.down(autocasted(x), autocasted(self.weight))


class TransposedConv3d(_LevelConv3d):
    """Back onto the points that the coarse level was made of: y(n) = W_o x(m), o where n lies in m."""

    def forward(self, x: Tensor, table: StrideTable) -> Tensor:
        """Convolve.

        Args:
            x: `[M, in]` floating. Autocast applies as to `SubmanifoldConv3d`.
            table: That leads to these M voxels.

        Returns:
            `[N, out]`.

        Raises:
            ValueError: As `StridedConv3d.forward`.
        """
        self._check(table, len(table.batch), len(x))
        return table.up(autocasted(x), autocasted(self.weight))
