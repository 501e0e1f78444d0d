# SPDX-License-Identifier: Apache-2.0
"""An independent float64 projection, and writers of tiny data sets that tests then damage."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

IDENTITY = np.eye(4).tolist()


@pytest.fixture(scope="session")
def project():
    """(points, camera) -> u, v, z of every point and whether it lies in the frustum."""

    def function(points, camera):
        world = points.coord.astype(np.float64) + points.origin
        xyz = world @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
        uvw = xyz @ camera.intrinsics.T
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = uvw[:, 0] / uvw[:, 2], uvw[:, 1] / uvw[:, 2]
        inside = (xyz[:, 2] > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
        return u, v, xyz[:, 2], inside

    return function


@pytest.fixture(scope="session")
def counts():
    """Label array -> {text of label: number of points}, as expected.json has it."""

    def function(labels):
        return {str(k): int(n) for k, n in zip(*np.unique(labels, return_counts=True), strict=True)}

    return function


def encode(array, form):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def ply_bytes():
    """Structured array -> binary PLY, little-endian, with a face element behind the vertices."""
    words = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int", "u2": "ushort"}

    def function(vertices, count=None, order="little"):
        sign = {"little": "<", "big": ">"}[order]
        names = [f"property {words[vertices.dtype[n].str[1:]]} {n}" for n in vertices.dtype.names]
        header = ["ply", f"format binary_{order}_endian 1.0", "comment made for a test"]
        header += [f"element vertex {len(vertices) if count is None else count}", *names]
        header += ["element face 1", "property list uchar int vertex_indices", "end_header", ""]
        return "\n".join(header).encode() + vertices.astype(vertices.dtype.newbyteorder(sign)).tobytes() + b"\0"

    return function


@pytest.fixture(scope="session")
def vertices():
    """Keyword columns -> structured array with float x, y, z."""

    def function(xyz, **columns):
        xyz = np.asarray(xyz, columns.pop("dtype", np.float32)).reshape(-1, 3)
        columns = {"x": xyz[:, 0], "y": xyz[:, 1], "z": xyz[:, 2]} | {k: np.asarray(v) for k, v in columns.items()}
        out = np.empty(len(xyz), [(name, column.dtype) for name, column in columns.items()])
        for name, column in columns.items():
            out[name] = column
        return out

    return function


@pytest.fixture
def write_capture(tmp_path, vertices, ply_bytes):
    """Write a nerfstudio folder of three 8 x 6 frames; `frames` and `settings` are laid over the defaults."""

    def function(name="room", frames=None, points=None, **settings):
        folder = tmp_path / "captures" / name
        (folder / "images").mkdir(parents=True)
        (folder / "depths").mkdir()
        for i in range(3):
            (folder / f"images/{i}.jpg").write_bytes(encode(np.full((6, 8, 3), i, np.uint8), "JPEG"))
            (folder / f"depths/{i}.png").write_bytes(encode(np.full((6, 8), 1000 + i, np.uint16), "PNG"))
        given = [
            {"file_path": f"images/{i}.jpg", "depth_file_path": f"depths/{i}.png", "transform_matrix": IDENTITY}
            for i in range(3)
        ]
        for i, frame in (frames or {}).items():
            given[i] = {k: v for k, v in (given[i] | frame).items() if v is not ...}
        document = {"camera_model": "OPENCV", "fl_x": 5.0, "fl_y": 6.0, "cx": 4.0, "cy": 3.0, "w": 8, "h": 6}
        document |= {"ply_file_path": "points.ply", "frames": given} | settings
        (folder / "transforms.json").write_text(json.dumps(document))
        points = vertices([[0, 0, -1], [0.1, 0, -2]], label=np.array([0, 1], np.int32)) if points is None else points
        (folder / "points.ply").write_bytes(ply_bytes(points))
        return folder

    return function


@pytest.fixture(scope="session")
def sens_bytes():
    """A `.sens` recording of `frames` 4 x 2 images with 2 x 1 depth maps."""

    def function(frames=3, poses=None, depth=None, promised=None, version=4, color_code=2, depth_code=1, shift=1000.0):
        eye = np.eye(4, dtype="<f4").tobytes()
        parts = [struct.pack("<IQ", version, 3), b"abc", eye * 4]
        parts.append(struct.pack("<iiIIIIf", color_code, depth_code, 4, 2, 2, 1, shift))
        parts.append(struct.pack("<Q", frames if promised is None else promised))
        for i in range(frames):
            color = encode(np.full((2, 4, 3), i, np.uint8), "JPEG")
            raw = np.array([0, 1500 + i], "<u2").tobytes() if depth is None else depth
            packed = zlib.compress(raw) if depth_code == 1 else raw
            pose = np.eye(4) if poses is None else poses[i]
            parts += [np.asarray(pose, "<f4").tobytes(), struct.pack("<4Q", i, i, len(color), len(packed))]
            parts += [color, packed]
        return b"".join([*parts, struct.pack("<Q", 0)])

    return function
