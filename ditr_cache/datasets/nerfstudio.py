# SPDX-License-Identifier: Apache-2.0
"""Captures in nerfstudio's layout: a `transforms.json`, images, depth maps and a point cloud a scene.

What is read, as the format's own documentation has it:

- `transform_matrix`: camera to world, OpenGL axes (y up, looking along -z), metres. `applied_transform` is part of the
  poses and of the point cloud already, so it is left alone.
- intrinsics globally or in a frame, which wins; perspective camera models with OpenCV's distortion.
- `depth_file_path` with `depth_unit_scale_factor` (default 0.001: millimetres).
- `ply_file_path`: x, y, z, and where there are any red, green, blue, nx, ny, nz, an integer `label` (or `segment`, or
  `class`) and an integer `instance`.
- `train_filenames`, `val_filenames`, `test_filenames`: a scene is one sample, so the longest list names its split.

A file `classes.txt` beside the scenes, one name a line, names the labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ditr_cache.datasets.arrays import checked, labels
from ditr_cache.datasets.cameras import inverse, matrix, unusable_view
from ditr_cache.datasets.files import DepthPng, FileImage, inside, plain_name, read_json
from ditr_cache.datasets.ply import cloud, read_vertices
from ditr_cache.errors import DatasetError, SampleError
from ditr_cache.types import BlockPlan, Camera, DepthSource, Float64, PointCloud, SamplePlan, Scene, View

__all__ = ["Nerfstudio"]

_PERSPECTIVE = {"OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"}
_DISTORTION = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
_LABELS = ("label", "segment", "class")
_OPENGL_TO_OPENCV = np.array([1.0, -1.0, -1.0, 1.0])  # a factor for each column: y and z change sides
_MAX_SIDE = 65_536
_MAX_NAME = 512  # characters, what a store can hold


class Nerfstudio:
    """One folder with a `transforms.json`, or a folder of many such; each is a block of one sample.

    Args:
        source: The folder.

    Raises:
        DatasetError: If there is no `transforms.json`.
    """

    name = "nerfstudio"
    version = "transforms.json"
    preset = "nerfstudio"

    def __init__(self, source: str | Path) -> None:
        self._source = Path(source).resolve()
        self._folders = {plain_name(folder.name, source): folder for folder in _scenes(self._source)}
        if not self._folders:
            raise DatasetError("no transforms.json in this folder or in one below it", where=source)

    @classmethod
    def evidence(cls, source: Path) -> str | None:
        """What in `source` speaks for this layout."""
        scenes = _scenes(source)
        return f"found {(scenes[0] / 'transforms.json').relative_to(source)}" if scenes else None

    @property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """From `classes.txt`; empty without it."""
        path = self._source / "classes.txt"
        if not path.is_file():
            return {}
        return {
            "segment": tuple(line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip())
        }

    @property
    def label_maps(self) -> Mapping[str, Mapping[int, int]]:
        """Empty: the files hold training labels."""
        return {}

    def plan(self) -> tuple[BlockPlan, ...]:
        """One block a scene; of many scenes, an unreadable one is planned without views and fails when loaded.

        Raises:
            DatasetError: If the only scene is unreadable.
        """
        return tuple(BlockPlan(scene, (self._plan(scene),)) for scene in self._folders)

    def _plan(self, scene: str) -> SamplePlan:
        try:
            capture = _read_capture(self._folders[scene])
        except SampleError:
            if len(self._folders) == 1:
                raise
            return SamplePlan(scene, "train", ())
        return SamplePlan(scene, _split(capture), tuple(_view_names(capture)))

    def load(self, sample_id: str) -> Scene:
        """Points and lazy views of one scene.

        Raises:
            SampleError: If the scene is unknown, its transforms.json or point cloud unusable.
            OSError: If the medium fails.
        """
        folder = self._folders.get(sample_id)
        if folder is None:
            raise SampleError(f"no scene {sample_id!r}", where=self._source)
        capture = _read_capture(folder)
        names = _view_names(capture)
        views = tuple(_view(folder, capture, name, frame) for name, frame in zip(names, capture["frames"], strict=True))
        return Scene(sample_id, _points(folder, capture, self.class_names), views)


def _scenes(source: Path) -> list[Path]:
    if (source / "transforms.json").is_file():
        return [source]
    return sorted(path.parent for path in source.glob("*/transforms.json"))


def _read_capture(folder: Path) -> dict[str, Any]:
    path = folder / "transforms.json"
    try:
        capture = read_json(path)
    except DatasetError as error:
        raise SampleError(error.what, where=error.where) from error
    frames = capture.get("frames") if isinstance(capture, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise SampleError("no list of frames", where=path)
    if not frames:
        raise SampleError("the list of frames is empty", where=path)
    return dict(capture)


def _view_names(capture: Mapping[str, Any]) -> list[str]:
    """`file_path` of every frame; nameless and repeated ones are told apart by their position."""
    names: list[str] = []
    seen: set[str] = set()
    for i, frame in enumerate(capture["frames"]):
        name = frame.get("file_path")
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable() or name in seen:
            name = f"frames[{i}]"
            while name in seen:
                name += "'"
        names.append(name)
        seen.add(name)
    return names


def _split(capture: Mapping[str, Any]) -> str:
    lists = {split: capture.get(f"{split}_filenames") for split in ("train", "val", "test")}
    lengths = {split: len(names) if isinstance(names, list) else 0 for split, names in lists.items()}
    return max(lengths, key=lambda split: lengths[split])  # the first of equals, so `train` without any list


def _view(folder: Path, capture: Mapping[str, Any], name: str, frame: Mapping[str, Any]) -> View:
    if frame.get("file_path") != name:
        return unusable_view(
            name, f"file_path {frame.get('file_path')!r:.200} is missing, repeated, overlong or unprintable"
        )
    try:
        image = FileImage(inside(folder, name))
        camera = _camera({**capture, **frame}, name)
        depth: DepthSource | None = None
        if frame.get("depth_file_path") is not None:
            scale = _number({**capture, **frame}, "depth_unit_scale_factor", 0.001)
            depth = DepthPng(inside(folder, frame["depth_file_path"]), scale)
    except DatasetError as error:
        return unusable_view(name, error.what)
    return View(name, camera, image, depth)


def _camera(settings: Mapping[str, Any], name: str) -> Camera:
    """The camera of a frame whose settings are laid over the global ones."""
    model = settings.get("camera_model", "OPENCV")
    if model not in _PERSPECTIVE:
        raise DatasetError(f"camera model {model!r:.80} is not a perspective one")
    fx = _number(settings, "fl_x")
    fy = _number(settings, "fl_y", fx if model.startswith("SIMPLE") else None)
    intrinsics = np.array([[fx, 0, _number(settings, "cx")], [0, fy, _number(settings, "cy")], [0, 0, 1]])
    distortion = np.array([_number(settings, key, 0.0) for key in _DISTORTION])
    if distortion[5] != 0 and not {"k5", "k6"} <= settings.keys():
        raise DatasetError("k4 without k5 and k6: nerfstudio's fourth radial term is not in OpenCV's model")
    width, height = (_number(settings, key) for key in ("w", "h"))
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE and width.is_integer() and height.is_integer()):
        raise DatasetError(f"image size {width} x {height} is impossible")
    world_to_camera = inverse(_opencv_pose(settings.get("transform_matrix"), name))
    return Camera(intrinsics, world_to_camera, int(height), int(width), distortion)


def _opencv_pose(value: Any, name: str) -> Float64:
    if isinstance(value, list) and len(value) == 3:
        value = [*value, [0.0, 0.0, 0.0, 1.0]]
    pose: Float64 = matrix(value, (4, 4), f"transform_matrix of {name}") * _OPENGL_TO_OPENCV
    return pose


def _number(settings: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DatasetError(f"{key} is missing" if value is None else f"{key} is not a number")
    try:
        return float(value)
    except OverflowError:
        raise DatasetError(f"{key} is not a number") from None


def _points(folder: Path, capture: Mapping[str, Any], class_names: Mapping[str, tuple[str, ...]]) -> PointCloud:
    relative = capture.get("ply_file_path")
    if relative is None:
        raise SampleError("no points: ply_file_path is missing", where=folder / "transforms.json")
    try:
        path = inside(folder, relative)
    except DatasetError as error:
        raise SampleError(error.what, where=error.where, hint=error.hint) from error
    vertices_N = read_vertices(path)
    points = cloud(vertices_N, path)
    names = vertices_N.dtype.names or ()
    key = next((key for key in _LABELS if key in names), None)
    classes = len(class_names["segment"]) if "segment" in class_names else None
    segments = {"segment": labels(vertices_N[key], path, classes)} if key else {}
    instance = labels(vertices_N["instance"], path) if "instance" in names else None
    colored = PointCloud(points.coord, points.origin, points.color, points.normal, segments=segments, instance=instance)
    return checked(colored, path)
