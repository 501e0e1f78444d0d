# SPDX-License-Identifier: Apache-2.0
"""Elastic distortion: the blur and the interpolation against slow ones, the flow against what it is for."""

import itertools
import math

import numpy as np
import pytest
from clouds import cloud, rng
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.errors import SampleError
from ditr_cache.training.transforms import ElasticDistortion
from ditr_cache.training.transforms.elastic import interpolate, smooth


def slow_smooth(noise):
    for _ in range(2):
        padded = np.pad(noise.astype(np.float64), ((1, 1), (1, 1), (1, 1), (0, 0)))
        x, y, z, _ = noise.shape
        noise = sum(padded[i : i + x, j : j + y, k : k + z] for i, j, k in itertools.product(range(3), repeat=3)) / 27
    return noise


def slow_interpolate(grid, position):
    out = np.zeros(3)
    base = np.minimum(np.floor(position), np.array(grid.shape[:3]) - 2).astype(int)
    f = position - base
    for corner in itertools.product((0, 1), repeat=3):
        weight = np.prod([f[a] if c else 1 - f[a] for a, c in enumerate(corner)])
        out += weight * grid[tuple(base + corner)]
    return out


@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 7, 3), (9, 5, 6)])
def test_smooth_is_two_box_blurs_with_zeros_outside(shape):
    noise = np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)
    kept = noise.copy()
    np.testing.assert_allclose(smooth(noise), slow_smooth(noise), atol=1e-6)
    np.testing.assert_array_equal(noise, kept)


@settings(deadline=None)
@given(shape=st.tuples(*[st.integers(2, 6)] * 3), seed=st.integers(0, 99))
def test_interpolation_is_trilinear(shape, seed):
    r = np.random.default_rng(seed)
    grid = r.normal(size=(*shape, 3)).astype(np.float32)
    ends = np.array(list(itertools.product(*[(0, s - 1) for s in shape])))
    inside = np.concatenate([r.random((20, 3)) * (np.array(shape) - 1), ends]).astype(np.float32)
    expected = [slow_interpolate(grid.astype(np.float64), p) for p in inside.astype(np.float64)]
    np.testing.assert_allclose(interpolate(grid, inside), expected, atol=1e-5)


def test_more_points_than_a_slice():
    r = np.random.default_rng(0)
    grid, inside = r.normal(size=(5, 6, 7, 3)).astype(np.float32), (r.random((9000, 3)) * [4, 5, 6]).astype(np.float32)
    whole = interpolate(grid, inside)
    np.testing.assert_array_equal(whole[4000:5000], interpolate(grid, inside[4000:5000]))


def test_one_pass_by_its_definition():
    before = cloud(60)
    after = ElasticDistortion(distortion_params=((0.5, 2.0),), p=1)(before, rng("e"))
    r = rng("e")
    r.random()
    low, high = before.coord.min(0).astype(np.float64), before.coord.max(0).astype(np.float64)
    nodes = np.floor((high - low) / 0.5).astype(int) + 3
    noise = slow_smooth(r.standard_normal((*nodes, 3), np.float32))
    flow = [slow_interpolate(noise, (p - low) / 0.5 + 1) for p in before.coord.astype(np.float64)]
    np.testing.assert_allclose(after.coord, before.coord + 2.0 * np.array(flow), atol=1e-4)


def test_passes_follow_one_another_and_probability_counts():
    before = cloud(60)
    two = ElasticDistortion(p=1)
    first = ElasticDistortion(distortion_params=two.distortion_params[:1], p=1)(before, rng("p"))
    assert np.abs(two(before, rng("p")).coord - first.coord).max() > 0.01
    applied = sum(ElasticDistortion()(before, rng(i)) is not before for i in range(1000))
    assert abs(applied / 1000 - 0.95) < 6 * math.sqrt(0.0475 / 1000)


def test_near_points_move_alike_and_the_flow_has_no_direction():
    near = cloud(2).replace(coord=np.array([[0, 0, 0], [0.01, 0, 0], [3, 2, 1]], np.float32))
    transform = ElasticDistortion(distortion_params=((0.2, 0.4),), p=1)
    moves = np.array([transform(near, rng(i)).coord - near.coord for i in range(1000)])
    spread = moves.std((0, 1))
    assert np.abs(moves[:, 0] - moves[:, 1]).std() < 0.1 * spread.mean()
    assert (np.abs(moves.mean((0, 1))) < 6 * spread / math.sqrt(2000)).all()


def test_a_cloud_that_spans_too_much_is_refused_before_memory_is():
    far = cloud(2).replace(coord=np.array([[0, 0, 0], [1e5, 1e5, 1e5]], np.float32))
    with pytest.raises(SampleError, match="strays"):
        ElasticDistortion(p=1)(far, rng())
    assert len(ElasticDistortion(p=1)(cloud(0), rng())) == 0
    assert np.isfinite(ElasticDistortion(p=1)(cloud(1), rng()).coord).all()
