# SPDX-License-Identifier: Apache-2.0
"""Points that share a voxel, as those of two clouds that Mix3D lays over each other.

N points, U voxels, S points that share their voxel, C channels.

The rule, here and with every back end: **a neighbouring voxel contributes the mean of its points' features; the centre
contributes the point's own feature.** A convolution from one level to the next takes the mean, and one back gives the
points of a voxel the same. On distinct voxels that is the plain convolution, it keeps the scale of the features however
many points fall into a voxel, and no point's result depends on the order of the points. (spconv alone lets one of them
stand for the voxel; which one depends on that order.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from ditr_cache.models.segment import segment_reduce

__all__ = ["Distinct", "Occupancy", "Shared", "Voxels", "find_voxels"]

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

    def mean(self, x_NC: Tensor) -> Tensor:
        """One feature a voxel, `[U, C]`: the mean of its points."""
        ...

    def spread(self, y_UC: Tensor) -> Tensor:
        """`[N, C]`: every point gets its voxel's."""
        ...


class Distinct:
    """Every point has its voxel to itself: N = U, in the order of the points."""

    def convolve(self, convolution: Convolution, x_NC: Tensor, weight: Tensor) -> Tensor:
        """Points are voxels."""
        return convolution(x_NC, weight)

    def mean(self, x_NC: Tensor) -> Tensor:
        """Points are voxels."""
        return x_NC

    def spread(self, y_UC: Tensor) -> Tensor:
        """Points are voxels."""
        return y_UC


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
        mean_UC = self.mean(x_NC)
        y_NC = self.spread(convolution(mean_UC, weight))
        voxel_S = self.voxel_N.index_select(0, self.point_S)
        deviation_SC = x_NC.index_select(0, self.point_S) - mean_UC.index_select(0, voxel_S)
        centre = weight.shape[1] // 2
        own_SC = linear(deviation_SC, weight[:, centre, centre, centre])
        return y_NC.index_add(0, self.point_S, own_SC)

    def mean(self, x_NC: Tensor) -> Tensor:
        """Summed in the order of `order_N`, so that a repeated run gives the same digits."""
        return segment_reduce(x_NC.index_select(0, self.order_N), self.pointers_U, "mean")

    def spread(self, y_UC: Tensor) -> Tensor:
        """One gather."""
        return y_UC.index_select(0, self.voxel_N)


@dataclass(frozen=True, slots=True, eq=False)
class Voxels:
    """The voxels that N points lie in. They have names, 0 to U - 1, which need not ascend with their keys."""

    occupancy: Occupancy
    key_U: Tensor
    """`[U]` int64, distinct, ascending."""
    name_U: Tensor
    """`[U]` int64, what the voxel of each key is called."""
    point_U: Tensor | None
    """`[U]` int64, a point of each voxel, by name; None where voxel n is point n."""

    def of(self, x_N: Tensor) -> Tensor:
        """`[U, ...]` of `[N, ...]`: what all points of a voxel have in common, by name."""
        return x_N if self.point_U is None else x_N.index_select(0, self.point_U)


def find_voxels(key_N: Tensor) -> Voxels:
    """Find out which points share a voxel.

    Args:
        key_N: `[N]` int64, equal for points of one voxel.

    Returns:
        Voxels named as the points where all points have their own, and in the order of the keys otherwise.
    """
    sorted_N, order_N = key_N.sort(stable=True)
    first_N = torch.ones_like(sorted_N, dtype=torch.bool)
    first_N[1:] = sorted_N[1:] != sorted_N[:-1]
    start_U = first_N.nonzero()[:, 0]
    if len(start_U) == len(key_N):
        return Voxels(Distinct(), sorted_N, order_N, None)
    pointers_U = torch.cat((start_U, start_U.new_tensor([len(order_N)])))
    voxel_N = torch.empty_like(order_N).scatter_(0, order_N, first_N.cumsum(0) - 1)
    alone_N = pointers_U.diff().index_select(0, voxel_N) == 1
    return Voxels(
        Shared(order_N, pointers_U, voxel_N, (~alone_N).nonzero()[:, 0]),
        sorted_N.index_select(0, start_U),
        torch.arange(len(start_U), device=start_U.device),
        order_N.index_select(0, start_U),
    )
