# SPDX-License-Identifier: Apache-2.0
"""Segment reductions against their definition, against finite differences and against torch_scatter."""

import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.errors import ConfigError
from ditr_cache.models.segment import segment_reduce

REDUCTIONS = ("max", "mean", "sum")


@st.composite
def segments(draw, ties=False):
    """Rows `[N, C]` float64 and pointers, some segments empty."""
    lengths = draw(st.lists(st.integers(0, 5), max_size=8))
    channels = draw(st.integers(1, 4))
    count = sum(lengths)
    values = st.integers(-2, 2) if ties else st.floats(-1e3, 1e3)
    rows = draw(st.lists(values, min_size=count * channels, max_size=count * channels))
    x = torch.tensor(rows, dtype=torch.float64).reshape(count, channels)
    return x, torch.tensor([0, *lengths]).cumsum(0)


def by_definition(x, pointers, reduce):
    rows = []
    for start, stop in pairwise(pointers.tolist()):
        part = x[start:stop]
        if start == stop:
            rows.append(part.sum(0))
        elif reduce == "max":
            # the first of equal rows, so that autograd gives it the gradient
            first = torch.tensor([column.tolist().index(column.max()) for column in part.detach().T])
            rows.append(part[first, torch.arange(x.shape[1])])
        else:
            rows.append(getattr(part, reduce)(0))
    return torch.stack(rows) if rows else x[:0]


def value_and_gradient(function, x, pointers, reduce):
    leaf = x.clone().requires_grad_()
    out = function(leaf, pointers, reduce)
    weight = torch.linspace(0.5, 2, out.numel(), dtype=x.dtype).reshape(out.shape)
    (out * weight).sum().backward()
    return out.detach(), torch.zeros_like(x) if leaf.grad is None else leaf.grad


@pytest.mark.parametrize("reduce", REDUCTIONS)
@settings(deadline=None)
@given(case=st.one_of(segments(), segments(ties=True)))
def test_definition(reduce, case):
    ours = value_and_gradient(segment_reduce, *case, reduce)
    expected = value_and_gradient(by_definition, *case, reduce)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradcheck(reduce):
    x = torch.randn(17, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pointers = torch.tensor([0, 4, 4, 9, 17])
    assert torch.autograd.gradcheck(lambda t: segment_reduce(t, pointers, reduce), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduce", REDUCTIONS)
@settings(deadline=None)
@given(data=st.data())
def test_torch_scatter_agrees(reduce, dtype, data):
    pytest.importorskip("torch_scatter", exc_type=ImportError)
    x, pointers = data.draw(st.one_of(segments(), segments(ties=True)))
    x = x.to(dtype)

    def scatter(*args):
        return segment_reduce(*args, backend="torch_scatter")

    ours = value_and_gradient(segment_reduce, x, pointers, reduce)
    theirs = value_and_gradient(scatter, x, pointers, reduce)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * 1e3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(dtype):
    x = torch.ones(5000, 2, dtype=dtype)
    pointers = torch.tensor([0, 4096, 5000])
    mean, total = (segment_reduce(x, pointers, reduce) for reduce in ("mean", "sum"))
    assert mean.dtype == total.dtype == dtype
    # one by one, bfloat16 would not get past 256 and float16 not past 2048
    assert total.tolist() == torch.tensor([[4096.0] * 2, [904.0] * 2], dtype=dtype).tolist()
    assert mean.tolist() == [[1.0] * 2] * 2
    assert segment_reduce(x * 3, pointers, "max").tolist() == [[3.0] * 2] * 2


def test_nan_is_not_hidden():
    x = torch.tensor([[1.0], [torch.nan], [2.0]], requires_grad=True)
    out = segment_reduce(x, torch.tensor([0, 3]), "max")
    out.backward(torch.ones(1, 1))
    assert out.isnan().all()
    assert x.grad is not None


def test_minus_infinity_is_a_value():
    x = torch.full((2, 1), -torch.inf)
    assert segment_reduce(x, torch.tensor([0, 2, 2]), "max").tolist() == [[-torch.inf], [0.0]]


def test_no_gradient_is_asked_for_no_arguments_are_kept():
    out = segment_reduce(torch.ones(3, 1), torch.tensor([0, 3]), "max")
    assert out.grad_fn is None


def test_torch_scatter_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    with pytest.raises(ConfigError, match=r"torch_scatter is not installed[\s\S]*pip install"):
        segment_reduce(torch.ones(3, 1), torch.tensor([0, 3]), "max", backend="torch_scatter")
