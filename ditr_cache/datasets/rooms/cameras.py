# SPDX-License-Identifier: Apache-2.0
"""Where a camera walks: round the room at eye height, looking inwards, clear of everything."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.datasets.rooms.cast import Pose, cast
from ditr_cache.datasets.rooms.layout import Room, RoomKey
from ditr_cache.datasets.rooms.solids import Solid

__all__ = ["camera_poses"]

Floats = NDArray[np.floating[Any]]

_TRIES, _NUDGES = 8, 60
_CLEARANCE = 0.45
_CLOSE, _CLOSE_SHARE = 1.0, 0.15
_GLANCE_X = np.linspace(-0.65, 0.65, 12, dtype=np.float32)[None, :]
_GLANCE_Y = np.linspace(-0.5, 0.5, 9, dtype=np.float32)[:, None]


def camera_poses(room: Room, key: RoomKey, count: int, purpose: str = "cameras") -> list[Pose]:
    """Cameras at eye height, one after the other round the room, looking inwards and down, clear of everything."""
    return [
        _open_pose(room, 2 * np.pi * view / count, 2 * np.pi / count, key.rng(purpose, count, view))
        for view in range(count)
    ]


def _open_pose(room: Room, angle: float, step: float, rng: np.random.Generator) -> Pose:
    """The first of a few tries whose view is not filled by one thing close by, or the most open one."""
    best, best_share = None, np.inf
    for _ in range(_TRIES):
        position = _free_position(room, angle + step * rng.uniform(-0.4, 0.4), rng)
        target = np.array([*(room.size[:2] * rng.uniform(0.25, 0.75, 2)), rng.uniform(0.15, 0.75)])
        pose = _look_at(position, target)
        share = float((cast(room, pose, _GLANCE_X, _GLANCE_Y).depth < _CLOSE).mean())
        if best is None or share < best_share:
            best, best_share = pose, share
        if share < _CLOSE_SHARE:
            break
    assert best is not None
    return best


def _free_position(room: Room, angle: float, rng: np.random.Generator) -> NDArray[np.float64]:
    best, best_gap = np.zeros(3), -np.inf
    for attempt in range(_NUDGES):
        turn = angle + rng.normal(0, 0.02 * attempt)
        reach = rng.uniform(0.6, 0.95)
        size = room.size.astype(np.float64)
        xy = size[:2] / 2 + reach * (size[:2] / 2 - 0.3) * [np.cos(turn), np.sin(turn)]
        position = np.array([*xy, rng.uniform(1.35, 1.65)])
        gap = min((_gap(solid, position) for solid in room.solids), default=np.inf)
        if gap > best_gap:
            best, best_gap = position, gap
        if gap > _CLEARANCE:
            break
    return best


def _gap(solid: Solid, position: NDArray[np.float64]) -> float:
    """Distance from a solid's bounding box, metres."""
    local = np.abs((position - solid.center) @ solid.axes) - solid.half
    return float(np.linalg.norm(np.maximum(local, 0)))


def _look_at(position: NDArray[np.float64], target: NDArray[np.float64]) -> Pose:
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return Pose(position, np.stack([right, np.cross(forward, right), forward], 1))
