# SPDX-License-Identifier: Apache-2.0
"""Procedurally generated rooms: the data set that needs no download.

The source is `synthetic:` and settings, e.g. `synthetic:rooms=20,views=16,style=b`. Every room is a pure function of
(seed, style, index); asking for more rooms never changes the first ones. Rooms are honest about what features are for:
points carry colour and normals as scanned ones do, and the classes form three families. *shape* classes differ in
geometry alone; *texture* classes share one shape and one colour distribution and differ in a pattern finer than an
indoor voxel; *typical* classes have both a shape and a texture that is usual for them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.datasets.rooms import STYLES, Pose, Room, RoomKey, build_room, camera_poses, render, scan
from ditr_cache.datasets.rooms.renderer import HEIGHT, WIDTH, focal_length
from ditr_cache.errors import DatasetError, SampleError
from ditr_cache.types import BlockPlan, Camera, SamplePlan, Scene, View

__all__ = ["SyntheticRooms"]

GENERATOR = 1
"""Counted up whenever any room changes."""

_PREFIX = "synthetic:"
_LIMITS = {"rooms": (1, 9999), "views": (1, 999), "seed": (0, 9999), "val": (0, 9999)}
_HINT = "For example: synthetic:rooms=8,views=12,seed=0,style=a,val=2"
_LOCKS = tuple(threading.Lock() for _ in range(16))


@dataclass(frozen=True, slots=True)
class _RenderedView:
    key: RoomKey
    views: int
    view: int

    def rendered(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        # where two threads want the image and the depth of one view, the second waits and finds them made
        with _LOCKS[self.view % len(_LOCKS)]:
            return _rendered(self.key, self.views, self.view)


@dataclass(frozen=True, slots=True)
class _Image(_RenderedView):
    def read(self) -> NDArray[np.uint8]:
        return self.rendered()[0].copy()


@dataclass(frozen=True, slots=True)
class _Depth(_RenderedView):
    def read(self) -> NDArray[np.float32]:
        return self.rendered()[1].copy()


@lru_cache(maxsize=4)
def _furnished(key: RoomKey, views: int) -> tuple[Room, tuple[Pose, ...]]:
    room = build_room(key)
    return room, tuple(camera_poses(room, key, views))


@lru_cache(maxsize=8)
def _rendered(key: RoomKey, views: int, view: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    room, poses = _furnished(key, views)
    return render(room, poses[view], key.rng("sensor", views, view))


@dataclass(frozen=True, slots=True)
class _Settings:
    rooms: int = 8
    views: int = 12
    seed: int = 0
    style: str = "a"
    val: int = 2


class SyntheticRooms:
    """Reader of `synthetic:` sources.

    Args:
        source: `synthetic:`, optionally followed by comma-separated settings: `rooms` (8), `views` a room (12), `seed`
            (0), `style` (`a` or `b`, two data sets with different classes), `val` (how many of the rooms, the last
            ones, are the validation split; a quarter by default).

    Raises:
        DatasetError: If a setting is unknown or out of range.
    """

    name = "synthetic"
    preset = "synthetic"

    def __init__(self, source: str) -> None:
        self._settings = _parse(source)

    def __repr__(self) -> str:
        return f"SyntheticRooms({_PREFIX + self._parameters!r})"

    @property
    def _parameters(self) -> str:
        s = self._settings
        return f"rooms={s.rooms},views={s.views},seed={s.seed},style={s.style},val={s.val}"

    @property
    def version(self) -> str:
        """All parameters and the version of the generator."""
        return f"{self._parameters},generator={GENERATOR}"

    @property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """The style's classes under `segment`."""
        return {"segment": STYLES[self._settings.style].class_names}

    @property
    def label_maps(self) -> Mapping[str, Mapping[int, int]]:
        """Empty: points are generated with training labels."""
        return {}

    @property
    def families(self) -> Mapping[str, tuple[str, ...]]:
        """Class names by family: `structure`, `shape`, `texture`, `typical`."""
        return STYLES[self._settings.style].class_families

    def plan(self) -> tuple[BlockPlan, ...]:
        """One block and one sample a room."""
        s = self._settings
        names = tuple(f"{view:04d}" for view in range(s.views))
        blocks = []
        for index in range(s.rooms):
            sample = self._sample_id(index)
            split = "val" if index >= s.rooms - s.val else "train"
            blocks.append(BlockPlan(sample, (SamplePlan(sample, split, names),)))
        return tuple(blocks)

    def load(self, sample_id: str) -> Scene:
        """One room. Views render when they are read, about 0.06 s each.

        Raises:
            SampleError: If there is no such room.
        """
        s = self._settings
        index = next((i for i in range(s.rooms) if self._sample_id(i) == sample_id), None)
        if index is None:
            raise SampleError(
                "there is no such room", where=sample_id, hint=f"This source is {_PREFIX}{self._parameters}"
            )
        key = RoomKey(s.seed, s.style, index)
        room, poses = _furnished(key, s.views)
        views = tuple(
            View(f"{i:04d}", _camera(pose), _Image(key, s.views, i), _Depth(key, s.views, i))
            for i, pose in enumerate(poses)
        )
        return Scene(sample_id, scan(room, key), views)

    def _sample_id(self, index: int) -> str:
        return f"room-{self._settings.style}-{self._settings.seed:04d}-{index:04d}"


def _camera(pose: Pose) -> Camera:
    f = focal_length()
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = pose.rotation.T
    world_to_camera[:3, 3] = -pose.rotation.T @ pose.position
    intrinsics = np.array([[f, 0, WIDTH / 2], [0, f, HEIGHT / 2], [0, 0, 1]])
    return Camera(intrinsics, world_to_camera, HEIGHT, WIDTH)


def _parse(source: str) -> _Settings:
    if source != _PREFIX.rstrip(":") and not source.startswith(_PREFIX):
        raise DatasetError(f"a source of generated rooms starts with {_PREFIX!r}", where=source, hint=_HINT)
    given: dict[str, Any] = {}
    for item in filter(None, source[len(_PREFIX) :].split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key in given or key not in {"style", *_LIMITS}:
            problem = "is given twice" if key in given else "is not a setting of generated rooms"
            raise DatasetError(f"{item.strip()!r} {problem}", where=source, hint=_HINT)
        given[key] = _style(value, source) if key == "style" else _number(key, value, source)
    rooms = given.setdefault("rooms", 8)
    given.setdefault("val", max(rooms // 4, int(rooms > 1)))
    if given["val"] > rooms:
        raise DatasetError(f"val={given['val']} is more than rooms={rooms}", where=source, hint=_HINT)
    return _Settings(**given)


def _style(value: str, source: str) -> str:
    if value not in STYLES:
        raise DatasetError(f"style is one of {', '.join(STYLES)}, not {value!r}", where=source, hint=_HINT)
    return value


def _number(key: str, value: str, source: str) -> int:
    low, high = _LIMITS[key]
    if not (value.isascii() and value.isdigit() and len(value) <= len(str(high)) and low <= int(value) <= high):
        raise DatasetError(f"{key} is a number from {low} to {high}, not {value!r}", where=source, hint=_HINT)
    return int(value)
