# SPDX-License-Identifier: Apache-2.0
"""Who neighbours whom on one level of resolution: worked out once, used by all its convolutions of one kernel size.

N points, U voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ditr_cache.models.sparse_conv.duplicates import Occupancy, find_voxels
from ditr_cache.models.sparse_conv.pairs import find_pairs, padded_keys
from ditr_cache.models.sparse_conv.spconv_backend import SpconvConvolution, spconv_installed
from ditr_cache.models.sparse_conv.torch_backend import PairConvolution

__all__ = ["Backend", "NeighbourTable", "neighbours", "use_spconv"]

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
    voxels = find_voxels(key_N)
    if use_spconv(backend, grid_coord):
        convolution = SpconvConvolution(voxels.of(grid_coord), voxels.of(batch), kernel_size)
        return NeighbourTable(len(key_N), kernel_size, "spconv", voxels.occupancy, convolution)
    pairs = find_pairs(voxels.key_U, voxels.name_U, steps, kernel_size)
    return NeighbourTable(len(key_N), kernel_size, "torch", voxels.occupancy, PairConvolution(pairs))


def use_spconv(backend: Backend, on: Tensor) -> bool:
    """Whether spconv shall convolve on the device of a tensor."""
    return backend == "spconv" or (backend == "auto" and on.is_cuda and spconv_installed())
