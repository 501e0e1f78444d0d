# SPDX-License-Identifier: Apache-2.0
"""Procedurally generated rooms: textures, solids, furniture, layout, renderer and scanner."""

from ditr_cache.datasets.rooms.cameras import camera_poses
from ditr_cache.datasets.rooms.cast import Pose
from ditr_cache.datasets.rooms.layout import Room, RoomKey, build_room
from ditr_cache.datasets.rooms.renderer import label_map, render
from ditr_cache.datasets.rooms.scanner import scan
from ditr_cache.datasets.rooms.styles import STYLES, Style

__all__ = ["STYLES", "Pose", "Room", "RoomKey", "Style", "build_room", "camera_poses", "label_map", "render", "scan"]
