# SPDX-License-Identifier: Apache-2.0
"""A room as a pure function of its key: what stands where and under which light."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.datasets.rooms.furniture import BUILDERS, Part
from ditr_cache.datasets.rooms.materials import material
from ditr_cache.datasets.rooms.solids import Solid
from ditr_cache.datasets.rooms.styles import ANY_PATTERN, STYLES, Thing
from ditr_cache.datasets.rooms.textures import Texture

__all__ = ["Room", "RoomKey", "build_room"]

Floats = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]

_TRIES = 60
_GAP = 0.04


@dataclass(frozen=True, slots=True)
class RoomKey:
    """Everything that a room depends on."""

    seed: int
    style: str
    index: int

    def rng(self, *purpose: object) -> np.random.Generator:
        """An independent generator for one purpose, so that nothing drawn elsewhere changes what is drawn here."""
        text = "/".join(map(str, ("ditr-cache rooms", self.seed, self.style, self.index, *purpose)))
        return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """Solids inside a box. x and y run from 0 to the room's size, z from the floor up."""

    size: Floats
    """`[3]` metres."""
    solids: tuple[Solid, ...]
    floor: Texture
    wall: Texture
    ceiling: Texture
    lamp: Floats
    """`[3]` position of the light."""
    tint: Floats
    """`[3]` colour of the light."""


def build_room(key: RoomKey) -> Room:
    """Furnish a room: things of every family, none inside another or outside the walls."""
    style, rng = STYLES[key.style], key.rng("room")
    size = np.array([*rng.uniform(3.1, 3.8, 2), rng.uniform(2.35, 2.6)], np.float32)
    floor, wall = (material(str(rng.choice(kinds)), rng) for kinds in (style.floors, style.walls))
    ceiling = material("plain", rng)
    lamp = np.array([*(size[:2] * rng.uniform(0.3, 0.7, 2)), size[2] - 0.15], np.float32)
    tint = (rng.uniform(0.9, 1.1) * (1 + rng.normal(0, 0.03, 3))).astype(np.float32)

    wanted: list[str] = []
    for family, (fewest, most) in style.per_room.items():
        names = list(style.families[family])
        # every class before any class twice
        draws = int(rng.integers(fewest, most + 1))
        wanted += [str(name) for name in np.concatenate([rng.permutation(names), rng.permutation(names)])[:draws]]
    things = {name: thing for family in style.families.values() for name, thing in family.items()}
    # large things find no place later
    shapes = [(name, BUILDERS[things[name].shape](rng)) for name in wanted]
    shapes.sort(key=lambda item: -float(np.prod(_footprint(item[1])[1])))
    solids: list[Solid] = []
    taken: list[Float64] = []
    for name, parts in shapes:
        corners, place = _find_place(parts, size, taken, rng)
        if place is None:
            continue
        materials = _materials(things[name], rng)
        label = style.class_names.index(name)
        solids += [_stand(part, place, materials[part.material], label, len(taken)) for part in parts]
        taken.append(corners)
    return Room(size, tuple(solids), floor, wall, ceiling, lamp, tint)


def _footprint(parts: list[Part]) -> tuple[Float64, Float64]:
    """Middle and half-size of the rectangle that a thing stands on."""
    low = np.min([np.subtract(p.center[:2], p.half[:2]) for p in parts], 0)
    high = np.max([np.add(p.center[:2], p.half[:2]) for p in parts], 0)
    return (low + high) / 2, (high - low) / 2


def _find_place(
    parts: list[Part], size: Floats, taken: list[Float64], rng: np.random.Generator
) -> tuple[Float64, tuple[Float64, float] | None]:
    middle, half = _footprint(parts)
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (half + _GAP) + middle
    corners = square
    for _ in range(_TRIES):
        yaw = float(rng.choice([0, 0.5, 1, 1.5]) * np.pi + rng.normal(0, 0.12))
        spot = rng.uniform(0.1, 0.9, 2) * size[:2]
        corners = square @ _turn(yaw)[:2, :2].T + spot
        inside = (corners > 0.03).all() and (corners < size[:2] - 0.03).all()
        if inside and not any(_overlap(corners, other) for other in taken):
            return corners, (spot, yaw)
    return corners, None


def _overlap(a: Float64, b: Float64) -> bool:
    """Separating-axis test of two rectangles given by their corners."""
    for corners in (a, b):
        for edge in (corners[1] - corners[0], corners[2] - corners[1]):
            pa, pb = a @ edge, b @ edge
            if pa.max() <= pb.min() or pb.max() <= pa.min():
                return False
    return True


def _turn(yaw: float) -> Float64:
    return np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])


def _materials(thing: Thing, rng: np.random.Generator) -> tuple[Texture, Texture]:
    patterns = thing.patterns if rng.random() < thing.typical else ANY_PATTERN
    return material(str(rng.choice(patterns)), rng), material("plain", rng)


def _stand(part: Part, place: tuple[Float64, float], texture: Texture, label: int, instance: int) -> Solid:
    spot, yaw = place
    axes = _turn(yaw)
    center = axes @ np.array(part.center) + [*spot, 0]
    half = np.array(part.half, np.float32)
    return Solid(part.kind, center.astype(np.float32), half, axes.astype(np.float32), texture, label, instance)
