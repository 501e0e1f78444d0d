# SPDX-License-Identifier: Apache-2.0
"""Voxelisation against dictionaries, and the invariants of fragments."""

import math
from collections import defaultdict

import numpy as np
import pytest
from clouds import cloud, rng
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.errors import SampleError
from ditr_cache.training.transforms import GridSample, fragments
from ditr_cache.training.transforms.grid_sample import _sort

CLOUDS = st.builds(cloud, n=st.integers(1, 200), seed=st.integers(0, 99))
SIZES = st.sampled_from([0.02, 0.3, 1.0, 50.0])


def voxels(sample, size):
    """Voxel -> its points, in their order."""
    cell = np.floor(sample.coord / np.float32(size)).astype(int)
    cell -= cell.min(0)
    found = defaultdict(list)
    for i, key in enumerate(map(tuple, cell.tolist())):
        found[key].append(i)
    return found


@settings(deadline=None)
@given(before=CLOUDS, size=SIZES, keep=st.sampled_from(["random", "first"]))
def test_one_point_of_every_voxel(before, size, keep):
    expected = voxels(before, size)
    after = GridSample(grid_size=size, keep=keep)(before, rng())
    assert after.grid_coord.dtype == np.int32
    assert sorted(map(tuple, after.grid_coord.tolist())) == sorted(expected)
    for cell, point in zip(map(tuple, after.grid_coord.tolist()), after.point.tolist(), strict=True):
        assert point in expected[cell]
        assert keep == "random" or point == expected[cell][0]
    np.testing.assert_array_equal(after.coord, before.coord[after.point])


@settings(deadline=None)
@given(before=CLOUDS, size=SIZES, share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_listed_points_stand_for_their_voxels(before, size, share):
    listed = np.random.default_rng(0).random(len(before)) < share
    after = GridSample(grid_size=size)(before.replace(listed=listed), rng())
    expected = voxels(before, size)
    assert sorted(map(tuple, after.grid_coord.tolist())) == sorted(expected)
    for cell, point in zip(map(tuple, after.grid_coord.tolist()), after.point.tolist(), strict=True):
        assert point in expected[cell]
        assert listed[point] == listed[expected[cell]].any()


def test_every_listed_point_of_a_voxel_alike():
    before = cloud(6)
    before = before.replace(coord=np.abs(before.coord), listed=np.array([0, 1, 1, 0, 1, 0], bool))
    chosen = [int(GridSample(grid_size=50)(before, rng(i)).point[0]) for i in range(900)]
    count = np.bincount(chosen, minlength=6)
    np.testing.assert_allclose(count, [0, 300, 300, 0, 300, 0], atol=6 * math.sqrt(200))


@settings(deadline=None)
@given(before=CLOUDS, size=SIZES)
def test_the_first_point_stands_for_its_voxel(before, size):
    after = GridSample(grid_size=size, keep="first")(before, rng())
    assert len(after.inverse) == len(before)
    for points in voxels(before, size).values():
        assert {int(after.point[after.inverse[i]]) for i in points} == {points[0]}
    np.testing.assert_array_equal(after.full_segment, before.segment)


@settings(deadline=None)
@given(before=CLOUDS, fine=SIZES, coarse=SIZES)
def test_the_inverse_goes_through_two_voxelisations(before, fine, coarse):
    once = GridSample(grid_size=fine, keep="first")(before, rng())
    twice = GridSample(grid_size=coarse, keep="first")(once, rng())
    assert len(twice.inverse) == len(before)
    np.testing.assert_array_equal(twice.full_segment, before.segment)
    cell = np.floor(once.coord / np.float32(coarse)).astype(int)
    cell -= cell.min(0)
    np.testing.assert_array_equal(twice.grid_coord[twice.inverse], cell[once.inverse])


@settings(deadline=None)
@given(before=CLOUDS, size=SIZES)
def test_fragments_have_every_voxel_once_and_together_every_point(before, size):
    whole = GridSample(grid_size=size, keep="all")(before, rng())
    np.testing.assert_array_equal(whole.point, before.point)
    expected = voxels(before, size)
    parts = fragments(whole)
    assert len(parts) == max(map(len, expected.values()))
    assert set(np.concatenate(parts).tolist()) == set(range(len(before)))
    for i, part in enumerate(parts):
        assert sorted(part.tolist()) == sorted(points[i % len(points)] for points in expected.values())


def test_any_point_of_a_voxel_is_chosen_alike():
    before = cloud(7).replace(coord=np.linspace(0, 0.9, 21).reshape(7, 3).astype(np.float32))
    counts = np.zeros(7)
    for i in range(7000):
        counts[GridSample(grid_size=1.0)(before, rng(i)).point] += 1
    np.testing.assert_allclose(counts, 1000, atol=6 * math.sqrt(1000 * 6 / 7))


@settings(deadline=None)
@given(keys=st.lists(st.integers(0, 20) | st.integers(0, 2**62), min_size=1, max_size=50))
def test_sorting_is_stable_for_small_and_huge_keys(keys):
    keys = np.array(keys, np.int64)
    order, values = _sort(keys)
    np.testing.assert_array_equal(order, np.argsort(keys, kind="stable"))
    np.testing.assert_array_equal(values, np.sort(keys))


def test_what_cannot_be_voxelised_is_refused():
    with pytest.raises(SampleError, match="no points"):
        GridSample()(cloud(0), rng())
    for bad in (np.nan, np.inf, 1e6):
        sample = cloud(5)
        sample.coord[2, 1] = bad
        with pytest.raises(SampleError, match="too far apart"):
            GridSample()(sample, rng())
