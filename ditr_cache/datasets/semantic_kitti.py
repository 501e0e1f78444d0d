# SPDX-License-Identifier: Apache-2.0
"""SemanticKITTI: `dataset/sequences/XX/{velodyne,labels,image_2,calib.txt}`.

The world of a sample is its lidar frame. A pixel of `image_2` is P2 Tr x; P2 = K [I | t] with t = K^-1 P2[:, 3], so the
camera is moved by t exactly (the official code divides by the diagonal of P2, which is off by up to 0.7 pixels).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ditr_cache.datasets.arrays import checked, lookup, read_raw, relative_to_origin
from ditr_cache.datasets.cameras import chain, inverse, matrix, unusable_view
from ditr_cache.datasets.files import FileImage, image_size, ordinary_file
from ditr_cache.errors import DatasetError, FrameError, SampleError
from ditr_cache.types import BlockPlan, Camera, Float64, Int32, PointCloud, SamplePlan, Scene, View

__all__ = ["CLASSES", "LEARNING_MAP", "SemanticKitti"]

SCANS_A_BLOCK = 50
CLASSES = (
    *("car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist", "road"),
    *("parking", "sidewalk", "other-ground", "building", "fence", "vegetation", "trunk", "terrain", "pole"),
    "traffic-sign",
)
_RAW_LABELS = (
    *((10, 252), (11,), (15,), (18, 258), (13, 16, 20, 256, 257, 259), (30, 254), (31, 253), (32, 255), (40, 60)),
    *((44,), (48,), (49,), (50,), (51,), (70,), (71,), (72,), (80,), (81,)),
)
LEARNING_MAP: Mapping[int, int] = {
    **dict.fromkeys((0, 1, 52, 99), -1),
    **{raw: i for i, raws in enumerate(_RAW_LABELS) for raw in raws},
}
"""Official map of raw labels to the 19 classes; -1 is ignored."""
_VIEW = "image_2"


class SemanticKitti:
    """SemanticKITTI's scans with the left colour image; blocks are 50 consecutive scans of a sequence.

    Images may also lie in the same tree below `<root>_color`.

    Args:
        source: The folder that holds `dataset/sequences` or `sequences`, or `sequences` itself.

    Raises:
        DatasetError: If there is no sequence.
    """

    name = "semantic_kitti"
    version = "1.0"
    preset = "semantic_kitti"

    def __init__(self, source: str | Path) -> None:
        self._source = Path(source).resolve()
        sequences = _sequences(self._source)
        if not sequences:
            raise DatasetError("no dataset/sequences/XX/velodyne in this folder", where=source)
        self._sequences = {folder.name: folder for folder in sequences}

    @classmethod
    def evidence(cls, source: Path) -> str | None:
        """What in `source` speaks for this layout."""
        sequences = _sequences(source)
        return f"found {(sequences[0] / 'velodyne').relative_to(source)}" if sequences else None

    @property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """The 19 classes."""
        return {"segment": CLASSES}

    @property
    def label_maps(self) -> Mapping[str, Mapping[int, int]]:
        """The official learning map."""
        return {"segment": LEARNING_MAP}

    def plan(self) -> tuple[BlockPlan, ...]:
        """Blocks of 50 scans, named after their first."""
        blocks: list[BlockPlan] = []
        for sequence, folder in self._sequences.items():
            names = (path.name for path in (folder / "velodyne").iterdir())
            scans = sorted(name.removesuffix(".bin") for name in names if re.fullmatch(r"[0-9]+\.bin", name))
            for start in range(0, len(scans), SCANS_A_BLOCK):
                run = scans[start : start + SCANS_A_BLOCK]
                samples = tuple(SamplePlan(f"{sequence}/{scan}", _split(sequence), (_VIEW,)) for scan in run)
                blocks.append(BlockPlan(f"{sequence}-{run[0]}", samples))
        return tuple(blocks)

    def load(self, sample_id: str) -> Scene:
        """Points in the lidar frame and the left colour image of one scan.

        Raises:
            SampleError: If the scan is unknown, truncated or empty, or the calibration of its sequence unusable.
            OSError: If the medium fails.
        """
        match = re.fullmatch(r"([0-9]{2})/([0-9]+)", sample_id)
        folder = self._sequences.get(match[1]) if match else None
        if match is None or folder is None:
            raise SampleError(f"no scan {sample_id!r}", where=self._source)
        scan = match[2]
        world_to_camera, intrinsics = _calibration(folder / "calib.txt")
        image = _image_path(folder, scan)
        try:
            view = View(_VIEW, Camera(intrinsics, world_to_camera, *image_size(image)), FileImage(image))
        except FrameError as error:
            view = unusable_view(_VIEW, str(error), FileImage(image))
        return Scene(sample_id, _points(folder, scan), (view,))


def _image_path(folder: Path, scan: str) -> Path:
    """The image in the sequence's folder, else the one in the same place below `<root>_color`."""
    beside = folder / _VIEW / f"{scan}.png"
    if beside.is_file():
        return beside
    roots = [root for root in tuple(folder.parents)[:3] if root.name]
    elsewhere = (root.with_name(f"{root.name}_color") / beside.relative_to(root) for root in roots)
    return next((path for path in elsewhere if path.is_file()), beside)


