# SPDX-License-Identifier: Apache-2.0
"""Against analytic answers and against a float64 version of the rule, with room for float32 at the borders."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ditr_cache.config import VisibilityConfig
from ditr_cache.errors import FrameError
from ditr_cache.geometry import find_hits, visibility
from ditr_cache.geometry.camera import distort, lens_radius
from ditr_cache.types import Camera

ORIGIN = np.zeros(3)
# 64 x 48 pixels, focal length 100, looking along +z
CAMERA = Camera(np.array([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]]), np.eye(4), 48, 64)
GRID = (6, 8)
FRUSTUM = VisibilityConfig(depth_margin=None)


def find_one(coord, camera=CAMERA, depth=None, rule=FRUSTUM, grid=GRID, origin=ORIGIN):
    (hits,) = find_hits(np.asarray(coord, np.float32).reshape(-1, 3), origin, [camera], [depth], [grid], rule)
    assert hits.point.dtype == hits.patch.dtype == np.int32
    assert hits.point.shape == hits.patch.shape
    return hits


def at_pixel(u, v, z):
    return ((u - 32) / 100 * z, (v - 24) / 100 * z, z)


def test_pixels_and_patches():
    hits = find_one([at_pixel(0.5, 0.5, 2), at_pixel(63.5, 0.5, 1), at_pixel(0.5, 47.5, 3), at_pixel(17, 41, 2)])
    assert hits.point.tolist() == [0, 1, 2, 3]
    assert hits.patch.tolist() == [0, 7, 40, 5 * 8 + 2]


def test_borders_are_half_open():
    # z = 1, u = 100 x + 32 with u = 0 and v = 0 exact in float32
    camera = replace(CAMERA, intrinsics=np.array([[64.0, 0, 32], [0, 64, 24], [0, 0, 1]]))
    inside = [(-0.5, 0, 1), (0, -0.375, 1), (0.499, 0, 1), (0, 0.374, 1)]
    outside = [(0.5, 0, 1), (0, 0.375, 1), (-0.501, 0, 1), (0, -0.376, 1)]
    assert find_one(inside + outside, camera).point.tolist() == [0, 1, 2, 3]


def test_points_behind_and_in_the_plane_of_the_camera_are_not_seen():
    assert len(find_one([(0, 0, -1), (0, 0, 0), (1, 0, 0), (0, 0, -0.0)]).point) == 0


@given(st.integers(1, 4000), st.integers(1, 300), st.data())
def test_a_pixel_on_the_border_of_patches_belongs_to_the_next_one(size, count, data):
    border = size * data.draw(st.integers(1, count)) / count
    u = np.array([np.nextafter(np.float32(border), np.float32(0)), np.float32(border)])
    u = np.append(u, np.float32(size)) if border < size else u
    camera = replace(CAMERA, width=size)
    expected = [int(Fraction(float(x)) * count / size) for x in u]
    assert visibility._cell(np.stack([u, np.zeros_like(u)]), camera, 1, count).tolist() == expected


def test_depth_range_is_strict():
    rule = VisibilityConfig(min_depth=1, max_depth=4, depth_margin=None)
    assert find_one([at_pixel(30, 20, z) for z in (1.0, 1.001, 3.999, 4.0)], rule=rule).point.tolist() == [1, 2]


def test_depth_margin_is_inclusive_and_invalid_depth_hides():
    depth = np.zeros((48, 64), np.float32)
    depth[10, 10:16] = 2, 2, 0, np.nan, np.inf, -2
    points = [at_pixel(10.5, 10.5, z) for z in (1.5, 2.5, 1.49, 2.51)]
    points += [at_pixel(x + 0.5, 10.5, 0.4) for x in (12, 13, 14, 15)]
    rule = VisibilityConfig(depth_margin=0.5)
    assert find_one(points, depth=depth, rule=rule).point.tolist() == [0, 1]
    assert len(find_one(points, depth=depth, rule=FRUSTUM).point) == len(points)
    assert len(find_one(points, depth=None, rule=rule).point) == len(points)


@pytest.mark.parametrize("shape", [(24, 32), (96, 128), (7, 5), (1, 1)])
def test_depth_of_another_resolution(shape):
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 3, shape).astype(np.float32)
    u, v = rng.uniform(0.01, 63.99, 500), rng.uniform(0.01, 47.99, 500)
    looked_up = depth[(v * shape[0] / 48).astype(int), (u * shape[1] / 64).astype(int)]
    points = np.stack(at_pixel(u, v, looked_up + 0.05), axis=1)
    assert len(find_one(points, depth=depth, rule=VisibilityConfig(depth_margin=0.051)).point) == 500


@pytest.mark.parametrize(
    "depth", [np.zeros((0, 4), np.float32), np.zeros(4, np.float32), np.zeros((2, 2, 1), np.float32)]
)
def test_a_depth_map_without_pixels_is_refused(depth):
    with pytest.raises(FrameError, match="shape"):
        find_one([(0, 0, 1)], depth=depth, rule=VisibilityConfig())


def test_nothing_in_nothing_out():
    assert find_hits(np.zeros((0, 3), np.float32), ORIGIN, [], [], [], FRUSTUM) == []
    assert find_hits(np.zeros((5, 3), np.float32), ORIGIN, [], [], [], FRUSTUM) == []
    depth = np.ones((48, 64), np.float32)
    for zbuffer in (False, True):
        rule = VisibilityConfig(zbuffer=zbuffer)
        for coord in (np.zeros((0, 3)), np.full((3, 3), -1.0)):
            assert len(find_one(coord, rule=rule).point) == 0
            assert len(find_one(coord, depth=depth, rule=rule).point) == 0


def test_as_many_depths_and_grids_as_cameras():
    with pytest.raises(ValueError, match="zip"):
        find_hits(np.zeros((1, 3), np.float32), ORIGIN, [CAMERA], [], [GRID], FRUSTUM)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_points_and_poses_that_are_not_finite_see_nothing(bad):
    pose = np.eye(4)
    pose[:3] = bad
    assert len(find_one([(0, 0, 1)], replace(CAMERA, world_to_camera=pose)).point) == 0
    with np.errstate(over="ignore"):
        points = np.array([(0, 0, 1), (bad, 0, 1), (0, bad, 1), (0, 0, bad)], np.float32)
    assert find_one(points, rule=VisibilityConfig(zbuffer=True)).point.tolist() == [0]


def test_an_origin_far_away_costs_no_precision():
    origin = np.array([4.1e5, 5.3e6, 120.0])
    pose = np.eye(4)
    pose[:3, 3] = -origin
    points = [at_pixel(8 * i + 0.01, 0.01, 5) for i in range(8)]
    hits = find_one(points, replace(CAMERA, world_to_camera=pose), origin=origin)
    assert hits.patch.tolist() == list(range(8))


def test_points_outside_the_lens_do_not_fold_back():
    # r (1 - 0.3 r^2) returns to 0 at r = 1.83: such a point would land on the principal point
    camera = replace(CAMERA, distortion=np.array([-0.3, 0, 0, 0, 0, 0, 0, 0]))
    folded = np.sqrt(1 / 0.3)
    assert find_one([(0, 0, 1), (folded, 0, 1), (0, -folded, 1), (0.1, 0.1, 1)], camera).point.tolist() == [0, 3]


def test_zbuffer_hides_what_is_behind():
    rule = VisibilityConfig(zbuffer=True, zbuffer_margin=0.5, zbuffer_cell=8)
    points = [at_pixel(1, 1, 2), at_pixel(7, 7, 2.4), at_pixel(7, 7, 2.6), at_pixel(9, 1, 9), at_pixel(63, 47, 5)]
    assert find_one(points, rule=rule).point.tolist() == [0, 1, 3, 4]
    assert len(find_one(points, rule=VisibilityConfig()).point) == 5


def test_zbuffer_counts_what_is_too_near_to_be_seen():
    rule = VisibilityConfig(zbuffer=True, min_depth=1, zbuffer_margin=0.5)
    assert len(find_one([at_pixel(1, 1, 0.5), at_pixel(1, 1, 3)], rule=rule).point) == 0


def test_zbuffer_leaves_views_with_a_depth_test_alone():
    depth = np.full((48, 64), 3, np.float32)
    points = [at_pixel(1, 1, 1), at_pixel(1, 1, 3)]
    rule = VisibilityConfig(zbuffer=True)
    assert find_one(points, depth=depth, rule=rule).point.tolist() == [1]
    assert find_one(points, depth=depth, rule=rule.model_copy(update={"depth_margin": None})).point.tolist() == [0]


@dataclass
class Case:
    coord: np.ndarray
    origin: np.ndarray
    cameras: list
    depths: list
    grids: list


def random_case(seed, points=300, views=3, with_depth=True, lens=0.0, far_origin=False):
    rng = np.random.default_rng(seed)
    coord = rng.uniform(-4, 4, (points, 3)).astype(np.float32)
    origin = rng.uniform(-1e6, 1e6, 3) * far_origin
    cameras, depths, grids = [], [], []
    for view in range(views):
        rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        rotation[0] *= np.sign(np.linalg.det(rotation))
        pose = np.eye(4)
        pose[:3, :3] = rotation
        pose[:3, 3] = rng.uniform(-2, 2, 3) - rotation @ origin
        height, width = rng.integers(8, 200, 2).tolist()
        fx, fy = rng.uniform(0.4, 2, 2) * width
        skew = rng.uniform(-1, 1)
        k = np.array([[fx, skew, rng.uniform(0.3, 0.7) * width], [0, fy, rng.uniform(0.3, 0.7) * height], [0, 0, 1]])
        strength = np.array([0.3, 0.1, 0.01, 0.01, 0.05, 0.1, 0.05, 0.02])
        cameras.append(Camera(k, pose, height, width, lens * strength * rng.uniform(-1, 1, 8)))
        shape = (height, width) if view == 0 else tuple(rng.integers(1, 90, 2))
        depth = rng.uniform(0.3, 6, shape).astype(np.float32)
        depth[rng.random(shape) < 0.1] = rng.choice([0, np.nan, np.inf])
        depths.append(depth if with_depth and view < 2 else None)
        grids.append(tuple(rng.integers(1, 60, 2).tolist()))
    return Case(coord, origin, cameras, depths, grids)


def oracle(case, view, rule):
    """(visible, patch, doubtful) of all points, float64; doubtful where float32 may decide otherwise."""
    camera, depth, (rows, columns) = case.cameras[view], case.depths[view], case.grids[view]
    pose = camera.world_to_camera
    x, y, z = pose[:3, :3] @ (case.coord.astype(np.float64) + case.origin).T + pose[:3, 3:]
    believed = np.ones_like(z, bool)
    doubt = np.zeros_like(z, bool)
    x, y = x / z, y / z
    if camera.distortion.any():
        radius, limit = np.hypot(x, y), lens_radius(camera)
        believed, doubt = radius <= limit, np.abs(radius - limit) < 1e-3 * limit
        x, y = distort(x, y, camera.distortion)
    u, v, _ = camera.intrinsics @ np.stack([x, y, np.ones_like(x)])
    tolerance = 1e-3 + 2e-5 * camera.intrinsics.max() / np.abs(z)

    def near(value, *borders):
        return np.any([np.abs(value - border) < tolerance for border in borders], axis=0)

    def near_step(value, steps, size):
        scaled = value * steps / size
        return np.abs(scaled - scaled.round()) < tolerance * steps / size

    far = np.inf if rule.max_depth is None else rule.max_depth
    visible = believed & (z > rule.min_depth) & (z < far)
    visible &= (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    doubt |= near(u, 0, camera.width) | near(v, 0, camera.height)
    doubt |= np.abs(z - rule.min_depth) < 1e-4
    doubt |= np.abs(z - far) < 1e-4
    safe_u, safe_v = np.where(visible, u, 0), np.where(visible, v, 0)
    if depth is not None and rule.depth_margin is not None:
        height, width = depth.shape
        row, column = (safe_v * height / camera.height).astype(int), (safe_u * width / camera.width).astype(int)
        measured = depth[row, column].astype(np.float64)
        visible &= np.isfinite(measured) & (measured > 0) & (np.abs(z - measured) <= rule.depth_margin)
        doubt |= near_step(u, width, camera.width) | near_step(v, height, camera.height)
        doubt |= np.abs(np.abs(z - measured) - rule.depth_margin) < 1e-4
    patch = (safe_v * rows / camera.height).astype(int) * columns + (safe_u * columns / camera.width).astype(int)
    doubt |= near_step(u, columns, camera.width) | near_step(v, rows, camera.height)
    return visible, patch, doubt


rules = st.builds(
    VisibilityConfig,
    min_depth=st.sampled_from([0.0, 0.5]),
    max_depth=st.sampled_from([None, 4.0]),
    depth_margin=st.sampled_from([None, 0.2, 1.0]),
)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), rules, st.booleans(), st.sampled_from([0.0, 0.0, 1.0]), st.booleans())
@example(0, VisibilityConfig(max_depth=4.0, depth_margin=1.0), True, 1.0, True)
def test_agrees_with_float64(seed, rule, with_depth, lens, far_origin):
    case = random_case(seed, with_depth=with_depth, lens=lens, far_origin=far_origin)
    with np.errstate(all="ignore"):
        expected = [oracle(case, view, rule) for view in range(3)]
    found = find_hits(case.coord, case.origin, case.cameras, case.depths, case.grids, rule)
    for (visible, patch, doubt), hits, (rows, columns) in zip(expected, found, case.grids, strict=True):
        assert (np.diff(hits.point) > 0).all()
        assert ((hits.patch >= 0) & (hits.patch < rows * columns)).all()
        seen = np.zeros(len(case.coord), bool)
        seen[hits.point] = True
        np.testing.assert_array_equal(seen[~doubt], visible[~doubt])
        sure = ~doubt[hits.point]
        np.testing.assert_array_equal(hits.patch[sure], patch[hits.point][sure])


def test_the_oracle_is_sure_of_most_points_and_sees_many():
    case = random_case(1)
    rule = VisibilityConfig(depth_margin=1.0)
    with np.errstate(all="ignore"):
        visible, _, doubt = (np.stack(x) for x in zip(*[oracle(case, v, rule) for v in range(3)], strict=True))
    assert doubt.mean() < 0.05
    assert (visible & ~doubt).sum() > 20


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(0, 3))
def test_zbuffer_keeps_the_nearest_of_every_cell_and_what_is_within_the_margin(seed, cell, margin):
    case = random_case(seed, with_depth=False)
    rule = VisibilityConfig(zbuffer=True, zbuffer_cell=cell, zbuffer_margin=margin)
    for camera, grid in zip(case.cameras, case.grids, strict=True):
        # one patch a z-buffer cell, so that plain projection says which points share one
        cells = (-(-camera.height // cell), -(-camera.width // cell))
        padded = replace(camera, height=cells[0] * cell, width=cells[1] * cell)
        inside = find_one(case.coord, camera, rule=FRUSTUM, origin=case.origin).point
        cell_of = dict(zip(*(x.tolist() for x in _columns(find_one(case.coord, padded, grid=cells))), strict=True))
        z = (camera.world_to_camera[:3, :3] @ case.coord.T + camera.world_to_camera[:3, 3:])[2]
        nearest: dict[int, float] = {}
        for point in inside.tolist():
            nearest[cell_of[point]] = min(nearest.get(cell_of[point], np.inf), z[point])
        behind = {point: z[point] - nearest[cell_of[point]] for point in inside.tolist()}
        kept = set(find_one(case.coord, camera, rule=rule, grid=grid).point.tolist())
        assert {p for p, b in behind.items() if b <= margin - 1e-4 or b == 0} <= kept
        assert kept <= {p for p, b in behind.items() if b <= margin + 1e-4}


def _columns(hits):
    return hits.point, hits.patch


def test_batches_threads_views_and_memory_order_change_nothing(monkeypatch):
    case = random_case(3, points=5000, lens=1.0)
    case.cameras[0] = replace(case.cameras[0], distortion=np.zeros(8))
    rule = VisibilityConfig(depth_margin=1.0, zbuffer=True)

    def run(coord=case.coord):
        return find_hits(coord, case.origin, case.cameras, case.depths, case.grids, rule)

    def alone(view):
        (hits,) = find_hits(
            case.coord, case.origin, [case.cameras[view]], [case.depths[view]], [case.grids[view]], rule
        )
        return hits

    expected = run()
    assert min(len(h.point) for h in expected) > 5
    with ThreadPoolExecutor(4) as pool:
        others = [
            list(pool.map(alone, range(3))),
            *pool.map(lambda _: run(), range(8)),
            run(np.asfortranarray(case.coord)),
        ]
    for batch in (7, 1024, 4999, 5000):
        monkeypatch.setattr(visibility, "BATCH", batch)
        others.append(run())
    for other in others:
        for a, b in zip(expected, other, strict=True):
            np.testing.assert_array_equal(a.point, b.point)
            np.testing.assert_array_equal(a.patch, b.patch)


def test_points_on_integer_pixels_fall_where_float64_puts_them():
    # as points fused from depth maps do; float32 alone misplaces two thirds of these
    rng = np.random.default_rng(0)
    case = random_case(5, views=1, with_depth=False)
    camera = replace(case.cameras[0], height=480, width=640)
    pixels = np.stack([rng.integers(0, 641, 20_000), rng.integers(0, 481, 20_000), np.ones(20_000)])
    plane = np.linalg.inv(camera.intrinsics) @ pixels * rng.uniform(1, 4, 20_000)
    rotation, shift = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3:]
    coord = (rotation.T @ (plane - shift)).T.astype(np.float32)
    x, y, z = camera.intrinsics @ (rotation @ coord.T.astype(np.float64) + shift)
    u, v = x / z, y / z
    seen = np.flatnonzero((u >= 0) & (u < 640) & (v >= 0) & (v < 480))
    hits = find_one(coord, camera, grid=(480, 640))
    assert (hits.point == seen).all()
    assert (hits.patch == v[seen].astype(int) * 640 + u[seen].astype(int)).all()


def test_temporary_memory_is_bounded():
    coord = np.random.default_rng(0).uniform(-1, 1, (1_000_000, 3)).astype(np.float32, order="F")
    coord[:, 2] += 3
    tracemalloc.start()
    try:
        find_one(coord, grid=GRID)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 48 * len(coord)
