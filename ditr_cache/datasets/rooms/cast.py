# SPDX-License-Identifier: Apache-2.0
"""Ray casting into a room. Directions have z = 1 in the camera frame, so that a ray's parameter is the depth.

Shape suffixes: M rays or surface samples; h, w a lattice of rays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.datasets.rooms.layout import Room
from ditr_cache.datasets.rooms.solids import Solid, enter, leave_box, surface

__all__ = ["Hits", "Pose", "cast", "room_surface"]

Floats = NDArray[np.floating[Any]]

_NEAR = 0.02
_EVERYTHING = (slice(None), slice(None))


@dataclass(frozen=True, slots=True, eq=False)
class Pose:
    """A camera: z forward, x right, y down."""

    position: NDArray[np.float64]
    """`[3]` metres."""
    rotation: NDArray[np.float64]
    """`[3, 3]` camera axes in room coordinates, as columns."""


@dataclass(frozen=True, slots=True)
class Hits:
    """First hits of a set of rays."""

    depth: Floats
    """Along the optical axis, metres."""
    solid: NDArray[np.int16]
    """Index into the room's solids; -1 the room itself."""


def cast(room: Room, pose: Pose, x: Floats, y: Floats) -> Hits:
    """First hits of the rays `(x, y, 1)` of the camera frame.

    Args:
        room: What to look at.
        pose: The camera; must be inside the room and outside every solid.
        x: `[1, w]`, or `[M]`.
        y: `[h, 1]`, or `[M]`.
    """
    rotation, eye = pose.rotation.astype(np.float32), pose.position.astype(np.float32)
    half = room.size / 2
    depth = leave_box((eye - half) / half, _directions(rotation / half[:, None], x, y))
    hits = Hits(depth, np.full(depth.shape, -1, np.int16))
    lattice = depth.ndim == 2
    for index, solid in enumerate(room.solids):
        window = _window(solid, pose, x, y) if lattice else _EVERYTHING
        if window is None:
            continue
        rows, columns = window
        map_33 = (solid.axes.T @ rotation) / solid.half[:, None]
        rays = _directions(map_33, x[:, columns], y[rows]) if lattice else _directions(map_33, x, y)
        t = enter(solid.kind, solid.to_unit(eye), rays)
        part = (rows, columns) if lattice else (...,)
        nearer = t < hits.depth[part]
        np.copyto(hits.depth[part], t, where=nearer)
        np.copyto(hits.solid[part], np.int16(index), where=nearer)
    return hits


def _directions(map_33: Floats, x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    a, b, c = (row[0] * x + (row[1] * y + row[2]) for row in map_33)
    return a, b, c


def _window(solid: Solid, pose: Pose, x: Floats, y: Floats) -> tuple[slice, slice] | None:
    """Rows and columns of the lattice that the solid's bounding box can touch; None if it is out of sight."""
    corners = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], np.float32) * solid.half
    camera_83 = (corners @ solid.axes.T + solid.center - pose.position) @ pose.rotation
    if (camera_83[:, 2] < _NEAR).all():
        return None
    if (camera_83[:, 2] < _NEAR).any():
        return _EVERYTHING
    px, py = camera_83[:, 0] / camera_83[:, 2], camera_83[:, 1] / camera_83[:, 2]
    columns = slice(*np.searchsorted(x[0], [px.min() - 1e-3, px.max() + 1e-3]))
    rows = slice(*np.searchsorted(y[:, 0], [py.min() - 1e-3, py.max() + 1e-3]))
    return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None


def room_surface(room: Room, xyz_M3: Floats) -> tuple[NDArray[np.int8], Floats, Floats]:
    """Which surface of the room itself points lie on.

    Returns:
        `[M]` 0 floor, 1 wall, 2 ceiling; `[M, 3]` normals into the room; `[M, 2]` metres on the surface.
    """
    half = room.size / 2
    normal_M3, uv_M2 = surface("box", half, (xyz_M3 - half) / half)
    up_M = normal_M3[:, 2]
    return np.where(up_M == 0, 1, np.where(up_M < 0, 0, 2)).astype(np.int8), -normal_M3, uv_M2
