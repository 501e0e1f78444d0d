# SPDX-License-Identifier: Apache-2.0
"""The cosine by rows is the cosine by points: equation 1 of DITR, its gradients, and no tensor of points x D."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import LargestTensor
from torch import nn

from ditr_cache.models import similarity
from ditr_cache.models.losses import cosine_loss
from ditr_cache.models.similarity import cosine_to_rows
from ditr_cache.types import FactoredFeatures

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses.npz"


def make(n, p, d, c, seed, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, generator=g, dtype=dtype, requires_grad=True)
    layer = nn.Linear(c, d, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=dtype))
    rows = torch.randn(p, d, generator=g, dtype=dtype)
    rows[::4] = 0
    return x, layer, FactoredFeatures(rows, torch.randint(-1, p, (n,), generator=g))


def by_points(x, layer, features):
    target = torch.where((features.index >= 0)[:, None], features.rows[features.index.clamp(min=0)], 0)
    return cosine_loss(layer(x), target)


def by_rows(x, layer, features):
    cosine, visible = cosine_to_rows(x, layer, features)
    return ((1 - cosine) * visible).sum() / visible.sum().clamp(min=1)


@settings(deadline=None)
@given(n=st.integers(1, 60), p=st.integers(1, 20), d=st.integers(8, 24), c=st.integers(1, 6), seed=st.integers(0, 99))
def test_loss_and_gradients_are_those_of_points(n, p, d, c, seed):
    x, layer, features = make(n, p, d, c, seed)
    wanted = [x, *layer.parameters()]
    dense, factored = by_points(x, layer, features), by_rows(x, layer, features)
    torch.testing.assert_close(factored, dense, rtol=0, atol=1e-10)
    both = zip(torch.autograd.grad(factored, wanted), torch.autograd.grad(dense, wanted), strict=True)
    for mine, theirs in both:
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_predictions_that_nearly_vanish():
    """Where W h and b cancel, the squared length loses digits; what comes out is finite all the same."""
    layer = nn.Linear(2, 4, bias=True)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4)[:, :2])
        layer.bias.copy_(torch.tensor([-1.0, -1.0, 0, 0]))
    x = torch.tensor([[1.0, 1.0], [1.0, 1 + 1e-3], [2.0, 1.0]], requires_grad=True)
    features = FactoredFeatures(torch.tensor([[0.0, 1, 0, 0]]), torch.zeros(3, dtype=torch.int64))
    cosine, visible = cosine_to_rows(x, layer, features)
    assert visible.all()
    torch.testing.assert_close(cosine, torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=0.1)
    cosine.sum().backward()
    assert x.grad.isfinite().all()


def test_official_numbers():
    """Predictions of the golden file come out of an identity layer; each point has a row of its own."""
    with np.load(GOLDEN) as file:
        pred, target, loss = (torch.from_numpy(file[k]) for k in ("cos_pred", "cos_target", "cosine_loss"))
    layer = nn.Linear(pred.shape[1], pred.shape[1])
    with torch.no_grad():
        layer.weight.copy_(torch.eye(pred.shape[1]))
        layer.bias.zero_()
    found = by_rows(pred, layer, FactoredFeatures(target, torch.arange(len(target))))
    torch.testing.assert_close(found, loss, rtol=0, atol=1e-6)


def test_rows_in_parts_are_the_same(monkeypatch):
    x, layer, features = make(50, 33, 7, 5, 3)
    whole = by_rows(x, layer, features)
    whole.backward()
    gradient, layer.weight.grad = layer.weight.grad, None
    monkeypatch.setattr(similarity, "_ROWS_AT_ONCE", 4)
    parts = by_rows(x, layer, features)
    parts.backward()
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(layer.weight.grad, gradient)


def test_narrow_and_quantised_rows():
    x, layer, features = make(40, 12, 16, 4, 5, torch.float32)
    half = FactoredFeatures(features.rows.half(), features.index)
    exact = by_rows(x, layer, FactoredFeatures(half.rows.float(), half.index))
    torch.testing.assert_close(by_rows(x, layer, half), exact)
    low, high = -3.0, 3.0
    step = (high - low) / 255
    q = ((features.rows.clamp(low, high) - low) / step).round() - 128
    affine = torch.tensor([[[low] * 16, [step] * 16]])
    quantised = FactoredFeatures(q.to(torch.int8), features.index, affine, torch.zeros(12, dtype=torch.int32))
    torch.testing.assert_close(by_rows(x, layer, quantised), by_rows(x, layer, quantised.dequantise()))


def test_nothing_of_points_times_channels():
    n, d = 600, 512
    x, layer, features = make(n, 20, d, 6, 7, torch.float32)
    with LargestTensor(width=d) as made:
        by_rows(x, layer, features).backward()
    assert 0 < made.numel <= 20 * d


def test_autocast_does_not_narrow_it():
    x, layer, features = make(40, 12, 16, 4, 5, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosine, _ = cosine_to_rows(x, layer, features)
    plain, _ = cosine_to_rows(x, layer, features)
    assert cosine.dtype == torch.float32
    torch.testing.assert_close(cosine, plain)


@pytest.mark.parametrize("index", [[-1, -1, -1], []])
def test_nobody_is_visible(index):
    x, layer, _ = make(len(index), 3, 4, 2, 0) if index else (torch.zeros(0, 2).double(), nn.Linear(2, 4).double(), 0)
    features = FactoredFeatures(torch.zeros(3, 4, dtype=torch.float64), torch.tensor(index, dtype=torch.int64))
    cosine, visible = cosine_to_rows(x, layer, features)
    assert not visible.any()
    assert cosine.tolist() == [0.0] * len(index)
