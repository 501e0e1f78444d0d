# SPDX-License-Identifier: Apache-2.0
"""nuScenes from its own JSON tables: keyframes with six cameras, ego-motion compensated, and lidarseg labels.

The world of a sample is the lidar frame at the time of the lidar. A camera is reached through lidar -> ego (at lidar
time) -> global -> ego (at camera time) -> camera, all in float64: global coordinates are kilometres.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from ditr_cache.datasets.arrays import checked, lookup, read_raw, relative_to_origin
from ditr_cache.datasets.cameras import chain, inverse, unusable_view
from ditr_cache.datasets.files import FileImage, inside
from ditr_cache.datasets.nuscenes_labels import CLASSES, LIDARSEG_TO_16, split_of
from ditr_cache.datasets.nuscenes_tables import CAMERAS, LIDAR, Capture, Tables, read_tables
from ditr_cache.errors import DatasetError, SampleError
from ditr_cache.types import BlockPlan, Camera, Float64, Int32, PointCloud, SamplePlan, Scene, View

__all__ = ["NuScenes"]


class NuScenes:
    """nuScenes keyframes; a block is a scene.

    Args:
        source: The folder with `samples/` and one `v1.0-*`, or the `v1.0-*` folder itself where there are several.

    Raises:
        DatasetError: If there is no version, or several.
    """

    name = "nuscenes"
    preset = "nuscenes"

    def __init__(self, source: str | Path) -> None:
        self._source = Path(source).resolve()
        versions = _versions(self._source)
        if not versions:
            raise DatasetError("no v1.0-*/sample_data.json in this folder", where=source)
        if len(versions) > 1:
            raise DatasetError(
                f"several versions: {', '.join(folder.name for folder in versions)}",
                where=source,
                hint=f"Name one as the source, e.g. {Path(source) / versions[0].name}",
            )
        self._folder = versions[0]
        self._root = self._folder.parent
        self.version = self._folder.name

    @classmethod
    def evidence(cls, source: Path) -> str | None:
        """What in `source` speaks for this layout."""
        versions = _versions(source)
        return f"found {versions[0].name}/sample_data.json" if versions else None

    @property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """The 16 lidarseg classes."""
        return {"segment": CLASSES}

    @property
    def label_maps(self) -> Mapping[str, Mapping[int, int]]:
        """The official map of 32 ids to 16 classes."""
        return {"segment": LIDARSEG_TO_16}

    def plan(self) -> tuple[BlockPlan, ...]:
        """One block a scene, its keyframes in recording order.

        Raises:
            DatasetError: If the tables are damaged.
        """
        return tuple(
            BlockPlan(scene, tuple(self._plan(scene, token) for token in tokens))
            for scene, tokens in self._tables.scenes.items()
        )

    def _plan(self, scene: str, token: str) -> SamplePlan:
        present = self._tables.captures.get(token, {})
        views = tuple(channel for channel in CAMERAS if channel in present)
        return SamplePlan(f"{scene}/{token}", split_of(self.version, scene), views)

    def load(self, sample_id: str) -> Scene:
        """Points in the lidar frame and the six images of one keyframe.

        Raises:
            SampleError: If the keyframe is unknown or its lidar data unusable.
            DatasetError: If the tables are damaged.
            OSError: If the medium fails.
        """
        scene, _, token = sample_id.partition("/")
        if token not in self._tables.scenes.get(scene, ()):
            raise SampleError(f"no keyframe {sample_id!r}", where=self._folder)
        captures = self._tables.captures.get(token, {})
        lidar = captures.get(LIDAR)
        if lidar is None:
            raise SampleError(f"keyframe {sample_id} has no {LIDAR} data", where=self._folder)
        try:
            lidar_to_global = self._sensor_to_global(lidar)
            points = self._points(lidar)
        except DatasetError as error:
            raise SampleError(error.what, where=error.where, hint=error.hint) from error
        views = [self._view(captures[channel], channel, lidar_to_global) for channel in CAMERAS if channel in captures]
        return Scene(sample_id, points, tuple(views))

    @cached_property
    def _tables(self) -> Tables:
        return read_tables(self._folder)

    def _sensor_to_global(self, capture: Capture) -> Float64:
        ego_to_global = self._tables.ego_to_global.get(capture.ego_pose)
        if ego_to_global is None:
            raise DatasetError(f"no ego pose {capture.ego_pose}", where=self._folder / "ego_pose.json")
        return chain(ego_to_global, self._tables.sensors[capture.calibration].sensor_to_ego)

    def _view(self, capture: Capture, channel: str, lidar_to_global: Float64) -> View:
        intrinsics = self._tables.sensors[capture.calibration].intrinsics
        if intrinsics is None:
            return unusable_view(channel, f"{self.version}/calibrated_sensor.json: {channel} has no intrinsics")
        try:
            image = FileImage(inside(self._root, capture.filename))
            world_to_camera = chain(inverse(self._sensor_to_global(capture)), lidar_to_global)
        except DatasetError as error:
            return unusable_view(channel, str(error))
        return View(channel, Camera(intrinsics, world_to_camera, capture.height, capture.width), image)

    def _points(self, lidar: Capture) -> PointCloud:
        path = inside(self._root, lidar.filename)
        rows_N5 = read_raw(path, "<f4", 5)  # x, y, z, intensity, ring
        coord_N3, origin = relative_to_origin(rows_N5[:, :3], path)
        segments: dict[str, Int32] = {}
        if lidar.token in self._tables.lidarseg:
            label_path = inside(self._root, self._tables.lidarseg[lidar.token])
            raw_N = read_raw(label_path, "u1", 1)[:, 0]
            if raw_N.size and raw_N.max() > max(LIDARSEG_TO_16):
                raise SampleError(f"label {raw_N.max()} is not one of lidarseg's 32", where=label_path)
            segments["segment"] = lookup(LIDARSEG_TO_16, raw_N)
        return checked(PointCloud(coord_N3, origin, strength=rows_N5[:, 3].copy(), segments=segments), path)


def _versions(source: Path) -> list[Path]:
    if source.name.startswith("v1.0-") and (source / "sample_data.json").is_file():
        return [source]
    return sorted(path.parent for path in source.glob("v1.0-*/sample_data.json"))
