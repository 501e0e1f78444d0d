# SPDX-License-Identifier: Apache-2.0
"""A room as a scanner records it: points on what can be seen, with colour, normal and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.datasets.rooms.cameras import camera_poses
from ditr_cache.datasets.rooms.cast import Pose, cast, room_surface
from ditr_cache.datasets.rooms.layout import Room, RoomKey
from ditr_cache.datasets.rooms.renderer import shade
from ditr_cache.datasets.rooms.solids import spread, surface
from ditr_cache.types import PointCloud

__all__ = ["scan"]

Floats = NDArray[np.floating[Any]]

_SPACING = 0.0245
_WALL_HEIGHT = 1.0
"""Walls are recorded up to here: above, there is nothing but wall."""
_POSITION_NOISE = 0.0012
_COLOR_OFFSET = 0.01
"""Metres by which the images that colour the points are off, about what hand-held scanners have. Without it the regular
rows of the finest patterns show in the arrangement of the points' colours: two-point statistics of a whole face name
the right one of four texture classes for 59 % (style a) and 48 % (b) of things; with it for 33 % and 25 %."""
_TOUCHING = 0.006
_RING = 20
_SIGHT = (180, 240)
_REACH = 1.3
"""Half the field of view of the scanner's cameras, as a tangent."""
_SEEN_MARGIN = 0.03


def scan(room: Room, key: RoomKey) -> PointCloud:
    """Points about 2.4 cm apart on every surface that some camera of a dense ring sees.

    Returns:
        Points with colour, normal, `segment` and instance (-1 for floor and walls); origin zero.
    """
    rng = key.rng("scan")
    pieces = [_scan_shell(room, rng), *_scan_solids(room, rng)]
    owner = np.repeat(np.arange(-1, len(room.solids)), [len(piece[0]) for piece in pieces])
    xyz, normal, color, label, instance = (np.concatenate(column) for column in zip(*pieces, strict=True))
    keep = _seen(room, key, xyz)
    keep[keep] &= _exposed(room, xyz[keep], owner[keep])
    xyz, normal, color = xyz[keep], normal[keep], color[keep]
    coord = xyz + rng.normal(0, _POSITION_NOISE, xyz.shape).astype(np.float32)
    return PointCloud(
        coord=coord.astype(np.float32),
        color=np.clip(color * 255 + np.float32(0.5), 0, 255).astype(np.uint8),
        normal=normal.astype(np.float32),
        segments={"segment": label[keep].astype(np.int32)},
        instance=instance[keep].astype(np.int32),
    )


_Piece = tuple[Floats, Floats, Floats, NDArray[np.int32], NDArray[np.int32]]


def _scan_shell(room: Room, rng: np.random.Generator) -> _Piece:
    half = room.size / 2
    xyz = spread("box", half, _SPACING, rng) * half + half
    xyz = xyz[xyz[:, 2] < _WALL_HEIGHT]
    face, normal, uv = room_surface(room, xyz)
    uv = uv + rng.normal(0, _COLOR_OFFSET, uv.shape).astype(np.float32)
    albedo = np.where((face == 0)[:, None], room.floor.color(uv), room.wall.color(uv))
    nothing = np.full(len(xyz), -1, np.int32)
    return xyz, normal, shade(room, xyz, normal, albedo), face.astype(np.int32), nothing


def _scan_solids(room: Room, rng: np.random.Generator) -> list[_Piece]:
    pieces: list[_Piece] = []
    for solid in room.solids:
        unit = spread(solid.kind, solid.half, _SPACING, rng)
        local, uv = surface(solid.kind, solid.half, unit)
        uv = uv + rng.normal(0, _COLOR_OFFSET, uv.shape).astype(np.float32)
        xyz = (unit * solid.half) @ solid.axes.T + solid.center
        normal = local @ solid.axes.T
        color = shade(room, xyz, normal, solid.texture.color(uv))
        label, instance = (np.full(len(xyz), value, np.int32) for value in (solid.label, solid.instance))
        pieces.append((xyz, normal, color, label, instance))
    return pieces


def _exposed(room: Room, xyz: Floats, owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which points are not covered by another solid that touches theirs, nor pressed on the floor."""
    exposed = (owner < 0) | (xyz[:, 2] > _TOUCHING)
    for index, solid in enumerate(room.solids):
        reach = np.float32(np.linalg.norm(solid.half) + _TOUCHING)
        near = np.flatnonzero((np.abs(xyz - solid.center) < reach).all(1))
        exposed[near] &= (owner[near] == index) | ~solid.contains(xyz[near], _TOUCHING)
    return exposed


def _seen(room: Room, key: RoomKey, xyz: Floats) -> NDArray[np.bool_]:
    """Which points agree with the depth map of some camera of the ring."""
    height, width = _SIGHT
    tall = _REACH * height / width
    x = ((np.arange(width) + 0.5) / width * 2 - 1).astype(np.float32)[None, :] * np.float32(_REACH)
    y = ((np.arange(height) + 0.5) / height * 2 - 1).astype(np.float32)[:, None] * np.float32(tall)
    seen = np.zeros(len(xyz), np.bool_)
    for pose in camera_poses(room, key, _RING, "scanner"):
        open_points = np.flatnonzero(~seen)
        camera = _to_camera(pose, xyz[open_points])
        with np.errstate(divide="ignore", invalid="ignore"):
            column = np.floor((camera[:, 0] / camera[:, 2] / _REACH + 1) / 2 * width)
            row = np.floor((camera[:, 1] / camera[:, 2] / tall + 1) / 2 * height)
        framed = (camera[:, 2] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        depth = cast(room, pose, x, y).depth[row[framed].astype(np.int64), column[framed].astype(np.int64)]
        seen[open_points[framed]] = np.abs(depth - camera[framed, 2]) < _SEEN_MARGIN
    return seen


def _to_camera(pose: Pose, xyz: Floats) -> Floats:
    return ((xyz - pose.position.astype(np.float32)) @ pose.rotation.astype(np.float32)).astype(np.float32)
