# SPDX-License-Identifier: Apache-2.0
"""Convex solids: where a ray meets them, what the surface is there, and points spread evenly over them.

Every solid is a unit box, cylinder, ball or cone under a rotation and a scale per axis. A ray's parameter survives that
map, so all intersections are those of the unit solids (half-size 1; the cone has its tip at z = 1, its base at z = -1).

Shape suffixes: M rays or surface samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ditr_cache.datasets.rooms.textures import Texture

__all__ = ["Kind", "Solid", "enter", "leave_box", "spread", "surface"]

Floats = NDArray[np.floating[Any]]
Kind = Literal["box", "cylinder", "ball", "cone"]

_FAR = np.float32(np.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Solid:
    """A textured solid in a room."""

    kind: Kind
    center: Floats
    """`[3]` metres."""
    half: Floats
    """`[3]` half-sizes along its own axes, metres."""
    axes: Floats
    """`[3, 3]` rotation; columns are its own axes in room coordinates."""
    texture: Texture
    label: int
    instance: int

    def to_unit(self, xyz_M3: Floats) -> Floats:
        """Room coordinates to those of the unit solid."""
        return ((xyz_M3 - self.center) @ self.axes) / self.half

    def contains(self, xyz_M3: Floats, margin: float = 0.0) -> NDArray[np.bool_]:
        """Whether points lie in the solid grown by `margin` metres."""
        q_M3 = ((xyz_M3 - self.center) @ self.axes) / (self.half + np.float32(margin))
        if self.kind == "box":
            return np.asarray((np.abs(q_M3) < 1).all(1))
        if self.kind == "ball":
            return np.asarray((q_M3 * q_M3).sum(1) < 1)
        radius2_M = q_M3[:, 0] ** 2 + q_M3[:, 1] ** 2
        limit_M = 1 if self.kind == "cylinder" else (0.5 * np.clip(1 - q_M3[:, 2], 0, None)) ** 2
        return np.asarray((np.abs(q_M3[:, 2]) < 1) & (radius2_M < limit_M))


def _slabs(o: Floats, d: tuple[Any, Any, Any]) -> tuple[Floats, Floats]:
    near: Any = -_FAR
    far: Any = _FAR
    for axis in range(3):
        inverse = 1 / d[axis]
        a, b = (-1 - o[axis]) * inverse, (1 - o[axis]) * inverse
        near, far = np.maximum(near, np.minimum(a, b)), np.minimum(far, np.maximum(a, b))
    return near, far


def _quadratic(a: Any, b: Any, c: Any) -> tuple[Floats, Floats]:
    # a t^2 + 2 b t + c = 0; NaN where there is no root, which every comparison below treats as a miss
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (-b + root) / a


def _round_sides(kind: Kind, o: Floats, d: tuple[Any, Any, Any]) -> Floats:
    ox, oy, oz = o
    dx, dy, dz = d
    if kind == "cylinder":
        roots = _quadratic(dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - 1)
    else:
        # x^2 + y^2 = ((1 - z) / 2)^2
        e = (1 - oz) / 2
        roots = _quadratic(dx * dx + dy * dy - dz * dz / 4, ox * dx + oy * dy + e * dz / 2, ox * ox + oy * oy - e * e)
    best: Floats = np.full(np.broadcast(dx, dy, dz).shape, _FAR, np.float32)
    for t in roots:
        np.fmin(best, np.where((np.abs(oz + t * dz) <= 1) & (t > 0), t, _FAR), out=best)
    for z in (-1, 1) if kind == "cylinder" else (-1,):
        t = (z - oz) / dz
        x, y = ox + t * dx, oy + t * dy
        np.fmin(best, np.where((x * x + y * y <= 1) & (t > 0), t, _FAR), out=best)
    return best


def enter(kind: Kind, o: Floats, d: tuple[Any, Any, Any]) -> Floats:
    """Where rays from outside enter a unit solid.

    Args:
        kind: Which solid.
        o: `[3]` common origin of the rays, in unit coordinates.
        d: The three components of the directions, of broadcastable shapes.

    Returns:
        Ray parameter, inf where it misses.
    """
    with np.errstate(all="ignore"):
        if kind == "box":
            near, far = _slabs(o, d)
            return np.where((near <= far) & (near > 0), near, _FAR)
        if kind == "ball":
            dx, dy, dz = d
            near, _ = _quadratic(
                dx * dx + dy * dy + dz * dz, o[0] * dx + o[1] * dy + o[2] * dz, np.float32((o * o).sum() - 1)
            )
            return np.where(near > 0, near, _FAR)
        return _round_sides(kind, o, d)


def leave_box(o: Floats, d: tuple[Any, Any, Any]) -> Floats:
    """Where rays from inside leave the unit box: the walls of a room."""
    with np.errstate(all="ignore"):
        return _slabs(o, d)[1]


def surface(kind: Kind, half: Floats, q_M3: Floats) -> tuple[Floats, Floats]:
    """Outward normal and texture coordinates of points on a unit solid.

    Args:
        kind: Which solid.
        half: `[3]` half-sizes, metres.
        q_M3: Points in unit coordinates.

    Returns:
        `[M, 3]` unit normals in the solid's own axes, and `[M, 2]` metres on the surface.
    """
    xyz_M3 = q_M3 * half
    normal_M3 = np.zeros_like(q_M3)
    if kind == "box":
        face_M = np.abs(q_M3).argmax(1)
        sign_M = np.sign(np.take_along_axis(q_M3, face_M[:, None], 1)[:, 0])
        np.put_along_axis(normal_M3, face_M[:, None], sign_M[:, None], 1)
        u_M = np.where(face_M == 0, xyz_M3[:, 1], xyz_M3[:, 0])
        v_M = np.where(face_M == 2, xyz_M3[:, 1], xyz_M3[:, 2])
        # neighbouring faces must not continue one pattern
        return normal_M3, np.stack([u_M + sign_M * np.float32(0.37) + face_M * np.float32(1.31), v_M], 1)
    if kind == "ball":
        normal_M3 = q_M3 / half
    else:
        flat_M = np.abs(q_M3[:, 2]) > 0.9995 if kind == "cylinder" else q_M3[:, 2] < -0.9995
        slope = np.float32(0 if kind == "cylinder" else 0.5)
        normal_M3[:, :2] = q_M3[:, :2] / half[:2]
        normal_M3[:, 2] = slope * np.hypot(q_M3[:, 0], q_M3[:, 1]) / half[2]
        normal_M3[flat_M] = np.array([0, 0, 1], np.float32) * np.sign(q_M3[flat_M, 2:])
    normal_M3 /= np.maximum(np.sqrt((normal_M3 * normal_M3).sum(1, keepdims=True)), np.float32(1e-9))
    turn_M = np.arctan2(q_M3[:, 1], q_M3[:, 0])
    uv_M2 = np.stack([turn_M * half[0], xyz_M3[:, 2]], 1)
    if kind != "ball":
        uv_M2[flat_M] = xyz_M3[flat_M, :2]
    return normal_M3, uv_M2


def _even(area: float, spacing: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Low-discrepancy points of the unit square (the R2 sequence), one per `spacing` squared."""
    count = max(1, round(area / spacing**2))
    step = np.arange(count)[:, None] * np.array([0.7548776662466927, 0.5698402909980532])
    ab_M2 = ((rng.random(2) + step) % 1).astype(np.float32)
    return ab_M2[:, 0], ab_M2[:, 1]


