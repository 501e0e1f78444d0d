# SPDX-License-Identifier: Apache-2.0
"""Claim: projection with the depth test is at least 1.5x a vectorised float64 NumPy version of the same rule.

7-Scenes RedKitchen, 144,133 points, 10 views with depth maps, 30 x 40 patches; one thread, then two threads with five
views each. The claim is about the reference with all views in one array; it is also timed view by view, which spares
the caches.

    python benchmarks/projection.py
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from _harness import data_folder, environment, interleaved, write_results
from numpy.typing import NDArray
from PIL import Image
from plyfile import PlyData

from ditr_cache.config import VisibilityConfig
from ditr_cache.geometry import find_hits
from ditr_cache.types import Camera

TARGET = 1.5
GRID = (30, 40)
MIN_DEPTH, MAX_DEPTH, MARGIN = 0.5, 4.0, 0.2
RULE = VisibilityConfig(min_depth=MIN_DEPTH, max_depth=MAX_DEPTH, depth_margin=MARGIN)
ROUNDS = 31

Views = tuple[list[Camera], list[NDArray[np.float32]]]


def load(folder: Path) -> tuple[NDArray[np.float32], Views]:
    transforms = json.loads((folder / "transforms.json").read_text("utf-8"))
    vertex = PlyData.read(str(folder / "points.ply"))["vertex"]
    coord = np.stack([vertex["x"], vertex["y"], vertex["z"]], 1).astype(np.float32)
    t = transforms
    intrinsics = np.array([[t["fl_x"], 0, t["cx"]], [0, t["fl_y"], t["cy"]], [0, 0, 1.0]])
    cameras, depths = [], []
    for frame in transforms["frames"][::5]:
        pose = np.linalg.inv(np.array(frame["transform_matrix"]) @ np.diag([1.0, -1, -1, 1]))
        cameras.append(Camera(intrinsics, pose, t["h"], t["w"]))
        millimetres = np.asarray(Image.open(folder / frame["depth_file_path"]))
        depths.append(millimetres.astype(np.float32) * np.float32(t["depth_unit_scale_factor"]))
    return coord, (cameras, depths)


def reference(
    coord_N3: NDArray[np.float64], cameras: Sequence[Camera], depths: NDArray[np.float32]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]:
    """The same rule in float64 for cameras of one size; (view, point, patch) of every hit."""
    rows, columns = GRID
    height, width = cameras[0].height, cameras[0].width
    to_image = np.stack([c.intrinsics @ c.world_to_camera[:3] for c in cameras])
    uvz = to_image[:, :, :3] @ coord_N3.T
    uvz += to_image[:, :, 3:]
    z = np.ascontiguousarray(uvz[:, 2])
    with np.errstate(all="ignore"):
        u, v = uvz[:, 0] / z, uvz[:, 1] / z
    mask = (z > MIN_DEPTH) & (z < MAX_DEPTH) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    flat = np.flatnonzero(mask)
    u, v, z = u.ravel()[flat], v.ravel()[flat], z.ravel()[flat]
    view, point = np.divmod(flat, len(coord_N3))
    depth = depths.ravel()[(view * height + v.astype(np.intp)) * width + u.astype(np.intp)]
    kept = np.flatnonzero((depth > 0) & (np.abs(z - depth) <= MARGIN))
    u, v, view, point = u[kept], v[kept], view[kept], point[kept]
    patch = (v * rows / height).astype(np.int64) * columns + (u * columns / width).astype(np.int64)
    return view, point, patch


def bandwidth() -> float:
    """Bytes a second that one thread copies, read and written counted."""
    source = np.ones(32 << 20, np.float64)
    target = np.empty_like(source)
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def main() -> int:
    coord, (cameras, depths) = load(data_folder() / "nerfstudio" / "redkitchen")
    coord64, stacked = coord.astype(np.float64), np.stack(depths)
    count, origin = len(cameras), np.zeros(3)

    def ours(views: slice) -> list[NDArray[np.int32]]:
        part = cameras[views]
        hits = find_hits(coord, origin, part, depths[views], [GRID] * len(part), RULE)
        return [h.point for h in hits]

    def vectorised(views: slice) -> object:
        return reference(coord64, cameras[views], stacked[views])

    def by_view(views: slice) -> object:
        return [reference(coord64, cameras[i : i + 1], stacked[i : i + 1]) for i in range(count)[views]]

    functions: dict[str, Callable[[slice], object]] = {
        "ours": ours,
        "float64_vectorised": vectorised,
        "float64_view_by_view": by_view,
    }
    view, point, _ = reference(coord64, cameras, stacked)
    expected = np.zeros((count, len(coord)), bool)
    expected[view, point] = True
    found = np.zeros_like(expected)
    for i, hit in enumerate(ours(slice(None))):
        found[i, hit] = True
    equal = float((expected == found).mean())

    # a process that has freed an image keeps its heap; else every temporary, ours and theirs, costs page faults
    image = np.empty(30 << 20, np.uint8)
    del image

    def split(pool: Executor, function: Callable[[slice], object]) -> object:
        return list(pool.map(function, (slice(0, count // 2), slice(count // 2, count))))

    with ThreadPoolExecutor(2) as pool:
        timings = {
            "threads_1": interleaved({k: partial(f, slice(None)) for k, f in functions.items()}, ROUNDS),
            "threads_2": interleaved({k: partial(split, pool, f) for k, f in functions.items()}, ROUNDS),
        }
    touched = coord.nbytes + depths[0].nbytes + 8 * int(expected.sum()) / count
    floor_ms = touched / bandwidth() * 1e3

    ratios = {}
    print(f"{environment()['cpu']}; {len(coord):,} points x {count} views; {equal:.4%} equal to float64")
    for threads, result in timings.items():
        for name, times in result.items():
            wall, cpu = (times[k] / count * 1e3 for k in ("median", "cpu"))
            print(f"{threads} {name:22s} {wall:7.2f} ms a view, {cpu:.2f} core-ms")
        ratios[threads] = {k: r["median"] / result["ours"]["median"] for k, r in result.items() if k != "ours"}
        print(f"{threads} ratios " + ", ".join(f"{ratio:.2f}x {name}" for name, ratio in ratios[threads].items()))
    print(f"floor  {floor_ms:.3f} ms a view ({touched / 1e6:.1f} MB at the speed of a copy)")
    write_results(
        "projection",
        {
            "points": len(coord),
            "views": count,
            "equal_to_float64": equal,
            "ratios": ratios,
            "target_ratio": TARGET,
            "ms_per_view": {t: {k: r["median"] / count * 1e3 for k, r in v.items()} for t, v in timings.items()},
            "floor_ms_per_view": floor_ms,
            "seconds": timings,
        },
    )
    return 0 if all(r["float64_vectorised"] >= TARGET for r in ratios.values()) else 1


if __name__ == "__main__":
    # the reference multiplies matrices: keep its BLAS to the threads that the benchmark counts
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": "1"})
    raise SystemExit(main())
