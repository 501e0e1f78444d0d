# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ditr_cache.errors import ConfigError
from ditr_cache.fusion import factor, seen_rows
from ditr_cache.geometry import Hits


def make_hits(patches):
    return Hits(np.arange(len(patches), dtype=np.int32) * 3, np.asarray(patches, np.int32))


@st.composite
def views(draw):
    rows, columns = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    return (rows, columns), draw(st.lists(st.integers(0, rows * columns - 1), max_size=60))


@given(views(), st.booleans())
@example(((1, 1), [0, 0]), True)
@example(((2, 3), []), False)
def test_rows_are_the_seen_patches_and_every_hit_finds_its_own(view, flipped):
    grid, patches = view
    hits = make_hits(patches)
    found = factor(hits, grid, flipped)
    row, column = np.divmod(hits.patch, grid[1])
    expected = row * grid[1] + (grid[1] - 1 - column if flipped else column)
    assert (found.row_patch.dtype, found.hit_row.dtype, found.hit_point.dtype) == (np.uint16, np.uint16, np.int32)
    np.testing.assert_array_equal(found.row_patch, np.unique(expected))
    np.testing.assert_array_equal(found.row_patch[found.hit_row], expected)
    np.testing.assert_array_equal(found.hit_point, hits.point)


def test_the_largest_grid_fits_and_the_next_is_refused():
    patches = np.arange(65_536)
    found = factor(make_hits(patches), (256, 256))
    np.testing.assert_array_equal(found.hit_row, patches)
    with pytest.raises(ConfigError, match="65,536"):
        factor(make_hits([0]), (257, 256))


def test_a_patch_outside_the_grid_is_refused():
    with pytest.raises(IndexError):
        factor(make_hits([6]), (2, 3))


@pytest.mark.parametrize("flipped", [False, True])
def test_gathered_rows_are_the_dense_lookup(flipped):
    grid = (4, 5)
    patch_map_PD = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    mirrored_PD = patch_map_PD.reshape(4, 5, 7).flip(1).reshape(20, 7)
    hits = make_hits([3, 19, 3, 0, 7])
    found = factor(hits, grid, flipped)
    rows_RD = seen_rows(mirrored_PD if flipped else patch_map_PD, found.row_patch)
    assert rows_RD.shape == (4, 7)
    torch.testing.assert_close(rows_RD[found.hit_row.astype(np.int64)], patch_map_PD[hits.patch], rtol=0, atol=0)


def test_no_hits_no_rows():
    found = factor(make_hits([]), (4, 5))
    assert seen_rows(torch.zeros(20, 7), found.row_patch).shape == (0, 7)
