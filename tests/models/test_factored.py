# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import LargestTensor

from ditr_cache.errors import ConfigError
from ditr_cache.models.factored import compact, pool, usage
from ditr_cache.types import FactoredFeatures

MODES = ["official", "fixed"]


def random_features(points, rows, channels, seed, dtype=torch.float32, unseen=True):
    generator = torch.Generator().manual_seed(seed)
    rows_PD = torch.randn(rows, channels, generator=generator).to(dtype)
    low = -1 if unseen or rows == 0 else 0
    return FactoredFeatures(rows_PD, torch.randint(low, rows, (points,), generator=generator, dtype=torch.int32))


def random_cluster(points, size, seed):
    return torch.randint(0, size, (points,), generator=torch.Generator().manual_seed(seed))


def dense(features):
    seen = features.index >= 0
    out = features.rows.new_zeros(len(features.index), features.rows.shape[1])
    out[seen] = features.rows[features.index[seen].long()]
    return out


def dense_pool(image, seen, cluster, size, compatibility):
    """By loops: the pooled features and which clusters are seen."""
    out = image.new_zeros(size, image.shape[1])
    seen_out = torch.zeros(size, dtype=torch.bool)
    for m in range(size):
        members = cluster == m
        seen_out[m] = seen[members].any()
        if compatibility == "fixed":
            members &= seen
        if members.any():
            out[m] = image[members].amax(0)
    return out, seen_out


clouds = st.tuples(st.integers(0, 40), st.integers(0, 12), st.integers(1, 15), st.integers(0, 10_000))


@settings(max_examples=60, deadline=None)
@given(clouds, st.sampled_from(MODES), st.sampled_from([torch.float32, torch.float16, torch.float64]))
def test_pooling_is_the_dense_maximum_level_by_level(cloud, compatibility, dtype):
    points, rows, size, seed = cloud
    features = random_features(points, rows, 3, seed, dtype)
    image, seen = dense(features), features.index >= 0
    for level in range(3):
        cluster = random_cluster(points, size, seed + level)
        features = pool(features, cluster, size, compatibility)
        image, seen = dense_pool(image, seen, cluster, size, compatibility)
        torch.testing.assert_close(dense(features), image, rtol=0, atol=0)
        if compatibility == "fixed":
            assert torch.equal(features.index >= 0, seen)
        assert features.rows.dtype == dtype
        points, size = size, -(-size // 2)


@settings(max_examples=60, deadline=None)
@given(clouds, st.sampled_from(MODES))
def test_there_is_one_row_for_each_distinct_set_of_rows(cloud, compatibility):
    points, rows, size, seed = cloud
    features = random_features(points, rows, 2, seed)
    cluster = random_cluster(points, size, seed)
    pooled = pool(features, cluster, size, compatibility)
    held = [set(features.index[cluster == m].tolist()) for m in range(size)]
    if compatibility == "fixed":
        held = [h - {-1} for h in held]
    expected = {frozenset(h) for h in held if h and h != {-1}}
    assert len(pooled.rows) == len(expected)
    assert [i >= 0 for i in pooled.index.tolist()] == [frozenset(h) in expected for h in held]
    assert len(pooled.rows) <= size


def test_the_zeros_of_unseen_points_take_part_unless_fixed():
    features = FactoredFeatures(torch.tensor([[-1.0, 2.0]]), torch.tensor([0, -1, -1]))
    cluster = torch.tensor([0, 0, 1])
    assert dense(pool(features, cluster, 2, "official")).tolist() == [[0, 2], [0, 0]]
    assert dense(pool(features, cluster, 2, "fixed")).tolist() == [[-1, 2], [0, 0]]


def test_clusters_within_one_row_share_it_and_no_other_row_is_kept():
    features = random_features(100, 50, 4, 0)
    index = torch.tensor([7] * 100, dtype=torch.int32)
    pooled = pool(FactoredFeatures(features.rows, index), torch.arange(100) // 4, 25)
    torch.testing.assert_close(pooled.rows, features.rows[7:8], rtol=0, atol=0)
    assert pooled.index.unique().tolist() == [0]


def test_nothing_is_as_large_as_points_times_channels():
    # 4,000 points of 20 rows along a line: neighbours share a row, as indoors
    points, channels = 4000, 64
    features = FactoredFeatures(random_features(0, 20, channels, 0).rows, (torch.arange(points) // 200).int())
    with LargestTensor() as largest:
        pooled = pool(features, torch.arange(points) // 7, 572)
    assert len(pooled.rows) < 60
    assert largest.numel < points * channels / 50


def test_rows_that_need_a_gradient_are_inputs_all_the_same():
    features = random_features(20, 5, 3, 0)
    features.rows.requires_grad_()
    assert not pool(features, torch.arange(20) // 2, 10).rows.requires_grad


def test_quantised_rows_are_refused():
    features = FactoredFeatures(torch.zeros(2, 3, dtype=torch.int8), torch.zeros(4, dtype=torch.int32))
    with pytest.raises(ConfigError, match="dequantise"):
        pool(features, torch.zeros(4, dtype=torch.int64), 1)


@settings(max_examples=30, deadline=None)
@given(clouds)
def test_compacting_drops_the_rows_that_nobody_refers_to(cloud):
    points, rows, _, seed = cloud
    features = random_features(points, rows, 3, seed)
    small = compact(features)
    torch.testing.assert_close(dense(small), dense(features), rtol=0, atol=0)
    assert sorted(set(small.index.tolist()) - {-1}) == list(range(len(small.rows)))
    used, slot, count = usage(features)
    assert len(used) == len(small.rows)
    assert torch.equal(torch.bincount(slot, minlength=len(used) + 1), count)


def test_compacting_quantised_rows_keeps_them_quantised():
    affine = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[5.0, 5.0], [2.0, 2.0]]])
    rows = torch.tensor([[-128, -127], [0, 1], [2, 3]], dtype=torch.int8)
    features = FactoredFeatures(rows, torch.tensor([2, -1, 0]), affine, torch.tensor([0, 0, 1]))
    small = compact(features)
    assert small.rows.dtype == torch.int8
    assert len(small.rows) == 2
    torch.testing.assert_close(dense(small.dequantise()), dense(features.dequantise()), rtol=0, atol=0)
    assert compact(small) is small
