# SPDX-License-Identifier: Apache-2.0
"""The part of nuScenes' JSON tables that keyframes need.

`sample_data.json` and `ego_pose.json` of the full data set hold 2.6 million records each, most of them sweeps; records
are reduced or dropped while they are parsed, so that memory grows with the keyframes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ditr_cache.datasets.cameras import matrix, rigid
from ditr_cache.datasets.files import plain_name, read_json
from ditr_cache.errors import DatasetError
from ditr_cache.types import Float64

__all__ = ["CAMERAS", "LIDAR", "Capture", "Sensor", "Tables", "read_tables"]

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
"""In the official order, on which "the last view wins" depends."""
LIDAR = "LIDAR_TOP"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Capture:
    """One keyframe recording of one sensor (a record of `sample_data`)."""

    token: str
    sample: str
    calibration: str
    ego_pose: str
    filename: str
    height: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Sensor:
    """A calibrated sensor."""

    channel: str
    sensor_to_ego: Float64
    """`[4, 4]` metres."""
    intrinsics: Float64 | None
    """`[3, 3]`; None for the lidar."""


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Keyframes and what belongs to them."""

    scenes: Mapping[str, tuple[str, ...]]
    """Sample tokens by scene name, in recording order."""
    captures: Mapping[str, Mapping[str, Capture]]
    """Captures by sample token and channel."""
    sensors: Mapping[str, Sensor]
    """By calibration token."""
    ego_to_global: Mapping[str, Float64]
    """`[4, 4]` by ego pose token."""
    lidarseg: Mapping[str, str]
    """Label file by lidar capture token; empty without lidarseg."""


def read_tables(folder: Path) -> Tables:
    """The tables of one version (`v1.0-mini`, ...).

    Raises:
        DatasetError: If a table is missing, is no list of records, or a record is incomplete.
        OSError: If the medium fails.
    """
    channels = dict(_read(folder / "sensor.json", lambda r: (str(r["token"]), str(r["channel"]))))
    sensors = {
        token: Sensor(channels.get(sensor, ""), pose, intrinsics)
        for token, sensor, pose, intrinsics in _read(folder / "calibrated_sensor.json", _calibration)
    }
    wanted = {token for token, sensor in sensors.items() if sensor.channel in {LIDAR, *CAMERAS}}
    captures: dict[str, dict[str, Capture]] = {}
    ego_tokens: set[str] = set()
    for capture in _read(folder / "sample_data.json", lambda record: _capture(record, wanted)):
        captures.setdefault(capture.sample, {})[sensors[capture.calibration].channel] = capture
        ego_tokens.add(capture.ego_pose)

    def ego_pose(record: Mapping[str, Any]) -> tuple[str, Float64] | None:
        return (record["token"], _rigid(record)) if record["token"] in ego_tokens else None

    lidarseg = folder / "lidarseg.json"
    return Tables(
        scenes=_scenes(folder),
        captures=captures,
        sensors=sensors,
        ego_to_global=dict(_read(folder / "ego_pose.json", ego_pose)),
        lidarseg=dict(_read(lidarseg, lambda r: (r["sample_data_token"], r["filename"]))) if lidarseg.is_file() else {},
    )


def _read(path: Path, keep: Callable[[dict[str, Any]], T | None]) -> Iterator[T]:
    """What `keep` makes of the records of a table, without those it drops."""
    records = read_json(path, keep)
    if not isinstance(records, list) or not all(isinstance(record, tuple | Capture | None) for record in records):
        raise DatasetError("not a list of records", where=path)
    return (record for record in records if record is not None)


def _scenes(folder: Path) -> dict[str, tuple[str, ...]]:
    path = folder / "scene.json"
    names = dict(_read(path, lambda r: (str(r["token"]), plain_name(r["name"], path))))
    if len(set(names.values())) != len(names):
        raise DatasetError("a scene name is there twice", where=path)
    path = folder / "sample.json"
    samples = _read(path, lambda r: (r["scene_token"], int(r["timestamp"]), plain_name(r["token"], path)))
    tokens: dict[str, list[str]] = {name: [] for name in names.values()}
    seen: set[str] = set()
    for scene, _, token in sorted(samples, key=lambda sample: sample[1]):
        if scene not in names or token in seen:
            raise DatasetError(f"sample {token} belongs to no scene, or is there twice", where=path)
        seen.add(token)
        tokens[names[scene]].append(token)
    return {name: tuple(of_scene) for name, of_scene in tokens.items() if of_scene}


def _capture(record: Mapping[str, Any], wanted: set[str]) -> Capture | None:
    if record["is_key_frame"] is not True or record["calibrated_sensor_token"] not in wanted:
        return None
    return Capture(
        token=str(record["token"]),
        sample=str(record["sample_token"]),
        calibration=str(record["calibrated_sensor_token"]),
        ego_pose=str(record["ego_pose_token"]),
        filename=record["filename"],
        height=int(record["height"]),
        width=int(record["width"]),
    )


def _calibration(record: Mapping[str, Any]) -> tuple[str, str, Float64, Float64 | None]:
    token, intrinsic = str(record["token"]), record["camera_intrinsic"]
    intrinsics = matrix(intrinsic, (3, 3), f"camera_intrinsic of {token}") if intrinsic else None
    return token, str(record["sensor_token"]), _rigid(record), intrinsics


def _rigid(record: Mapping[str, Any]) -> Float64:
    where = f"pose {record['token']}"
    rotation, translation = matrix(record["rotation"], (4,), where), matrix(record["translation"], (3,), where)
    return rigid(rotation, translation)
