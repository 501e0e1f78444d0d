# SPDX-License-Identifier: Apache-2.0
"""Which points share a voxel, by keys that cannot collide.

N points. The official grid sampling hashes voxels (FNV-1a, 64 bits); a key here is the voxel's place in the cloud's
bounding box, so two voxels never share one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import SampleError

__all__ = ["voxel_keys"]

Int64 = NDArray[np.int64]

_KEY_BITS = 63


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
