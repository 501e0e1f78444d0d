# SPDX-License-Identifier: Apache-2.0
"""Who neighbours whom on one level of resolution: worked out once, used by all its convolutions of one kernel size.

N points, U voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ditr_cache.models.sparse_conv.duplicates import Distinct, Occupancy, Shared
from ditr_cache.models.sparse_conv.pairs import find_pairs, padded_keys
from ditr_cache.models.sparse_conv.spconv_backend import SpconvConvolution, spconv_installed
from ditr_cache.models.sparse_conv.torch_backend import PairConvolution

__all__ = ["Backend", "NeighbourTable", "neighbours"]

Backend = Literal["auto", "torch", "spconv"]


@dataclass(frozen=True, slots=True, eq=False)
class NeighbourTable:
    """The neighbourhoods of N points."""

    points: int
    """N."""
    kernel_size: int
    """k."""
    backend: Literal["torch", "spconv"]
    """What convolves with this table."""
    occupancy: Occupancy
    """How the points lie in voxels."""
    convolution: Callable[[Tensor, Tensor], Tensor]
    """Convolves over voxels."""

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """y(n) = sum over offsets o of W_o x(n + o); see `duplicates` for voxels with several points.

        Args:
            x: `[N, Cin]`.
            weight: `[Cout, k, k, k, Cin]`, of the same dtype; the centre is k // 2.

        Returns:
            `[N, Cout]`, in the order of the points.
        """
        return self.occupancy.convolve(self.convolution, x, weight)


def neighbours(grid_coord: Tensor, batch: Tensor, kernel_size: int, backend: Backend = "auto") -> NeighbourTable:
    """Find the neighbours of all points.

    Args:
        grid_coord: `[N, 3]` integer voxel coordinates. Points may share a voxel.
        batch: `[N]` int64, the cloud of each point; clouds do not see each other.
        kernel_size: k, odd.
        backend: `auto` is spconv on CUDA where it is installed, else torch.

    Returns:
        The table, on the device of the coordinates.

    Raises:
        ConfigError: If spconv is asked for and not installed, or the clouds span more voxels than 63 bits can number.
        ValueError: If the kernel size is even.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"a submanifold convolution needs an odd kernel size, not {kernel_size}")
    key_N, steps = padded_keys(grid_coord, batch, kernel_size)
    sorted_N, order_N = key_N.sort(stable=True)
    first_N = torch.ones_like(sorted_N, dtype=torch.bool)
    first_N[1:] = sorted_N[1:] != sorted_N[:-1]
    start_U = first_N.nonzero()[:, 0]
    occupancy: Occupancy
    if len(start_U) == len(key_N):
        occupancy, key_U, name_U, point_U = Distinct(), sorted_N, order_N, None
    else:
        occupancy = _shared(order_N, first_N, start_U)
        key_U, name_U = sorted_N.index_select(0, start_U), torch.arange(len(start_U), device=start_U.device)
        point_U = order_N.index_select(0, start_U)

    if backend == "spconv" or (backend == "auto" and grid_coord.is_cuda and spconv_installed()):
        grid_U3 = grid_coord if point_U is None else grid_coord.index_select(0, point_U)
        batch_U = batch if point_U is None else batch.index_select(0, point_U)
        convolution = SpconvConvolution(grid_U3, batch_U, kernel_size)
        return NeighbourTable(len(key_N), kernel_size, "spconv", occupancy, convolution)
    pairs = find_pairs(key_U, name_U, steps, kernel_size)
    return NeighbourTable(len(key_N), kernel_size, "torch", occupancy, PairConvolution(pairs))


def _shared(order_N: Tensor, first_N: Tensor, start_U: Tensor) -> Shared:
    pointers_U = torch.cat((start_U, start_U.new_tensor([len(order_N)])))
    sorted_voxel_N = first_N.cumsum(0) - 1
    voxel_N = torch.empty_like(order_N).scatter_(0, order_N, sorted_voxel_N)
    alone_N = pointers_U.diff().index_select(0, voxel_N) == 1
    return Shared(order_N, pointers_U, voxel_N, (~alone_N).nonzero()[:, 0])
