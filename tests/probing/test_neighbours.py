# SPDX-License-Identifier: Apache-2.0
"""Votes of neighbours, against a slow and obvious reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.errors import ConfigError
from ditr_cache.probing.neighbours import vote


def brute_force(bank, label, query, k, metric):
    """Sort by distance, count, ties by the sum of ranks and then by number; float64."""
    bank, query, found = bank.double().numpy(), query.double().numpy(), []
    k = min(k, len(bank))
    for q in query:
        if metric == "cosine":
            far = 1 - (bank @ q) / np.maximum(np.linalg.norm(bank, axis=1) * np.linalg.norm(q), 1e-12)
        else:
            far = np.linalg.norm(bank - q, axis=1)
        near = label.numpy()[np.argsort(far, kind="stable")[:k]].tolist()
        classes = sorted(set(near))
        ranks = {c: [i for i, n in enumerate(near) if n == c] for c in classes}
        found.append(min(classes, key=lambda c: (-len(ranks[c]), sum(ranks[c]), c)))
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    m=st.integers(1, 60),
    q=st.integers(0, 20),
    dim=st.integers(1, 9),
    classes=st.integers(1, 6),
    k=st.integers(1, 70),
    chunk=st.integers(1, 300),
    metric=st.sampled_from(["cosine", "euclidean"]),
)
def test_as_brute_force(seed, m, q, dim, classes, k, chunk, metric):
    generator = torch.Generator().manual_seed(seed)
    # one channel has but two cosines: everything would be a tie; and in float32 so are many near ones
    dim = max(dim, 2) if metric == "cosine" else dim
    bank, query = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in (m, q))
    label = torch.randint(0, classes, (m,), generator=generator)
    done = []
    found = vote(bank, label, query, k, metric=metric, chunk=chunk, tick=done.append)
    assert found.tolist() == brute_force(bank, label, query, k, metric)
    assert sum(done) == q
    assert found.dtype == torch.int64


def test_ties_go_to_the_nearer_neighbours():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    query = torch.tensor([[1.0, 0.0]])
    assert vote(bank, torch.tensor([5, 2, 2, 5]), query, 2).tolist() == [5]
    assert vote(bank, torch.tensor([5, 2, 2, 5]), query, 4).tolist() == [2]
    assert vote(bank, torch.tensor([5, 2, 2, 2]), query, 4).tolist() == [2]


def test_length_matters_for_distance_alone():
    bank, label = torch.tensor([[10.0, 0.0], [0.9, 0.9]]), torch.tensor([0, 1])
    query = torch.tensor([[1.0, 0.1]])
    assert vote(bank, label, query, 1).tolist() == [0]
    assert vote(bank, label, query, 1, metric="euclidean").tolist() == [1]
    assert vote(bank, label, torch.zeros(1, 2), 1).tolist() in ([0], [1])


def test_nothing_to_vote():
    one = torch.ones(1, 2)
    for bank, k in ((one[:0], 1), (one, 0)):
        with pytest.raises(ConfigError, match="at least one"):
            vote(bank, torch.zeros(len(bank), dtype=torch.int64), one, k)
