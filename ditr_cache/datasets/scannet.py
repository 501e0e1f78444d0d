# SPDX-License-Identifier: Apache-2.0
"""ScanNet, raw or prepared (the arrangements are described in `scannet_layout`).

Points and poses share ScanNet's world; `axisAlignment` is NOT applied to either. Depth counts as registered to colour,
as in the official code: the depth-to-colour extrinsics are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ditr_cache.datasets.arrays import checked, labels, read_npy, relative_to_origin
from ditr_cache.datasets.cameras import inverse, matrix_from_text, unusable_view
from ditr_cache.datasets.files import DepthPng, FileImage, image_size
from ditr_cache.datasets.ply import cloud, read_vertices
from ditr_cache.datasets.scannet_labels import (
    CLASSES_20,
    CLASSES_200,
    NYU40_TO_20,
    RAW_TO_200,
    read_categories,
    read_labels,
)
from ditr_cache.datasets.scannet_layout import SceneFiles, find_layout
from ditr_cache.datasets.sens import read_header, read_views
from ditr_cache.errors import DatasetError, FrameError, SampleError
from ditr_cache.types import BlockPlan, Camera, Float64, PointCloud, SamplePlan, Scene, UInt8, View

__all__ = ["ScanNet"]

_MILLIMETRES = 0.001


class ScanNet:
    """ScanNet's scenes; each is a block of one sample, its views are named by their frame number.

    Args:
        source: The folder.

    Raises:
        DatasetError: If it is in none of the three arrangements.
    """

    name = "scannet"

    def __init__(self, source: str | Path) -> None:
        self._source = Path(source).resolve()
        layout = find_layout(self._source)
        if layout is None:
            raise DatasetError(
                "no ScanNet scenes in this folder",
                where=source,
                hint="Expected scans/<scene>/<scene>.sens with <scene>_vh_clean_2.ply, the same with exported color/, "
                "depth/, pose/ and intrinsic/, or {train,val,test}/<scene>/coord.npy with scannet_images beside it. "
                "Exported frames alone have no points.",
            )
        self.version = layout.version
        self._categories = read_categories(layout.categories) if layout.categories else None
        self._scenes = {scene.id: scene for scene in layout.scenes}

    @classmethod
    def evidence(cls, source: Path) -> str | None:
        """What in `source` speaks for this layout."""
        layout = find_layout(source)
        return None if layout is None else layout.evidence

    @property
    def preset(self) -> str:
        """Recordings are thinned to every 10th frame; exported frames are thinned already."""
        return "scannet_sens" if self.version == "sens" else "scannet"

    @property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """The 20 classes, and the 200 where raw categories are known."""
        has_200 = self.version == "pointcept" or self._categories is not None
        return {"segment20": CLASSES_20, **({"segment200": CLASSES_200} if has_200 else {})}

    @property
    def label_maps(self) -> Mapping[str, Mapping[int, int]]:
        """nyu40 ids and raw category ids of raw scans; Pointcept's files hold training labels."""
        if self.version == "pointcept":
            return {}
        return {"segment20": NYU40_TO_20, **({} if self._categories is None else {"segment200": RAW_TO_200})}

    def plan(self) -> tuple[BlockPlan, ...]:
        """One block a scene; a scene without readable frames is planned without views and fails when loaded."""
        return tuple(
            BlockPlan(scene.id, (SamplePlan(scene.id, scene.split, _view_names(scene)),))
            for scene in self._scenes.values()
        )

    def load(self, sample_id: str) -> Scene:
        """Points and lazy views of one scene.

        Raises:
            SampleError: If the scene is unknown or its points, recording or intrinsics are unusable.
            OSError: If the medium fails.
        """
        scene = self._scenes.get(sample_id)
        if scene is None:
            raise SampleError(f"no scene {sample_id!r}", where=self._source)
        if scene.frames is None:
            raise SampleError(f"scene {sample_id} has no exported frames", where=scene.points)
        if scene.points.suffix == ".ply":
            points = _points_from_mesh(scene.points, self._categories)
        else:
            points = _points_from_arrays(scene.points)
        views = read_views(scene.frames) if scene.frames.suffix == ".sens" else _exported_views(scene.frames)
        return Scene(sample_id, points, views)


