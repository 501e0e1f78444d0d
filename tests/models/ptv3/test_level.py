# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest
import torch
from ptv3_cases import cloud, identity, make_batch, tiny_config

from ditr_cache.errors import ConfigError
from ditr_cache.geometry.curves import encode
from ditr_cache.models.ptv3.level import build_pyramid


def test_pooled_points_are_the_voxels_of_the_coarser_grid():
    config = tiny_config(stride=(2, 4))
    batch = make_batch(cloud(1, 200), cloud(2, 90))
    pyramid = build_pyramid(batch, config, identity(config))
    for (level, coarse), clusters, stride in zip(
        pairwise(pyramid.levels), pyramid.clusters, config.stride, strict=True
    ):
        keys = torch.cat((level.batch[:, None], level.grid_coord // stride), 1)
        expected, inverse = torch.unique(keys, dim=0, return_inverse=True)
        found = torch.cat((coarse.batch[:, None], coarse.grid_coord), 1)
        assert len(found) == len(expected) == len(clusters)
        assert torch.equal(found[clusters.cluster_N], keys)
        # equal clusters by both countings
        assert len(torch.unique(torch.stack((inverse, clusters.cluster_N)), dim=1).T) == len(expected)
        assert coarse.ends == tuple(torch.bincount(coarse.batch).cumsum(0).tolist())


def test_clusters_sort_points_and_pooled_points_lie_along_the_first_curve():
    config = tiny_config()
    permutations = torch.tensor([[2, 3, 0, 1], [3, 2, 1, 0], [1, 0, 3, 2]])
    pyramid = build_pyramid(make_batch(cloud(3, 300)), config, permutations)
    steps = zip(pairwise(pyramid.levels), pyramid.clusters, permutations[1:], strict=True)
    for (level, coarse), clusters, permutation in steps:
        assert (clusters.cluster_N[clusters.order_N].diff() >= 0).all()
        counts = torch.bincount(clusters.cluster_N)
        assert torch.equal(clusters.pointers_M.diff(), counts)
        # codes are the parent's, never encoded anew; the first curve is the parent's first one
        unpermuted = coarse.codes[permutation.argsort()]
        assert (unpermuted[0].diff() > 0).all()
        assert torch.equal(unpermuted[:, clusters.cluster_N], level.codes >> 3)


def test_curves_are_permuted_one_after_the_other():
    config = tiny_config()
    permutations = torch.tensor([[2, 3, 0, 1], [3, 2, 1, 0], [1, 0, 3, 2]])
    batch = make_batch(cloud(3, 300))
    levels = build_pyramid(batch, config, permutations).levels
    names = np.array(config.order)[permutations[0]]
    for level, permutation in zip(levels, (torch.arange(4), *permutations[1:]), strict=True):
        names = names[permutation]
        for curve, name in enumerate(names):
            shift = 4 - level.depth
            grid = level.grid_coord << shift
            # Hilbert codes of a coarse voxel are those of any of its fine ones, shifted
            assert torch.equal(encode(grid, level.batch, str(name), 4) >> 3 * shift, level.codes[curve])


def test_clouds_stay_apart_when_the_codes_are_used_up():
    config = tiny_config(stride=(2, 4))
    batch = make_batch(np.array([[0, 0, 0], [1, 0, 0]], np.int32), np.array([[0, 0, 0], [0, 1, 0]], np.int32))
    levels = build_pyramid(batch, config, identity(config)).levels
    assert [len(level) for level in levels] == [4, 2, 2]
    assert levels[-1].ends == (1, 2)
    assert levels[-1].batch.tolist() == [0, 1]


def test_depth():
    batch = make_batch(cloud(1, 100))
    official, fixed = tiny_config(), tiny_config(compatibility="fixed")
    assert build_pyramid(batch, official, identity(official)).levels[0].depth == 4
    assert [level.depth for level in build_pyramid(batch, fixed, identity(fixed)).levels] == [16, 15, 14]


def test_patches_are_cut_once_for_a_curve_and_a_length():
    config = tiny_config()
    level = build_pyramid(make_batch(cloud(1, 100)), config, identity(config)).levels[0]
    assert level.patches(1, 16) is level.patches(1, 16) is level.patches(5, 16)
    assert level.patches(1, 16) is not level.patches(2, 16)
    assert level.patches(1, 16).groups == ((7, 16),)
    assert level.patches(1, 8).groups == ((13, 8),)


@pytest.mark.parametrize(("compatibility", "groups"), [("official", ((10, 10),)), ("fixed", ((6, 16), (1, 10)))])
def test_relative_positions_cut_by_the_smallest_cloud(compatibility, groups):
    config = tiny_config(enable_rpe=True, compatibility=compatibility)
    level = build_pyramid(make_batch(cloud(2, 10), cloud(1, 90)), config, identity(config)).levels[0]
    assert level.patches(0, 16).groups == groups


def test_too_wide_a_cloud_is_refused():
    config = tiny_config()
    batch = make_batch(np.array([[0, 0, 0], [1 << 16, 0, 0]], np.int32))
    with pytest.raises(ConfigError, match="depth"):
        build_pyramid(batch, config, identity(config))
