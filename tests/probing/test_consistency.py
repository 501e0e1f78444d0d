# SPDX-License-Identifier: Apache-2.0
"""Cosines of pairs, and what they are compared with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.probing.consistency import consistency, pair_cosines


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_equal_features_are_consistent():
    a = randn(0, 50, 8)
    same, random = pair_cosines(a, 3 * a, 7)
    found = consistency([same], [random])
    assert found.same.mean == pytest.approx(1, abs=1e-6)
    assert found.same.p05 == pytest.approx(1, abs=1e-6)
    assert found.separation == 1
    assert abs(found.random.mean) < 0.3


def test_independent_features_are_chance():
    same, random = pair_cosines(randn(1, 4000, 8), randn(2, 4000, 8), 5)
    found = consistency([same], [random])
    assert abs(found.separation - 0.5) < 0.03
    assert abs(found.same.mean - found.random.mean) < 0.03


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(0, 30), shift=st.integers(0, 1 << 31))
def test_no_point_is_compared_with_itself(seed, n, shift):
    a, b = randn(seed, n, 5), randn(seed + 1000, n, 5)
    same, random = pair_cosines(a, b, shift)
    cosine = np.array([[np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y) for y in b.numpy()] for x in a.numpy()])
    np.testing.assert_allclose(same.numpy(), np.diag(cosine.reshape(n, n)), atol=1e-5)
    if n < 2:
        assert len(random) == 0
        return
    by = 1 + shift % (n - 1)
    np.testing.assert_allclose(random.numpy(), [cosine[i, (i - by) % n] for i in range(n)], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    same=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    random=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
)
def test_separation_counts_comparisons(same, random):
    found = consistency([torch.tensor(same, dtype=torch.float32) / 3], [torch.tensor(random, dtype=torch.float32) / 3])
    won = [(s > r) + (s == r) / 2 for s in same for r in random]
    assert found.separation == pytest.approx(np.mean(won))
    assert (found.same.pairs, found.random.pairs) == (len(same), len(random))
    assert found.same.p50 == pytest.approx(np.median(same) / 3, abs=1e-6)
    assert found.to_dict()["separation"] == found.separation


def test_samples_add_up():
    parts = [pair_cosines(randn(i, 10, 4), randn(i + 9, 10, 4), i) for i in range(3)]
    together = consistency([s for s, _ in parts], [r for _, r in parts])
    assert together.same.pairs == 30
    assert together.same.mean == pytest.approx(float(torch.cat([s for s, _ in parts]).mean()), abs=1e-6)


def test_nothing_to_compare():
    assert consistency([], []) is None
    assert consistency([torch.ones(1)], [torch.zeros(0)]) is None
