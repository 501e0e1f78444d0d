# SPDX-License-Identifier: Apache-2.0
"""One resolution of a batch: where its points lie along the curves, who neighbours whom, and how it is pooled.

Nothing here knows of features: the pyramid of a batch stands before the first layer runs.

N points of a level, M of the next coarser one, B clouds, O curves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ditr_cache.config.model import ModelConfig
from ditr_cache.geometry.curves import MAX_DEPTH, encode, serialisation_depth
from ditr_cache.models.ptv3.patches import Patches, cut, reorder
from ditr_cache.models.sparse_conv import NeighbourTable, neighbours
from ditr_cache.types import PointBatch

__all__ = ["Clusters", "Level", "Pyramid", "build_pyramid"]


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Which points of a level become one point of the next."""

    order_N: Tensor
    """`[N]` int64, points sorted by cluster."""
    pointers_M: Tensor
    """`[M + 1]` int64, where each cluster starts in `order_N`."""
    cluster_N: Tensor
    """`[N]` int64, the point of the next level that each point becomes part of."""

    def __len__(self) -> int:
        return len(self.pointers_M) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """N points of B clouds at one resolution."""

    grid_coord: Tensor
    """`[N, 3]` voxel coordinates of this resolution."""
    batch: Tensor
    """`[N]` int64, the cloud of each point."""
    ends: tuple[int, ...]
    """Where each cloud ends, on the host."""
    codes: Tensor
    """`[O, N]` int64 along each curve, in the order that the permutations have led to."""
    depth: int
    """Bits per axis left in the codes."""
    config: ModelConfig
    _tables: dict[int, NeighbourTable] = field(default_factory=dict)
    _orders: dict[int, Tensor] = field(default_factory=dict)
    _cuts: dict[int, Patches] = field(default_factory=dict)
    _patches: dict[tuple[int, int], Patches] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.batch)

    def table(self, kernel_size: int) -> NeighbourTable:
        """Who neighbours whom; built once, and used by every convolution of that size on this level."""
        if kernel_size not in self._tables:
            self._tables[kernel_size] = neighbours(self.grid_coord, self.batch, kernel_size, self.config.sparse_conv)
        return self._tables[kernel_size]

    def order(self, curve: int) -> Tensor:
        """`[N]` points along a curve."""
        if curve not in self._orders:
            self._orders[curve] = torch.argsort(self.codes[curve], stable=True)
        return self._orders[curve]

    def patches(self, curve: int, patch_size: int) -> Patches:
        """Points cut into patches along a curve.

        Upstream's cache ignores the patch size and breaks where encoder and decoder differ; this one is keyed by it.

        Args:
            curve: Index into the permuted curves, modulo their number.
            patch_size: K. With relative positions the official code takes the smallest cloud of the batch if that is
                smaller; `fixed` never looks at other clouds.
        """
        curve %= len(self.codes)
        if self.config.enable_rpe and self.config.compatibility == "official":
            patch_size = min(patch_size, _smallest(self.ends))
        if patch_size not in self._cuts:
            self._cuts[patch_size] = cut(self.ends, patch_size, self.batch.device)
        if (curve, patch_size) not in self._patches:
            self._patches[curve, patch_size] = reorder(self._cuts[patch_size], self.order(curve))
        return self._patches[curve, patch_size]

    def pool(self, stride: int, permutation_O: Tensor) -> tuple[Clusters, Level]:
        """Merge the points of `stride`^3 voxels. Pooled points lie in the order of the first curve.

        Args:
            stride: Power of two. Once the bits of the codes are used up, nothing is merged any more.
            permutation_O: `[O]` how the next level permutes this level's curves.
        """
        shift = stride.bit_length() - 1
        shift = shift if shift <= self.depth else 0
        order_N = self.order(0)
        code_N = self.codes[0].index_select(0, order_N) >> 3 * shift
        _, rank_N, count_M = torch.unique_consecutive(code_N, return_inverse=True, return_counts=True)
        pointers_M = torch.nn.functional.pad(count_M.cumsum(0), (1, 0))
        cluster_N = torch.empty_like(rank_N).scatter_(0, order_N, rank_N)
        head_M = order_N.index_select(0, pointers_M[:-1])
        batch_M = self.batch.index_select(0, head_M)
        coarse = Level(
            grid_coord=self.grid_coord.index_select(0, head_M) >> shift,
            batch=batch_M,
            ends=tuple(torch.bincount(batch_M, minlength=len(self.ends)).cumsum(0).tolist()),
            codes=(self.codes.index_select(1, head_M) >> 3 * shift).index_select(0, permutation_O),
            depth=self.depth - shift,
            config=self.config,
        )
        return Clusters(order_N, pointers_M, cluster_N), coarse


@dataclass(frozen=True, slots=True, eq=False)
class Pyramid:
    """A batch at all its resolutions."""

    levels: tuple[Level, ...]
    """Finest first."""
    clusters: tuple[Clusters, ...]
    """What leads from each level to the next; one less than levels."""


def build_pyramid(batch: PointBatch, config: ModelConfig, permutations: Tensor) -> Pyramid:
    """Serialise a batch and pool it down to the coarsest level.

    Args:
        batch: Its coordinates and offsets.
        config: Curves, strides and compatibility. The official depth of a code is that of the largest coordinate of
            the batch, so that the Hilbert order of a cloud depends on its batch mates; `fixed` takes the constant 16.
        permutations: `[1 + poolings, O]` of the curves: row 0 after encoding, row l at pooling l.

    Raises:
        ConfigError: If coordinates or clouds do not fit the codes.
    """
    ends = batch.offset.tolist()
    counts_B = torch.diff(batch.offset, prepend=batch.offset.new_zeros(1))
    batch_N = torch.repeat_interleave(counts_B, output_size=ends[-1])
    depth = serialisation_depth(batch.grid_coord) if config.compatibility == "official" else MAX_DEPTH
    codes_ON = torch.stack([encode(batch.grid_coord, batch_N, order, depth) for order in config.order])
    permutations = permutations.to(codes_ON.device)
    codes_ON = codes_ON.index_select(0, permutations[0])
    levels = [Level(batch.grid_coord, batch_N, tuple(ends), codes_ON, depth, config)]
    clusters = []
    for stride, permutation_O in zip(config.stride, permutations[1:], strict=True):
        merged, coarse = levels[-1].pool(stride, permutation_O)
        clusters.append(merged)
        levels.append(coarse)
    return Pyramid(tuple(levels), tuple(clusters))


def _smallest(ends: tuple[int, ...]) -> int:
    return min(end - start for start, end in zip((0, *ends[:-1]), ends, strict=True))
