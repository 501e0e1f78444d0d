# SPDX-License-Identifier: Apache-2.0
"""Digests of what a store holds, computed alike by whoever writes and whoever verifies."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.types import PointCloud

__all__ = ["coordinate_digests", "view_digest"]


def coordinate_digests(points: PointCloud) -> tuple[str, str]:
    """sha256 of `coord` then `origin` as stored, and the same with the rows of `coord` sorted by x, y, z."""
    coord = np.ascontiguousarray(points.coord, "<f4")
    origin = np.ascontiguousarray(points.origin, "<f8").tobytes()
    in_order = coord[_order(coord)]
    return hashlib.sha256(coord.tobytes() + origin).hexdigest(), hashlib.sha256(in_order.tobytes() + origin).hexdigest()


def view_digest(
    rows_RD: NDArray[Any], row_patch_R: NDArray[np.uint16], hit_step_H: NDArray[np.int32], hit_row_H: NDArray[np.uint16]
) -> bytes:
    """sha256 of a view: what is stored of it, little-endian, one after the other."""
    digest = hashlib.sha256()
    for array in (rows_RD, row_patch_R, hit_step_H, hit_row_H):
        digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return digest.digest()


def _order(coord_N3: NDArray[np.float32]) -> NDArray[np.intp]:
    """Permutation that sorts rows by x, then y, then z; finite values.

    x and y become one integer that sorts alike, and z decides where it ties: a tenth of the time of a lexsort, which
    was 150 ms for an indoor scene.
    """
    bits_N3 = (coord_N3 + np.float32(0)).view(np.uint32)
    # of negative floats, larger bit patterns are smaller numbers
    flip_N3 = np.where(bits_N3 >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    x_N, y_N, z_N = (bits_N3 ^ flip_N3).T.astype(np.uint64)
    key_N = x_N << np.uint64(32) | y_N
    order = np.argsort(key_N)
    key_N = key_N[order]
    same = key_N[1:] == key_N[:-1]
    if same.any():
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        order[tied] = order[tied][np.lexsort((z_N[order[tied]], key_N[tied]))]
    return order
