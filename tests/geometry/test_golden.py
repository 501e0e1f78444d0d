# SPDX-License-Identifier: Apache-2.0
"""Projection and last-view lookup of the official implementation on real sensor data; at least 99.98 % equal."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData

from ditr_cache.config import VisibilityConfig
from ditr_cache.geometry import check_camera, find_hits
from ditr_cache.types import Camera

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
REQUIRED = 0.9998

pytestmark = pytest.mark.real_data


def compare(hits, golden, visible_NV):
    """Shares of equal entries: visible, last view, last patch."""
    count = len(visible_NV)
    seen_NV = np.zeros_like(visible_NV)
    view_N, patch_N = np.full(count, -1), np.full(count, -1)
    for view, hit in enumerate(hits):
        seen_NV[hit.point, view] = True
        view_N[hit.point], patch_N[hit.point] = view, hit.patch
    shares = {
        "visible": (seen_NV == visible_NV).mean(),
        "last_view": (view_N == golden["last_view"]).mean(),
        "last_patch": (patch_N == golden["last_patch"]).mean(),
    }
    print(shares, "worst view", (seen_NV == visible_NV).mean(axis=0).min())
    return shares


def quaternion_pose(record):
    w, x, y, z = np.array(record["rotation"]) / np.linalg.norm(record["rotation"])
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = record["translation"]
    return pose


def load_nuscenes(folder, channels):
    """Lidar points; lidar-to-global; one camera a channel, from global axes."""

    def table(name):
        return json.loads((folder / "v1.0-mini" / f"{name}.json").read_text())

    sensors = {r["token"]: r["calibrated_sensor_token"] for r in table("sample_data")}
    calibration = {r["token"]: r for r in table("calibrated_sensor")}
    ego = {r["token"]: quaternion_pose(r) for r in table("ego_pose")}
    records = {r["filename"].split("/")[1]: r for r in table("sample_data")}

    def to_global(record):
        return ego[record["ego_pose_token"]] @ quaternion_pose(calibration[sensors[record["token"]]])

    lidar = records["LIDAR_TOP"]
    coord = np.fromfile(folder / lidar["filename"], np.float32).reshape(-1, 5)[:, :3]
    cameras = [
        Camera(
            np.array(calibration[records[c]["calibrated_sensor_token"]]["camera_intrinsic"]),
            np.linalg.inv(to_global(records[c])),
            records[c]["height"],
            records[c]["width"],
        )
        for c in channels
    ]
    return coord, to_global(lidar), cameras


@pytest.mark.parametrize("frame", ["lidar", "global"])
def test_nuscenes_keyframe(test_data, frame):
    golden = np.load(GOLDEN / "projection_nuscenes.npz")
    coord, to_global, cameras = load_nuscenes(test_data / "nuscenes", golden["views"].tolist())
    origin = np.zeros(3)
    if frame == "lidar":
        cameras = [Camera(c.intrinsics, c.world_to_camera @ to_global, c.height, c.width) for c in cameras]
    else:
        coord = (coord.astype(np.float64) @ to_global[:3, :3].T).astype(np.float32)
        origin = to_global[:3, 3]
    assert [check_camera(c) for c in cameras] == [None] * 6
    hits = find_hits(coord, origin, cameras, [None] * 6, [tuple(golden["grid"].tolist())] * 6, VisibilityConfig())
    shares = compare(hits, golden, golden["visible"])
    assert min(shares.values()) >= REQUIRED


def load_redkitchen(folder, frames):
    transforms = json.loads((folder / "transforms.json").read_text())
    vertex = PlyData.read(str(folder / "points.ply"))["vertex"]
    coord = np.stack([vertex["x"], vertex["y"], vertex["z"]], axis=1).astype(np.float32)
    fx, fy, cx, cy = (transforms[k] for k in ("fl_x", "fl_y", "cx", "cy"))
    intrinsics = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    by_name = {f["file_path"]: f for f in transforms["frames"]}
    cameras, depths = [], []
    for name in frames:
        pose = np.linalg.inv(np.array(by_name[name]["transform_matrix"]) @ np.diag([1.0, -1, -1, 1]))
        cameras.append(Camera(intrinsics, pose, transforms["h"], transforms["w"]))
        with Image.open(folder / by_name[name]["depth_file_path"]) as image:
            depths.append(np.asarray(image).astype(np.float32) * np.float32(transforms["depth_unit_scale_factor"]))
    return coord, cameras, depths


def test_7scenes_with_depth(test_data):
    golden = np.load(GOLDEN / "projection_7scenes.npz")
    coord, cameras, depths = load_redkitchen(test_data / "nerfstudio" / "redkitchen", golden["frames"].tolist())
    assert len(coord) == golden["n"]
    assert [check_camera(c) for c in cameras] == [None] * 10
    near, far, margin = golden["params"].tolist()
    rule = VisibilityConfig(min_depth=near, max_depth=far, depth_margin=margin)
    hits = find_hits(coord, np.zeros(3), cameras, depths, [tuple(golden["grid"].tolist())] * 10, rule)
    shares = compare(hits, golden, np.unpackbits(golden["visible"], axis=0)[: len(coord)].astype(bool))
    assert min(shares.values()) >= REQUIRED
