# SPDX-License-Identifier: Apache-2.0
"""Shifts, rotations, scales, mirrors and noise against their stated maths."""

import math

import numpy as np
import pytest
from clouds import cloud, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ditr_cache.training.transforms import (
    CenterShift,
    PointClip,
    RandomFlip,
    RandomJitter,
    RandomRotate,
    RandomRotateTargetAngle,
    RandomScale,
)
from ditr_cache.training.transforms.base import bounds

AXES = {"x": 0, "y": 1, "z": 2}
MANY = 4000


def matrix(axis, angle):
    """Rotation by Rodrigues' formula."""
    k = np.zeros((3, 3))
    u = np.eye(3)[AXES[axis]]
    k[[0, 0, 1], [1, 2, 2]] = -u[2], u[1], -u[0]
    k -= k.T
    return np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * k @ k


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 1000])
def test_bounds_are_minimum_and_maximum(n):
    coord = cloud(n).coord
    low, high = bounds(coord)
    np.testing.assert_array_equal(low, coord.min(0))
    np.testing.assert_array_equal(high, coord.max(0))


@pytest.mark.parametrize("apply_z", [True, False])
def test_center_shift_centres_the_box_and_puts_its_floor_at_zero(apply_z):
    before = cloud()
    after = CenterShift(apply_z=apply_z)(before, rng())
    low, high = after.coord.min(0), after.coord.max(0)
    np.testing.assert_allclose((low + high)[:2], 0, atol=1e-6)
    assert low[2] == (0 if apply_z else before.coord[:, 2].min())
    np.testing.assert_allclose(after.coord - after.coord[0], before.coord - before.coord[0], atol=1e-6)


@pytest.mark.parametrize("axis", list(AXES))
@settings(deadline=None)
@given(angle=st.floats(-2, 2), center=st.none() | st.tuples(*[st.floats(-3, 3)] * 3))
def test_rotation_is_the_matrix_about_the_centre(axis, angle, center):
    before = cloud(50)
    after = RandomRotate(angle=(angle, angle), axis=axis, center=center, p=1)(before, rng())
    c = (before.coord.min(0) + before.coord.max(0)) / 2 if center is None else np.array(center)
    r = matrix(axis, angle * math.pi)
    np.testing.assert_allclose(after.coord, (before.coord - c) @ r.T + c, atol=2e-5)
    np.testing.assert_allclose(after.normal, before.normal @ r.T, atol=2e-6)
    np.testing.assert_array_equal(after.coord[:, AXES[axis]] - before.coord[:, AXES[axis]] < 1e-5, True)
    fixed = RandomRotateTargetAngle(angle=(angle,), axis=axis, center=center, p=1)(before, rng())
    np.testing.assert_array_equal(fixed.coord, after.coord)
    np.testing.assert_array_equal(fixed.normal, after.normal)


def angles(transform, n=MANY):
    """Angle about z of every application, in half turns; NaN where it did nothing."""
    point = cloud(1).replace(coord=np.array([[1, 0, 0]], np.float32), normal=np.array([[1, 0, 0]], np.float32))
    found = [transform(point, rng(i)) for i in range(n)]
    return np.array([np.nan if s is point else math.atan2(s.coord[0, 1], s.coord[0, 0]) / math.pi for s in found])


def test_angles_are_uniform_and_applied_with_their_probability():
    found = angles(RandomRotate(angle=(-0.5, 0.25), center=(0, 0, 0), p=0.3))
    applied = found[~np.isnan(found)]
    # six standard deviations of a binomial share
    assert abs(len(applied) / MANY - 0.3) < 6 * math.sqrt(0.3 * 0.7 / MANY)
    assert applied.min() >= -0.5 - 1e-6
    assert applied.max() <= 0.25 + 1e-6
    counts = np.histogram(applied, 10, (-0.5, 0.25))[0]
    assert ((counts - len(applied) / 10) ** 2 / (len(applied) / 10)).sum() < 60  # chi-square, 9 degrees: p < 1e-8


def test_target_angles_are_chosen_alike():
    found = angles(RandomRotateTargetAngle(angle=(0.5, -0.25, 0.75), center=(0, 0, 0), p=0.75))
    share = {a: np.isclose(found, a, atol=1e-5).mean() for a in (0.5, -0.25, 0.75)}
    assert all(abs(s - 0.25) < 6 * math.sqrt(0.25 * 0.75 / MANY) for s in share.values())
    assert abs(np.isnan(found).mean() - 0.25) < 6 * math.sqrt(0.25 * 0.75 / MANY)


@pytest.mark.parametrize("anisotropic", [False, True])
def test_scale_is_uniform_about_the_origin(anisotropic):
    before = cloud(4)
    transform = RandomScale(scale=(0.8, 1.4), anisotropic=anisotropic)
    factors = np.array([(transform(before, rng(i)).coord / before.coord)[0] for i in range(MANY)])
    assert factors.min() >= 0.8 - 1e-5
    assert factors.max() <= 1.4 + 1e-5
    # mean of a uniform distribution, six standard errors
    np.testing.assert_allclose(factors.mean(0), 1.1, atol=6 * 0.6 / math.sqrt(12 * MANY))
    np.testing.assert_allclose(factors.var(0), 0.6**2 / 12, rtol=0.15)
    correlation = np.corrcoef(factors.T)[0, 1]
    assert abs(correlation - (0 if anisotropic else 1)) < 0.1
    after = transform(before, rng(0))
    np.testing.assert_allclose(after.coord, before.coord * factors[0], rtol=1e-5)
    assert after.normal is before.normal


def test_flips_of_x_and_y_are_independent_and_take_the_normals_along():
    before = cloud(3)
    signs = []
    for i in range(MANY):
        after = RandomFlip(p=0.4)(before, rng(i))
        sign = after.coord[0] / before.coord[0]
        np.testing.assert_array_equal(after.coord, before.coord * sign)
        np.testing.assert_array_equal(after.normal, before.normal * sign)
        signs.append(sign)
    x, y, z = np.array(signs).T
    assert (z == 1).all()
    for share, p in (((x < 0).mean(), 0.4), ((y < 0).mean(), 0.4), (((x < 0) & (y < 0)).mean(), 0.16)):
        assert abs(share - p) < 6 * math.sqrt(p * (1 - p) / MANY)


def test_jitter_is_clipped_noise():
    before = cloud(40_000)
    delta = RandomJitter(sigma=0.005, clip=0.02)(before, rng()).coord - before.coord
    assert np.abs(delta).max() <= 0.02 + 1e-6
    assert abs(delta.mean()) < 6 * 0.005 / math.sqrt(120_000)
    assert abs(delta.std() / 0.005 - 1) < 0.02
    clipped = RandomJitter(sigma=0.02, clip=0.02)(before, rng()).coord - before.coord
    # beyond one standard deviation: 31.7 %
    assert abs((np.abs(clipped) > 0.02 - 1e-6).mean() - 0.3173) < 0.01


def test_point_clip_moves_points_onto_the_box_and_drops_none():
    before = cloud()
    after = PointClip(point_cloud_range=(0, -0.5, 0, 1, 0.5, 1))(before, rng())
    np.testing.assert_array_equal(after.coord, np.clip(before.coord, [0, -0.5, 0], [1, 0.5, 1]))
    np.testing.assert_array_equal(after.point, before.point)
    np.testing.assert_array_equal(after.index, before.index)


@pytest.mark.parametrize(
    "wrong", [lambda: RandomRotate(angle=(1, -1)), lambda: RandomScale(scale=(0, 1)), lambda: RandomFlip(p=1.5)]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        wrong()
