# SPDX-License-Identifier: Apache-2.0
"""What a pinhole camera sees of a room.

Rays leave through pixel centres and pixel corners; an image pixel is half its centre and half its four corners, which
is as smooth as 2 x 2 supersampling for half the rays.

Shape suffixes: M rays or surface samples; h, w a lattice of rays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.datasets.rooms.cast import Hits, Pose, cast, room_surface
from ditr_cache.datasets.rooms.layout import Room
from ditr_cache.datasets.rooms.solids import surface
from ditr_cache.datasets.rooms.textures import Texture

__all__ = ["HEIGHT", "WIDTH", "focal_length", "label_map", "render", "shade"]

Floats = NDArray[np.floating[Any]]
UInt8 = NDArray[np.uint8]

HEIGHT, WIDTH = 240, 320
_FIELD_OF_VIEW = np.deg2rad(70)
_SENSOR_NOISE = 2.0


def focal_length(width: int = WIDTH) -> float:
    """Pixels, for the horizontal field of view of 70 degrees."""
    return float(width / 2 / np.tan(_FIELD_OF_VIEW / 2))


def shade(room: Room, xyz_M3: Floats, normal_M3: Floats, albedo_M3: Floats) -> Floats:
    """Colour under the room's lamp: diffuse, half of it ambient; the same for images and points."""
    to_lamp_M3 = room.lamp - xyz_M3
    distance_M = np.sqrt(np.einsum("mc,mc->m", to_lamp_M3, to_lamp_M3))
    cosine_M = np.einsum("mc,mc->m", to_lamp_M3, normal_M3) / np.maximum(distance_M, np.float32(0.05))
    light_M = np.float32(0.62) + np.float32(0.4) * np.maximum(cosine_M, 0) + np.float32(0.08) * normal_M3[:, 0]
    lit_M3: Floats = albedo_M3 * (light_M[:, None] * room.tint)
    return lit_M3


def _colors(room: Room, pose: Pose, hits: Hits, x: Floats, y: Floats, pixel: float) -> Floats:
    """Shaded colour of every ray of a lattice, `[h, w, 3]`."""
    shape = hits.depth.shape
    ray_M3 = np.stack(
        [np.broadcast_to(x, shape).ravel(), np.broadcast_to(y, shape).ravel(), np.ones(hits.depth.size)], 1
    )
    ray_M3 = (ray_M3.astype(np.float32) @ pose.rotation.T.astype(np.float32)).astype(np.float32)
    depth_M, solid_M = hits.depth.ravel(), hits.solid.ravel()
    order = np.argsort(solid_M, kind="stable")
    found, starts = np.unique(solid_M[order], return_index=True)
    normal_M3, albedo_M3 = np.empty_like(ray_M3), np.empty_like(ray_M3)
    xyz_M3 = pose.position.astype(np.float32) + ray_M3 * depth_M[:, None]

    def paint(rays: NDArray[np.int64], texture: Texture, uv_M2: Floats) -> None:
        ray = ray_M3[rays]
        slant_M = np.abs(np.einsum("mc,mc->m", ray, normal_M3[rays])) / np.einsum("mc,mc->m", ray, ray)
        # a pixel covers depth x pixel, stretched along the slope; the mean of the two directions keeps slopes sharp
        footprint_M = depth_M[rays] * np.float32(pixel) / np.sqrt(np.maximum(slant_M, np.float32(0.04)))
        albedo_M3[rays] = texture.color(uv_M2, footprint_M)

    for index, rays in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
        if index < 0:
            face_M, normal_M3[rays], uv_M2 = room_surface(room, xyz_M3[rays])
            for face, texture in enumerate((room.floor, room.wall, room.ceiling)):
                chosen = face_M == face
                paint(rays[chosen], texture, uv_M2[chosen])
        else:
            solid = room.solids[index]
            local_M3, uv_M2 = surface(solid.kind, solid.half, solid.to_unit(xyz_M3[rays]))
            normal_M3[rays] = local_M3 @ solid.axes.T
            paint(rays, solid.texture, uv_M2)
    return shade(room, xyz_M3, normal_M3, albedo_M3).reshape(*shape, 3)


def _lattice(corners: bool) -> tuple[Floats, Floats]:
    """Rays through the centres of all pixels, or through their corners."""
    f, extra, offset = focal_length(), int(corners), 0.0 if corners else 0.5
    x = ((np.arange(WIDTH + extra) + offset - WIDTH / 2) / f).astype(np.float32)
    y = ((np.arange(HEIGHT + extra) + offset - HEIGHT / 2) / f).astype(np.float32)
    return x[None, :], y[:, None]


def _rays(pose: Pose, x: Floats, y: Floats) -> Floats:
    """Directions of a lattice's rays in room coordinates, `[h * w, 3]`."""
    xyz_M3 = np.stack([*np.broadcast_arrays(x, y, np.float32(1))], 2).reshape(-1, 3)
    return xyz_M3 @ pose.rotation.T.astype(np.float32)


def label_map(room: Room, pose: Pose) -> NDArray[np.int32]:
    """Class of what each pixel centre shows, `[240, 320]`; -1 the ceiling."""
    x, y = _lattice(False)
    hits = cast(room, pose, x, y)
    ray_M3 = np.stack([*(np.broadcast_to(a, hits.depth.shape) for a in (x, y)), np.ones_like(hits.depth)], 2).reshape(
        -1, 3
    )
    xyz_M3 = pose.position.astype(np.float32) + hits.depth.reshape(-1, 1) * (
        ray_M3 @ pose.rotation.T.astype(np.float32)
    )
    shell = np.array([0, 1, -1], np.int32)[room_surface(room, xyz_M3)[0]].reshape(hits.depth.shape)
    labels = np.array([*(solid.label for solid in room.solids), -1], np.int32)
    return np.where(hits.solid < 0, shell, labels[hits.solid])


def render(room: Room, pose: Pose, rng: np.random.Generator) -> tuple[UInt8, Floats]:
    """Image and depth map.

    Args:
        room: What to look at.
        pose: Where from.
        rng: Of the sensor noise.

    Returns:
        `[240, 320, 3]` RGB and `[240, 320]` depth along the optical axis at pixel centres, metres.
    """
    layers = []
    for corners in (False, True):
        x, y = _lattice(corners)
        hits = cast(room, pose, x, y)
        layers.append((hits.depth, _colors(room, pose, hits, x, y, 1 / focal_length())))
    (depth, center), (_, corner) = layers
    image = center * 0.5 + (corner[1:, 1:] + corner[1:, :-1] + corner[:-1, 1:] + corner[:-1, :-1]) * 0.125
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(_SENSOR_NOISE)
    return np.clip(image * 255 + noise + np.float32(0.5), 0, 255).astype(np.uint8), depth
