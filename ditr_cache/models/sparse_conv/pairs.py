# SPDX-License-Identifier: Apache-2.0
"""Which voxels lie at which kernel offset from each other: by sorted keys and binary search, on any device.

U voxels, K = k^3 kernel offsets, P pairs. Offsets count in raster order (x slowest), as the weights do; offset K // 2
is the centre, and offset K - 1 - o is the opposite of o. So pairs are found for the offsets beyond the centre only:
read the other way round, they are those of the opposite one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ditr_cache.errors import ConfigError

__all__ = ["Pairs", "find_pairs", "padded_keys"]

_KEY_BITS = 63


@dataclass(frozen=True, eq=False)
class Pairs:
    """Neighbours among U voxels.

    A list of (output, input) an offset is what any sparse convolution needs; that one list serves two offsets, and none
    the centre, is what submanifold ones save.
    """

    kernel_size: int
    """k."""
    voxels: int
    """U."""
    here_P: Tensor
    """`[P]` int64, grouped by offset; within one ascending by key, and without repetition."""
    there_P: Tensor
    """`[P]` int64: the voxel at that offset from `here`."""
    counts: tuple[int, ...]
    """Pairs of each offset K // 2 + 1, ..., K - 1; on the host."""

    @property
    def offsets(self) -> int:
        """K."""
        return self.kernel_size**3

    @property
    def fill(self) -> float:
        """Share of the U x K neighbourhoods that holds a voxel, centres included."""
        return (self.voxels + 2 * sum(self.counts)) / max(1, self.voxels * self.offsets)

    def by_offset(self) -> list[tuple[int, Tensor, Tensor]]:
        """(offset, here, there) of every offset beyond the centre that has a pair."""
        first, counts = self.offsets // 2 + 1, list(self.counts)
        parts = zip(torch.split(self.here_P, counts), torch.split(self.there_P, counts), strict=True)
        return [(first + o, here, there) for o, (here, there) in enumerate(parts) if len(here)]

    @cached_property
    def table_UK(self) -> Tensor:
        """`[U, K]` int32: the voxel at each offset, U where there is none. Made when first asked for."""
        table_UK = self.here_P.new_full((self.voxels, self.offsets), self.voxels, dtype=torch.int32)
        table_UK[:, self.offsets // 2] = torch.arange(self.voxels, device=table_UK.device)
        counts = torch.tensor(self.counts, dtype=torch.int64, device=table_UK.device)
        offset_P = torch.arange(self.offsets // 2 + 1, self.offsets, device=table_UK.device)
        offset_P = offset_P.repeat_interleave(counts, output_size=len(self.here_P))
        table_UK[self.here_P, offset_P] = self.there_P.int()
        table_UK[self.there_P, self.offsets - 1 - offset_P] = self.here_P.int()
        return table_UK


def padded_keys(grid_coord_N3: Tensor, batch_N: Tensor, kernel_size: int) -> tuple[Tensor, tuple[int, int]]:
    """Number the voxels of all clouds so that a kernel offset is a constant difference.

    Around every cloud lies a margin of the kernel's radius: no step wraps into another row, or another cloud.

    Args:
        grid_coord_N3: `[N, 3]` integer voxel coordinates of any sign.
        batch_N: `[N]` int64, the cloud of each point.
        kernel_size: k.

    Returns:
        Keys `[N]` int64 from 0, and the difference that a step along x and along y makes (along z: 1).

    Raises:
        ConfigError: If 63 bits do not number the voxels.
    """
    if not len(grid_coord_N3):
        return grid_coord_N3.new_zeros(0, dtype=torch.int64), (1, 1)
    wide_N4 = torch.cat((batch_N[:, None].long(), grid_coord_N3.long()), 1)
    low_4 = wide_N4.amin(0)
    clouds, *extent = (wide_N4.amax(0) - low_4 + 1).tolist()
    nx, ny, nz = (n + kernel_size - 1 for n in extent)
    if clouds * nx * ny * nz >= 1 << _KEY_BITS:
        raise ConfigError(
            f"{clouds} clouds spanning {extent[0]} x {extent[1]} x {extent[2]} voxels have no {_KEY_BITS}-bit keys",
            hint="look for stray points far from the scene, or take a larger voxel size",
        )
    b_N, x_N, y_N, z_N = (wide_N4 - low_4).unbind(1)
    return ((b_N * nx + x_N) * ny + y_N) * nz + z_N, (ny * nz, nz)


def find_pairs(key_U: Tensor, name_U: Tensor, steps: tuple[int, int], kernel_size: int) -> Pairs:
    """Find all neighbours.

    Args:
        key_U: `[U]` distinct padded keys, ascending.
        name_U: `[U]` int64, what the voxel of each key is called.
        steps: Difference of keys along x and along y.
        kernel_size: k.

    Returns:
        Pairs of names.
    """
    reach, last = kernel_size // 2, max(0, len(key_U) - 1)
    hits, places = [], []
    for dx in range(reach + 1):
        for dy in range(-reach if dx else 0, reach + 1):
            # one search a column of the kernel: from its lowest voxel on, hits follow each other among the keys
            low = 1 if dx == dy == 0 else -reach
            target_U = key_U + (dx * steps[0] + dy * steps[1] + low)
            place_U = torch.searchsorted(key_U, target_U)
            for _ in range(low, reach + 1):
                found_U = key_U.index_select(0, place_U.clamp(max=last)) == target_U
                hits.append(found_U)
                places.append(place_U.int())
                place_U = place_U + found_U
                target_U = target_U + 1
    if not hits:
        none = name_U.new_zeros(0)
        return Pairs(kernel_size, len(key_U), none, none, ())
    hit_OU = torch.stack(hits)
    offset_P, here_P = hit_OU.nonzero(as_tuple=True)
    there_P = torch.stack(places)[offset_P, here_P].long()
    counts = tuple(hit_OU.sum(1).tolist())
    return Pairs(kernel_size, len(key_U), name_U.index_select(0, here_P), name_U.index_select(0, there_P), counts)
