# SPDX-License-Identifier: Apache-2.0
"""Which points share a voxel, by keys that cannot collide.

N points, U voxels that hold a point. The official grid sampling hashes voxels (FNV-1a, 64 bits); a key here is the
voxel's place in the cloud's bounding box, so two voxels never share one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import SampleError

__all__ = ["Voxels", "unique_voxels", "voxel_keys"]

Int64 = NDArray[np.int64]

_KEY_BITS = 63


@dataclass(frozen=True, slots=True, eq=False)
class Voxels:
    """The points of a cloud, sorted into voxels."""

    key: Int64
    """`[U]` keys of the voxels, ascending."""
    order: NDArray[np.intp]
    """`[N]` points sorted by voxel; those of one voxel stay in the order of the cloud."""
    inverse: NDArray[np.intp]
    """`[N]` the voxel of each point, 0..U-1."""
    count: NDArray[np.intp]
    """`[U]` points in each voxel."""

    @property
    def start(self) -> NDArray[np.intp]:
        """`[U]` where the points of each voxel begin in `order`."""
        return np.cumsum(self.count) - self.count


def voxel_keys(grid_coord: NDArray[np.integer]) -> Int64:
    """Number voxels so that two points get one key if and only if they share a voxel.

    Keys are the raster index in the bounding box, x slowest: they rise with (x, y, z).

    Args:
        grid_coord: `[N, 3]` integer voxel coordinates, of any sign.

    Returns:
        `[N]` int64, from 0.

    Raises:
        SampleError: If the bounding box has 2^63 voxels or more.
        TypeError: If the coordinates are not integers: rounding is the caller's decision.
    """
    grid_N3 = np.asarray(grid_coord)
    if grid_N3.dtype.kind not in "iu":
        raise TypeError(f"voxel coordinates must be integers, not {grid_N3.dtype}")
    if not len(grid_N3):
        return np.zeros(0, np.int64)
    # Python integers: neither the extent nor its product may wrap while it is being checked
    low = [int(v) for v in grid_N3.min(axis=0)]
    nx, ny, nz = (int(v) - start + 1 for v, start in zip(grid_N3.max(axis=0), low, strict=True))
    if nx * ny * nz >= 1 << _KEY_BITS:
        raise SampleError(
            f"points span {nx} x {ny} x {nz} voxels, which 63 bits cannot number",
            hint="look for stray points far from the scene, or take a larger voxel size",
        )
    x_N, y_N, z_N = (_from_zero(grid_N3[:, axis], low[axis]) for axis in range(3))
    return (x_N * ny + y_N) * nz + z_N


def _from_zero(axis_N: NDArray[np.integer], low: int) -> Int64:
    """`axis - low` in int64, also where uint64 or the ends of int64 would wrap: the difference itself fits."""
    return (axis_N.astype(np.uint64) - np.uint64(low & (1 << 64) - 1)).astype(np.int64)


def unique_voxels(grid_coord: NDArray[np.integer]) -> Voxels:
    """Sort points into voxels.

    Args:
        grid_coord: `[N, 3]` integer voxel coordinates, of any sign.

    Returns:
        Voxels by ascending key, with the points of each.

    Raises:
        SampleError: If the bounding box has 2^63 voxels or more.
        TypeError: If the coordinates are not integers.
    """
    key_N = voxel_keys(grid_coord)
    order_N = np.argsort(key_N, kind="stable")
    sorted_N = key_N[order_N]
    first_N = np.ones(len(key_N), bool)
    np.not_equal(sorted_N[1:], sorted_N[:-1], out=first_N[1:])
    start_U = np.flatnonzero(first_N)
    inverse_N = np.empty(len(key_N), np.intp)
    inverse_N[order_N] = np.cumsum(first_N) - 1
    return Voxels(sorted_N[start_U], order_N, inverse_N, np.diff(start_U, append=len(key_N)))
