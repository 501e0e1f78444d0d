# SPDX-License-Identifier: Apache-2.0
"""A batch at all its resolutions, by voxel grid alone: no curves, no order of points.

N points of a level, M voxels of the next coarser one, B clouds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ditr_cache.models.ptv3.level import Clusters
from ditr_cache.models.sparse_conv import Backend, NeighbourTable, StrideTable, neighbours, strides
from ditr_cache.types import PointBatch

__all__ = ["GridLevel", "GridPyramid", "build_grid_pyramid"]


@dataclass(frozen=True, slots=True, eq=False)
class GridLevel:
    """N points at one resolution; only at the finest may two share a voxel."""

    grid_coord: Tensor
    """`[N, 3]` voxel coordinates of this resolution."""
    batch: Tensor
    """`[N]` int64, the cloud of each point."""
    backend: Backend
    """Of the convolutions."""
    _tables: dict[int, NeighbourTable] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.batch)

    def table(self, kernel_size: int) -> NeighbourTable:
        """Who neighbours whom; built once, and used by every convolution of that size on this level."""
        if kernel_size not in self._tables:
            self._tables[kernel_size] = neighbours(self.grid_coord, self.batch, kernel_size, self.backend)
        return self._tables[kernel_size]


@dataclass(frozen=True, slots=True, eq=False)
class GridPyramid:
    """A batch at all its resolutions, each half the one before."""

    levels: tuple[GridLevel, ...]
    """Finest first."""
    strides: tuple[StrideTable, ...]
    """What leads from each level to the next; one less than levels."""

    def clusters(self) -> list[Clusters]:
        """The same for what is pooled by maximum."""
        return [Clusters(table.order_N, table.pointers_M, table.coarse_N) for table in self.strides]


def build_grid_pyramid(batch: PointBatch, halvings: int, backend: Backend) -> GridPyramid:
    """Halve the resolution of a batch again and again.

    Args:
        batch: Its coordinates and offsets.
        halvings: How often.
        backend: Of the convolutions.

    Raises:
        ConfigError: As `neighbours`.
    """
    counts_B = torch.diff(batch.offset, prepend=batch.offset.new_zeros(1))
    batch_N = torch.repeat_interleave(counts_B, output_size=len(batch.grid_coord))
    levels, tables = [GridLevel(batch.grid_coord, batch_N, backend)], []
    for _ in range(halvings):
        table = strides(levels[-1].grid_coord, levels[-1].batch, 2, backend)
        tables.append(table)
        levels.append(GridLevel(table.grid_coord, table.batch, backend))
    return GridPyramid(tuple(levels), tuple(tables))