def spread(kind: Kind, half: Floats, spacing: float, rng: np.random.Generator) -> Floats:
    """Points about `spacing` metres apart over the whole surface, `[M, 3]` in unit coordinates."""
    hx, hy, hz = (float(h) for h in half)
    parts: list[Floats] = []
    if kind == "box":
        for axis, area in enumerate((4 * hy * hz, 4 * hx * hz, 4 * hx * hy)):
            for side in (-1, 1):
                a_M, b_M = _even(area, spacing, rng)
                parts.append(np.insert(np.stack([a_M, b_M], 1) * 2 - 1, axis, side, 1))
        return np.concatenate(parts).astype(np.float32)
    radius = (hx + hy) / 2
    if kind == "ball":
        a_M, b_M = _even(4 * np.pi * radius * (radius + hz) / 2, spacing, rng)
        z_M = a_M * 2 - 1
        r_M = np.sqrt(1 - z_M * z_M)
    else:
        slant = np.hypot(2 * hz, radius) / 2
        a_M, b_M = _even(4 * np.pi * radius * (hz if kind == "cylinder" else slant / 2), spacing, rng)
        r_M = np.ones_like(a_M) if kind == "cylinder" else np.sqrt(a_M)
        z_M = a_M * 2 - 1 if kind == "cylinder" else 1 - 2 * r_M
    turn_M = b_M * np.float32(2 * np.pi)
    parts.append(np.stack([r_M * np.cos(turn_M), r_M * np.sin(turn_M), z_M], 1))
    for side in {"ball": (), "cylinder": (-1, 1), "cone": (-1,)}[kind]:
        a_M, b_M = _even(np.pi * radius**2, spacing, rng)
        r_M, turn_M = np.sqrt(a_M), b_M * np.float32(2 * np.pi)
        parts.append(np.stack([r_M * np.cos(turn_M), r_M * np.sin(turn_M), np.full_like(r_M, side)], 1))
    return np.concatenate(parts).astype(np.float32)
