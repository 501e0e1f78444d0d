# SPDX-License-Identifier: Apache-2.0
"""Dropout and crop: how many stay, and which."""

import math

import numpy as np
import pytest
from clouds import cloud, rng
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.training.transforms import RandomDropout, SphereCrop


def test_dropout_keeps_an_exact_share_and_every_point_alike():
    before = cloud(200)
    kept = np.zeros(200)
    applied = 0
    for i in range(2000):
        after = RandomDropout(dropout_ratio=0.3, dropout_application_ratio=0.6)(before, rng(i))
        if after is before:
            continue
        assert len(after) == 140
        assert (np.diff(after.point) > 0).all()
        kept[after.point] += 1
        applied += 1
    assert abs(applied / 2000 - 0.6) < 6 * math.sqrt(0.24 / 2000)
    expected = 0.7 * applied
    np.testing.assert_allclose(kept, expected, atol=6 * math.sqrt(expected * 0.3))


def test_listed_points_are_not_dropped():
    listed = np.arange(200) % 50 == 0
    before = cloud(200).replace(listed=listed)
    for i in range(20):
        after = RandomDropout(dropout_ratio=0.5, dropout_application_ratio=1)(before, rng(i))
        assert after.listed.sum() == 4
        assert 100 <= len(after) <= 104
        np.testing.assert_array_equal(after.listed, listed[after.point])


@settings(deadline=None)
@given(n=st.integers(1, 300), limit=st.integers(1, 300), seed=st.integers(0, 99), ties=st.booleans())
def test_sphere_crop_keeps_the_nearest(n, limit, seed, ties):
    before = cloud(n, seed)
    if ties:
        before = before.replace(coord=np.round(before.coord))
    after = SphereCrop(point_max=limit)(before, rng(seed))
    if n <= limit:
        assert after is before
        return
    assert len(after) == limit
    assert (np.diff(after.point) > 0).all()
    center = before.coord[int(rng(seed).integers(n))]
    distance = ((before.coord - center) ** 2).sum(1)
    left_out = np.setdiff1d(np.arange(n), after.point)
    assert distance[after.point].max() <= distance[left_out].min() + 1e-5


def test_sphere_crop_around_the_middle_point_or_by_share():
    before = cloud(101)
    after = SphereCrop(sample_rate=0.3, mode="center")(before, rng())
    distance = np.linalg.norm(before.coord - before.coord[50], axis=1)
    np.testing.assert_array_equal(after.point, np.sort(np.argsort(distance)[:30]))


@pytest.mark.parametrize("n", [0, 1])
def test_tiny_clouds_survive(n):
    assert len(RandomDropout(dropout_application_ratio=1)(cloud(n), rng())) == 0
    assert len(SphereCrop()(cloud(n), rng())) == n
