# SPDX-License-Identifier: Apache-2.0
"""Digests of what a store holds, computed alike by whoever writes and whoever verifies."""

from __future__ import annotations

import hashlib

import numpy as np

from ditr_cache.types import PointCloud

__all__ = ["coordinate_digests"]


def coordinate_digests(points: PointCloud) -> tuple[str, str]:
    """sha256 of `coord` then `origin` as stored, and the same with the rows of `coord` sorted by x, y, z."""
    coord = np.ascontiguousarray(points.coord, "<f4")
    origin = np.ascontiguousarray(points.origin, "<f8").tobytes()
    in_order = coord[np.lexsort(coord.T[::-1])]
    return hashlib.sha256(coord.tobytes() + origin).hexdigest(), hashlib.sha256(in_order.tobytes() + origin).hexdigest()
