# SPDX-License-Identifier: Apache-2.0
"""Voxels, features and gradients for tests of sparse convolution."""

import pytest
import torch
from hypothesis import strategies as st

from ditr_cache.models.sparse_conv import spconv_backend

needs_spconv = pytest.mark.skipif(not spconv_backend.spconv_installed(), reason="spconv is not installed")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(count, extent, clouds=2, seed=0, distinct=True):
    """Voxels in no order, of several clouds, with coordinates below 0 too."""
    generator = seeded(seed)
    rows = torch.randint(0, extent, (count, 3), generator=generator) - 3
    rows = torch.cat((torch.randint(0, clouds, (count, 1), generator=generator), rows), 1)
    if distinct:
        rows = torch.unique(rows, dim=0)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    return rows[:, 1:].int(), rows[:, 0]


def features(count, channels, dtype=torch.float64):
    return torch.randn(count, channels, generator=seeded(2), dtype=torch.float64).to(dtype).requires_grad_()


def everything(layer, x, table, function=None):
    """Output, and the gradients of input and parameters."""
    leaf = x.detach().clone().requires_grad_()
    y = (function or layer)(leaf, table)
    loss = (y * torch.randn(y.shape, generator=seeded(3), dtype=torch.float64).to(y.dtype)).sum()
    return [y.detach(), *torch.autograd.grad(loss, [leaf, *layer.parameters()])]


@st.composite
def crowded(draw):
    """Clouds in which voxels are shared, and a permutation of their points."""
    count = draw(st.integers(1, 40))
    coordinate = st.integers(-2, 2)
    rows = draw(
        st.lists(st.tuples(st.integers(0, 1), coordinate, coordinate, coordinate), min_size=count, max_size=count)
    )
    table = torch.tensor(rows)
    return table[:, 1:], table[:, 0], torch.tensor(draw(st.permutations(range(count))))
