# SPDX-License-Identifier: Apache-2.0
"""Points that share a voxel, as those of two clouds that Mix3D lays over each other.

N points, U voxels, S points that share their voxel, C channels.

The rule, here and with every back end: **a neighbouring voxel contributes the mean of its points' features; the centre
contributes the point's own feature.** On distinct voxels that is the plain convolution, it keeps the scale of the
features however many points fall into a voxel, and no point's result depends on the order of the points. (spconv alone
lets one of them stand for the voxel; which one depends on that order.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.functional import linear

from ditr_cache.models.segment import segment_reduce

__all__ = ["Distinct", "Occupancy", "Shared"]

Convolution = Callable[[Tensor, Tensor], Tensor]


class Occupancy(Protocol):
    """How points lie in voxels."""

    def convolve(self, convolution: Convolution, x_NC: Tensor, weight: Tensor) -> Tensor:
        """Apply a convolution over voxels to points.

        Args:
            convolution: Takes `[U, Cin]` and the weight to `[U, Cout]`.
            x_NC: `[N, Cin]`.
            weight: `[Cout, k, k, k, Cin]`.

        Returns:
            `[N, Cout]`.
        """
        ...


class Distinct:
    """Every point has its voxel to itself: N = U, in the order of the points."""

    def convolve(self, convolution: Convolution, x_NC: Tensor, weight: Tensor) -> Tensor:
        """Points are voxels."""
        return convolution(x_NC, weight)


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """Some voxels hold several points."""

    order_N: Tensor
    """`[N]` int64, points sorted by voxel."""
    pointers_U: Tensor
    """`[U + 1]` int64, where the points of each voxel start in `order_N`."""
    voxel_N: Tensor
    """`[N]` int64, the voxel of each point."""
    point_S: Tensor
    """`[S]` int64, the points that are not alone."""

    def convolve(self, convolution: Convolution, x_NC: Tensor, weight: Tensor) -> Tensor:
        """Convolve the means; then put each point's own feature in the place of its voxel's mean at the centre."""
        mean_UC = segment_reduce(x_NC.index_select(0, self.order_N), self.pointers_U, "mean")
        y_NC = convolution(mean_UC, weight).index_select(0, self.voxel_N)
        voxel_S = self.voxel_N.index_select(0, self.point_S)
        deviation_SC = x_NC.index_select(0, self.point_S) - mean_UC.index_select(0, voxel_S)
        centre = weight.shape[1] // 2
        own_SC = linear(deviation_SC, weight[:, centre, centre, centre])
        return y_NC.index_add(0, self.point_S, own_SC)
