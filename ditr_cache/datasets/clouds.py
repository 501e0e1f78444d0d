# SPDX-License-Identifier: Apache-2.0
"""Single point clouds in files, without images or poses: for networks that see points only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ditr_cache.datasets.arrays import checked, read_npy, read_raw, relative_to_origin
from ditr_cache.datasets.ply import cloud, read_vertices
from ditr_cache.errors import SampleError
from ditr_cache.types import PointCloud, UInt8

__all__ = ["SUFFIXES", "is_cloud", "read_cloud"]

SUFFIXES = (".ply", ".npy", ".bin")
_STRENGTH = ("strength", "intensity")
_COLUMNS = {3: "x y z", 4: "x y z strength", 6: "x y z red green blue", 9: "x y z red green blue nx ny nz"}


def is_cloud(path: Path) -> bool:
    """Whether a name is that of a point cloud's file."""
    return path.suffix.lower() in SUFFIXES


def read_cloud(path: Path, columns: int = 4) -> PointCloud:
    """Read a file by its suffix.

    Args:
        path: `.ply`: vertices with `x y z`, and where they have them `red green blue`, `nx ny nz`, and `strength` or
            `intensity`. `.npy`: `[N, 3]`, `[N, 4]` with strength, `[N, 6]` with colour (0 to 255), or `[N, 9]` with
            colour and normal. `.bin`: float32 rows that begin with x, y, z, strength, as lidar data sets have them.
        columns: Of a `.bin` file: 4 for SemanticKITTI, 5 for nuScenes.

    Raises:
        SampleError: If the file is missing, truncated, or not what its suffix says.
        OSError: If the medium fails.
    """
    suffix = path.suffix.lower()
    if suffix == ".ply":
        return checked(_from_ply(path), path)
    if suffix == ".npy":
        return checked(_from_npy(path), path)
    if suffix == ".bin":
        rows_NC = read_raw(path, "<f4", columns)
        coord_N3, origin = relative_to_origin(rows_NC[:, :3], path)
        return checked(PointCloud(coord_N3, origin, strength=rows_NC[:, 3].copy()), path)
    raise SampleError(f"no point cloud: {', '.join(SUFFIXES)} are read", where=path)


def _from_ply(path: Path) -> PointCloud:
    vertices_N = read_vertices(path)
    points = cloud(vertices_N, path)
    found = [name for name in _STRENGTH if name in (vertices_N.dtype.names or ())]
    strength_N = vertices_N[found[0]].astype(np.float32) if found else None
    return PointCloud(points.coord, points.origin, points.color, points.normal, strength_N)


def _from_npy(path: Path) -> PointCloud:
    for count, names in _COLUMNS.items():
        try:
            rows_NC = read_npy(path, count)
        except SampleError as error:
            # of another width, perhaps; anything else is wrong with every width
            if "were expected" not in str(error):
                raise
            continue
        coord_N3, origin = relative_to_origin(rows_NC[:, :3], path)
        if names.endswith("strength"):
            return PointCloud(coord_N3, origin, strength=rows_NC[:, 3].astype(np.float32))
        color_N3 = _bytes(rows_NC[:, 3:6], path) if count > 3 else None
        normal_N3 = rows_NC[:, 6:9].astype(np.float32) if count > 6 else None
        return PointCloud(coord_N3, origin, color_N3, normal_N3)
    raise SampleError(f"not a table of points: its columns must be {', or '.join(_COLUMNS.values())}", where=path)


def _bytes(color_N3: NDArray[np.generic], path: Path) -> UInt8:
    wide_N3 = color_N3.astype(np.float64)
    if not ((wide_N3 >= 0) & (wide_N3 <= 255)).all():
        raise SampleError("colours must be between 0 and 255", where=path)
    if color_N3.dtype.kind == "f" and wide_N3.size and 0 < wide_N3.max() <= 1:
        raise SampleError("colours must be between 0 and 255, and these are between 0 and 1", where=path)
    return wide_N3.round().astype(np.uint8)