def _view_names(scene: SceneFiles) -> tuple[str, ...]:
    if scene.frames is None:
        return ()
    if scene.frames.suffix != ".sens":
        return tuple(_exported_images(scene.frames))
    try:
        return tuple(str(i) for i in range(read_header(scene.frames).frames))
    except SampleError:
        return ()


def _points_from_mesh(mesh: Path, categories: Mapping[str, int] | None) -> PointCloud:
    points = cloud(read_vertices(mesh), mesh)
    segments, instance = read_labels(mesh, len(points), categories)
    return checked(replace(points, segments=segments, instance=instance), mesh)


def _points_from_arrays(folder: Path) -> PointCloud:
    coord_N3, origin = relative_to_origin(read_npy(folder / "coord.npy", 3), folder / "coord.npy")
    color_N3: UInt8 | None = None
    if (folder / "color.npy").is_file():
        raw_N3 = read_npy(folder / "color.npy", 3)
        if raw_N3.size and not (raw_N3.min() >= 0 and raw_N3.max() <= 255):
            raise SampleError("colours must be between 0 and 255", where=folder / "color.npy")
        color_N3 = np.round(raw_N3).astype(np.uint8)
    normal_N3 = None
    if (folder / "normal.npy").is_file():
        normal_N3 = read_npy(folder / "normal.npy", 3).astype(np.float32)
    segments = {
        name: labels(read_npy(folder / f"{name}.npy"), folder / f"{name}.npy", len(classes))
        for name, classes in (("segment20", CLASSES_20), ("segment200", CLASSES_200))
        if (folder / f"{name}.npy").is_file()
    }
    instance = None
    if (folder / "instance.npy").is_file():
        instance = labels(read_npy(folder / "instance.npy"), folder / "instance.npy")
    points = PointCloud(coord_N3, origin, color_N3, normal_N3, segments=segments, instance=instance)
    return checked(points, folder)


def _exported_images(folder: Path) -> dict[str, Path]:
    """Colour images by frame number, in numeric order."""
    if not (folder / "color").is_dir():
        return {}
    files = [path for path in (folder / "color").iterdir() if re.fullmatch(r"[0-9]+\.(jpg|jpeg|png)", path.name)]
    return {path.stem: path for path in sorted(files, key=lambda path: (int(path.stem), path.name))}


def _exported_views(folder: Path) -> tuple[View, ...]:
    images = _exported_images(folder)
    try:
        intrinsics = matrix_from_text(folder / "intrinsic" / "intrinsic_color.txt")[:3, :3]
    except FrameError as error:
        raise SampleError(error.what, where=error.where) from error
    size = _common_size(images)
    return tuple(_exported_view(folder, name, image, intrinsics, size) for name, image in images.items())


def _common_size(images: Mapping[str, Path]) -> tuple[int, int] | None:
    """Height and width of the first readable image; whether the others agree is seen when they are decoded."""
    for path in images.values():
        try:
            return image_size(path)
        except FrameError:
            continue
    return None


def _exported_view(folder: Path, name: str, image: Path, intrinsics: Float64, size: tuple[int, int] | None) -> View:
    if size is None:
        return unusable_view(name, "no colour image of this scene is readable", FileImage(image))
    try:
        pose = matrix_from_text(folder / "pose" / f"{name}.txt")
    except FrameError as error:
        return unusable_view(name, f"pose/{name}.txt: {error.what}", FileImage(image))
    depth = DepthPng(folder / "depth" / f"{name}.png", _MILLIMETRES) if (folder / "depth").is_dir() else None
    return View(name, Camera(intrinsics, inverse(pose), *size), FileImage(image), depth)
