# SPDX-License-Identifier: Apache-2.0
"""From one level of resolution to the next coarser one and back: where the voxels of both lie in each other.

A coarse voxel holds stride^3 fine ones, and the kernel is as wide as the stride: every fine voxel takes part in one
coarse one, at one kernel offset. So down and up are the same pairs, read in both directions:

    down   y(m) = sum over the fine voxels u of m of W_o(u) x(u)
    up     y(u) = W_o(u) x(m(u))

N points of the fine level, U voxels that they lie in, M voxels of the coarse level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from ditr_cache.models.sparse_conv.duplicates import Occupancy, find_voxels
from ditr_cache.models.sparse_conv.neighbours import Backend, use_spconv
from ditr_cache.models.sparse_conv.pairs import padded_keys
from ditr_cache.models.sparse_conv.spconv_strides import SpconvStrides
from ditr_cache.models.sparse_conv.torch_strides import OffsetStrides

__all__ = ["StrideTable", "strides"]


class Strides(Protocol):
    """Convolves from voxels to voxels."""

    def down(self, x_UC: Tensor, weight: Tensor) -> Tensor:
        """`[U, Cin]` with `[Cout, s, s, s, Cin]` to `[M, Cout]`; differentiable in both."""
        ...

    def up(self, x_MC: Tensor, weight: Tensor) -> Tensor:
        """`[M, Cin]` with `[Cout, s, s, s, Cin]` to `[U, Cout]`; differentiable in both."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class StrideTable:
    """How the N points of a level become the M of the next."""

    stride: int
    """s."""
    backend: Literal["torch", "spconv"]
    """What convolves with this table."""
    grid_coord: Tensor
    """`[M, 3]` coarse voxels, cloud by cloud and there in raster order; never twice the same."""
    batch: Tensor
    """`[M]` int64, the cloud of each."""
    order_N: Tensor
    """`[N]` int64, points sorted by coarse voxel."""
    pointers_M: Tensor
    """`[M + 1]` int64, where the points of each coarse voxel start in `order_N`."""
    coarse_N: Tensor
    """`[N]` int64, the coarse voxel of each point."""
    occupancy: Occupancy
    """How the points lie in fine voxels."""
    strides: Strides
    """Convolves over voxels."""

    def down(self, x: Tensor, weight: Tensor) -> Tensor:
        """Strided convolution; a voxel with several points takes part with their mean.

        Args:
            x: `[N, Cin]`.
            weight: `[Cout, s, s, s, Cin]`, of the same dtype.

        Returns:
            `[M, Cout]`.
        """
        return self.strides.down(self.occupancy.mean(x), weight)

    def up(self, x: Tensor, weight: Tensor) -> Tensor:
        """Transposed convolution, onto the points that the coarse voxels were made of.

        Args:
            x: `[M, Cin]`.
            weight: `[Cout, s, s, s, Cin]`, of the same dtype.

        Returns:
            `[N, Cout]`, in the order of the points.
        """
        return self.occupancy.spread(self.strides.up(x, weight))


def strides(grid_coord: Tensor, batch: Tensor, stride: int = 2, backend: Backend = "auto") -> StrideTable:
    """Find the coarse voxels of all points: those of coordinates floor(grid / stride).

    Args:
        grid_coord: `[N, 3]` integer voxel coordinates of any sign. Points may share a voxel.
        batch: `[N]` int64, the cloud of each point.
        stride: s, 2 at least.
        backend: As `neighbours`.

    Returns:
        The table, on the device of the coordinates.

    Raises:
        ConfigError: As `neighbours`.
        ValueError: If the stride is below 2.
    """
    if stride < 2:
        raise ValueError(f"a coarser level needs a stride of 2 at least, not {stride}")
    coarse_N3 = torch.div(grid_coord, stride, rounding_mode="floor")
    key_N, _ = padded_keys(coarse_N3, batch, 1)
    sorted_N, order_N = key_N.sort(stable=True)
    _, rank_N, count_M = torch.unique_consecutive(sorted_N, return_inverse=True, return_counts=True)
    pointers_M = pad(count_M.cumsum(0), (1, 0))
    coarse_N = torch.empty_like(rank_N).scatter_(0, order_N, rank_N)
    head_M = order_N.index_select(0, pointers_M[:-1])
    grid_M3, batch_M = coarse_N3.index_select(0, head_M), batch.index_select(0, head_M)

    x_N, y_N, z_N = (grid_coord - stride * coarse_N3).long().unbind(1)
    offset_N = (x_N * stride + y_N) * stride + z_N
    voxels = find_voxels(coarse_N * stride**3 + offset_N)
    if use_spconv(backend, grid_coord):
        kind: Literal["torch", "spconv"] = "spconv"
        pairs: Strides = SpconvStrides(voxels.of(grid_coord), voxels.of(batch), stride)
    else:
        kind, pairs = "torch", OffsetStrides(voxels.of(coarse_N), voxels.of(offset_N), len(grid_M3), stride)
    return StrideTable(stride, kind, grid_M3, batch_M, order_N, pointers_M, coarse_N, voxels.occupancy, pairs)