def _sequences(source: Path) -> list[Path]:
    for parent in (source / "dataset" / "sequences", source / "sequences", source):
        folders = [path for path in sorted(parent.glob("[0-9][0-9]")) if (path / "velodyne").is_dir()]
        if folders:
            return folders
    return []


def _split(sequence: str) -> str:
    """Official splits: 08 validates, 11 to 21 are the hidden test, all others train."""
    return "val" if sequence == "08" else "test" if 11 <= int(sequence) <= 21 else "train"


def _calibration(path: Path) -> tuple[Float64, Float64]:
    """World-to-camera `[4, 4]` and K `[3, 3]` of the left colour camera."""
    with ordinary_file(SampleError, path):
        lines = path.read_text("utf-8", "replace").splitlines()
    rows = {key.strip(): words.split() for key, _, words in (line.partition(":") for line in lines)}
    try:
        projection, lidar_to_camera = (
            matrix([float(word) for word in rows[key]], (12,), f"{key} in {path}").reshape(3, 4) for key in ("P2", "Tr")
        )
    except KeyError as error:
        raise SampleError(f"no line {error}", where=path) from error
    except ValueError as error:  # a DatasetError is one
        raise SampleError(f"not the calibration that was expected: {error}", where=path) from error
    intrinsics = projection[:, :3].copy()
    world_to_camera = np.vstack([lidar_to_camera, [0.0, 0.0, 0.0, 1.0]])
    world_to_camera[:3, 3] += chain(inverse(intrinsics), projection[:, 3])
    return world_to_camera, intrinsics


def _points(folder: Path, scan: str) -> PointCloud:
    path = folder / "velodyne" / f"{scan}.bin"
    rows_N4 = read_raw(path, "<f4", 4)
    coord_N3, origin = relative_to_origin(rows_N4[:, :3], path)
    segments: dict[str, Int32] = {}
    instance: Int32 | None = None
    label_path = folder / "labels" / f"{scan}.label"
    if (folder / "labels").is_dir():
        raw_N = read_raw(label_path, "<u4", 1)[:, 0]
        segments["segment"] = lookup(LEARNING_MAP, raw_N & 0xFFFF)
        instance_N = (raw_N >> 16).astype(np.int32)
        instance = np.where(instance_N > 0, instance_N, np.int32(-1))  # 0 is "no instance"
    points = PointCloud(coord_N3, origin, strength=rows_N4[:, 3].copy(), segments=segments, instance=instance)
    return checked(points, path)
