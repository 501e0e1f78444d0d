# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditr_cache.geometry import check_camera
from ditr_cache.geometry.camera import Projector, distort, lens_radius
from ditr_cache.types import Camera

CAMERA = Camera(np.array([[100.0, 0, 32], [0, 90, 24], [0, 0, 1]]), np.eye(4), 48, 64)


def changed(matrix, index, value):
    matrix = np.array(matrix, np.float64)
    matrix[index] = value
    return matrix


def posed(index, value):
    return replace(CAMERA, world_to_camera=changed(CAMERA.world_to_camera, index, value))


def seen_through(index, value):
    return replace(CAMERA, intrinsics=changed(CAMERA.intrinsics, index, value))


def test_a_good_camera_passes():
    assert check_camera(CAMERA) is None


@pytest.mark.parametrize(
    ("camera", "reason"),
    [
        (replace(CAMERA, world_to_camera=np.full((4, 4), -np.inf)), "pose is not finite"),
        (posed((0, 3), np.nan), "pose is not finite"),
        (replace(CAMERA, world_to_camera=np.eye(3)), "pose has shape (3, 3), not (4, 4)"),
        (posed((3, 0), 0.1), "last row of the pose is not 0 0 0 1"),
        (posed((0, 0), 1.1), "pose is not a rotation and a translation"),
        (posed((0, 0), 1e200), "pose is not a rotation and a translation"),
        (posed((0, 1), 0.1), "pose is not a rotation and a translation"),
        (replace(CAMERA, world_to_camera=np.zeros((4, 4))), "last row of the pose is not 0 0 0 1"),
        (posed((2, 2), -1.0), "pose mirrors the scene"),
        (seen_through((0, 2), np.inf), "intrinsics are not finite"),
        (replace(CAMERA, intrinsics=np.eye(4)), "intrinsics have shape (4, 4), not (3, 3)"),
        (seen_through((0, 0), 0.0), "focal length 0, 90 is not positive"),
        (seen_through((1, 1), -90.0), "focal length 100, -90 is not positive"),
        (replace(CAMERA, intrinsics=changed([[100, 9000, 1], [1, 90, 1], [0, 0, 1]], (0, 0), 100)), "singular"),
        (seen_through((2, 2), 2.0), "last row of the intrinsics is not 0 0 1"),
        (replace(CAMERA, distortion=np.full(8, np.nan)), "distortion is not finite"),
        (replace(CAMERA, distortion=np.zeros(5)), "distortion has shape (5,), not (8,)"),
        (replace(CAMERA, width=0), "image size 48x0 is not positive"),
        (replace(CAMERA, height=-1), "image size -1x64 is not positive"),
    ],
)
def test_a_bad_camera_says_why(camera, reason):
    assert reason in (check_camera(camera) or "")


def test_a_rotation_written_with_three_digits_passes():
    angle = 0.3
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).round(3)
    pose = np.eye(4)
    pose[:2, :2] = rotation
    assert check_camera(replace(CAMERA, world_to_camera=pose)) is None


def test_the_origin_moves_into_the_translation_exactly():
    camera = replace(posed((slice(0, 3), 3), [-4.1e5, -5.3e6, 0]), intrinsics=np.eye(3))
    rows = Projector.build(camera, np.array([4.1e5, 5.3e6, 2.0]), 0, 1).rows_34
    np.testing.assert_array_equal(rows, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("distortion", [np.zeros(8), np.array([-0.3, 0.1, 0.01, -0.01, 0, 0, 0, 0])])
def test_projects_in_the_dtype_of_the_points(dtype, distortion):
    camera = replace(CAMERA, distortion=distortion)
    xyz = np.array([[0, 0.1, 0.335], [0, -0.1, 0], [2, 1, 1]], dtype)
    x, y = distort(xyz[0] / xyz[2], xyz[1] / xyz[2], distortion)
    projector = Projector.build(camera, np.zeros(3), 0, np.inf)
    inside, uvz = projector.find(xyz, slack=0)
    assert uvz.dtype == dtype
    assert inside.tolist() == np.flatnonzero(100 * x + 32 < 64).tolist() == [0, 1]
    np.testing.assert_allclose(uvz, np.stack([100 * x + 32, 90 * y + 24, xyz[2]])[:, inside], rtol=1e-6)
    assert projector.find(xyz, slack=2)[0].tolist() == [0, 1, 2]
    placed, is_inside = projector.place(xyz)
    assert placed.dtype == dtype
    assert is_inside.tolist() == [True, True, False]
    np.testing.assert_array_equal(placed[:, inside], uvz)


def test_each_lens_coefficient_against_the_formula_by_hand():
    x, y = np.array([0.2]), np.array([-0.1])  # r^2 = 0.05
    unit = np.eye(8)
    expected = {
        0: (0.2 * 1.05, -0.1 * 1.05),
        1: (0.2 * 1.0025, -0.1 * 1.0025),
        2: (0.2 - 0.04, -0.1 + 0.05 + 0.02),
        3: (0.2 + 0.05 + 0.08, -0.1 - 0.04),
        4: (0.2 * 1.000125, -0.1 * 1.000125),
        5: (0.2 / 1.05, -0.1 / 1.05),
        6: (0.2 / 1.0025, -0.1 / 1.0025),
        7: (0.2 / 1.000125, -0.1 / 1.000125),
    }
    for i, (u, v) in expected.items():
        got = distort(x, y, unit[i])
        np.testing.assert_allclose(np.ravel(got), (u, v), rtol=1e-12, err_msg=f"coefficient {i}")


def test_the_lens_radius_ends_where_the_polynomial_turns():
    # r (1 - 0.3 r^2) grows up to r^2 = 1 / 0.9 and is then 0.70, inside a wide image
    camera = replace(CAMERA, width=400, height=400, distortion=np.array([-0.3, 0, 0, 0, 0, 0, 0, 0]))
    assert lens_radius(camera) == pytest.approx(np.sqrt(1 / 0.9), rel=5e-3)
    assert lens_radius(camera) <= np.sqrt(1 / 0.9) + 1e-9


small = st.floats(-0.4, 0.4)


@given(st.tuples(small, small, st.floats(-0.01, 0.01), st.floats(-0.01, 0.01), small, small, small, small))
def test_nothing_beyond_the_lens_radius_could_be_in_the_image_before_the_turn(coefficients):
    camera = replace(CAMERA, distortion=np.array(coefficients))
    limit = lens_radius(camera)
    assert 0 <= limit <= 600
    radius = np.linspace(limit * 1e-3, limit, 500)
    radial = np.hypot(*distort(radius, np.zeros_like(radius), np.array([*coefficients[:2], 0, 0, *coefficients[4:]])))
    assert (np.diff(radial) > 0).all()
