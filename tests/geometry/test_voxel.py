# SPDX-License-Identifier: Apache-2.0
"""Voxel keys never collide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ditr_cache.errors import SampleError
from ditr_cache.geometry.voxel import voxel_keys

small = hnp.arrays(np.int64, st.tuples(st.integers(0, 30), st.just(3)), elements=st.integers(-3, 3))
wide = hnp.arrays(np.int32, st.tuples(st.integers(0, 30), st.just(3)), elements=st.integers(-(2**19), 2**19))


@given(st.one_of(small, wide))
def test_one_key_a_voxel_rising_with_x_y_z(grid):
    keys = voxel_keys(grid)
    assert keys.dtype == np.int64
    assert (keys >= 0).all()
    by_key, by_coord = keys[:, None] < keys[None], [[tuple(a) < tuple(b) for b in grid] for a in grid]
    np.testing.assert_array_equal(by_key, np.reshape(by_coord, by_key.shape))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_ends_of_the_dtype_do_not_wrap(dtype):
    ends = np.iinfo(dtype)
    grid = np.array([[ends.max, 0, 0], [ends.max - 1, 0, 0], [ends.max - 1, 1, 0]], dtype)
    assert voxel_keys(grid).tolist() == [2, 0, 1]
    if ends.bits <= 32:
        grid = np.array([[ends.min, 0, 0], [ends.max, 0, 0]], dtype)
        assert voxel_keys(grid).tolist() == [0, ends.max - ends.min]


def test_the_largest_extent_that_fits():
    grid = np.array([[0, 0, 0], [2**21 - 2, 2**21 - 1, 2**21 - 1]])
    low, high = voxel_keys(grid)
    assert (low, high) == (0, (2**21 - 1) * 2**42 - 1)
    with pytest.raises(SampleError, match="2097152 x 2097152 x 2097152 voxels"):
        voxel_keys(grid + np.array([[0, 0, 0], [1, 0, 0]]))


def test_rounding_is_left_to_the_caller():
    with pytest.raises(TypeError, match="float64"):
        voxel_keys(np.zeros((2, 3)))
