# SPDX-License-Identifier: Apache-2.0
"""Serialisation codes: the official numbers, and what makes a curve space-filling."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ditr_cache.errors import ConfigError
from ditr_cache.geometry.curves import MAX_DEPTH, encode, serialisation_depth

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ORDERS = ("z", "z-trans", "hilbert", "hilbert-trans")
POINTS = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 2, 3], [5, 7, 2], [15, 15, 15], [3, 12, 9]]
CODES = {
    "z": [0, 4, 2, 1, 29, 414, 4095, 1701],
    "z-trans": [0, 2, 4, 1, 43, 430, 4095, 2835],
    "hilbert": [0, 7, 3, 1, 36, 178, 2925, 1276],
    "hilbert-trans": [0, 3, 7, 1, 20, 164, 2925, 3562],
}
CODES_OF_SECOND_CLOUD = {
    "z": [1207955904, 1207955908, 1207955906, 1207955905, 1207955933, 1207958622, 2013265983, 1438045029],
    "z-trans": [1207955904, 1207955906, 1207955908, 1207955905, 1207955947, 1207958638, 2013265983, 1668133587],
    "hilbert": [1169609024, 1169609031, 1169609027, 1169609025, 1169609060, 1169610182, 1744830509, 1476396974],
    "hilbert-trans": [1169609024, 1169609027, 1169609031, 1169609025, 1169609044, 1169610226, 1744830509, 2051614362],
}


def one_cloud(count):
    return torch.zeros(count, dtype=torch.int64)


def cube(depth):
    axis = torch.arange(1 << depth, dtype=torch.int32)
    return torch.cartesian_prod(axis, axis, axis)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("order", ORDERS)
def test_official_codes(order, dtype):
    points = torch.tensor(POINTS, dtype=dtype)
    assert encode(points, one_cloud(8), order, 4).tolist() == CODES[order]
    assert encode(points + 500, one_cloud(8) + 1, order, 10).tolist() == CODES_OF_SECOND_CLOUD[order]


@pytest.mark.parametrize("name", ["ptv3", "ptv3_rpe", "ditr", "ditr_shuffled"])
def test_golden_codes(name):
    with np.load(GOLDEN / f"{name}.npz") as golden:
        grid, ends = torch.from_numpy(golden["grid_coord"]), golden["offset"]
        depth, expected = int(golden["serialized_depth"]), golden["serialized_code"]
    batch = torch.from_numpy(np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0)))
    assert serialisation_depth(grid) == depth
    for order, codes in zip(ORDERS, expected, strict=True):
        np.testing.assert_array_equal(encode(grid, batch, order, depth).numpy(), codes)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("order", ORDERS)
def test_a_cube_is_filled_exactly_once(order, depth):
    codes = encode(cube(depth), one_cloud(8**depth), order, depth)
    assert codes.sort().values.tolist() == list(range(8**depth))


@pytest.mark.parametrize("order", ["hilbert", "hilbert-trans"])
def test_steps_of_hilbert_go_to_the_next_voxel(order):
    points = cube(4)
    path = points[encode(points, one_cloud(len(points)), order, 4).argsort()]
    assert path.diff(dim=0).abs().sum(1).unique().tolist() == [1]


@given(st.integers(1, MAX_DEPTH), st.sampled_from(ORDERS), st.data())
def test_a_parent_voxel_is_one_stretch_of_the_curve(depth, order, data):
    """What pooling relies on: code >> 3 depends on the parent alone, and distinct parents keep distinct codes."""
    coordinate = st.integers(0, (1 << depth) - 1)
    rows = data.draw(st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=2, max_size=20))
    points = torch.tensor(rows)
    code = encode(points, one_cloud(len(rows)), order, depth)
    for shift in range(depth + 1):
        same_parent = ((points >> shift)[:, None] == (points >> shift)[None]).all(2)
        parent = code >> 3 * shift
        assert torch.equal(same_parent, parent[:, None] == parent[None])


@given(st.integers(1, MAX_DEPTH), st.sampled_from(ORDERS), st.integers(0, 2**15 - 1))
def test_clouds_are_apart(depth, order, cloud):
    last = torch.full((1, 3), (1 << depth) - 1)
    batch = torch.tensor([cloud])
    code = encode(last, batch, order, depth)
    assert code.item() >> 3 * depth == cloud


def test_trans_exchanges_x_and_y():
    points = cube(3)
    for order in ("z", "hilbert"):
        exchanged = encode(points[:, [1, 0, 2]], one_cloud(len(points)), order, 3)
        assert torch.equal(encode(points, one_cloud(len(points)), f"{order}-trans", 3), exchanged)


@pytest.mark.parametrize("depth", [0, MAX_DEPTH + 1])
def test_impossible_depths_are_refused(depth):
    with pytest.raises(ConfigError, match=f"depth {depth} is not in"):
        encode(torch.zeros(1, 3, dtype=torch.int32), one_cloud(1), "z", depth)


@pytest.mark.parametrize("point", [[0, 8, 0], [0, 0, -1]])
def test_coordinates_beyond_the_depth_are_refused(point):
    with pytest.raises(ConfigError, match="do not fit 3 bits"):
        encode(torch.tensor([point]), one_cloud(1), "hilbert", 3)


def test_more_clouds_than_fit_are_refused():
    point = torch.zeros(1, 3, dtype=torch.int32)
    assert encode(point, torch.tensor([2**15 - 1]), "z", 16) >= 0
    with pytest.raises(ConfigError, match="32769 clouds at serialisation depth 16"):
        encode(point, torch.tensor([2**15]), "z", 16)


def test_no_points():
    assert encode(torch.zeros(0, 3, dtype=torch.int32), one_cloud(0), "hilbert", 1).shape == (0,)
    assert serialisation_depth(torch.zeros(0, 3, dtype=torch.int32)) == 1
