# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from ditr_cache.errors import ConfigError
from ditr_cache.models.ptv3.context import Context
from ditr_cache.models.ptv3.layers import DropPath, residual

POINTS = 20_000


def context(seed=0) -> Context:
    return Context(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.9])
def test_drop_path_statistics(probability):
    factor = DropPath(probability)(torch.zeros(POINTS, 3, dtype=torch.float64), context())
    assert factor.shape == (POINTS, 1)
    assert set(factor.unique().tolist()) == {0.0, 1 / (1 - probability)}
    # five standard deviations of a binomial
    tolerance = 5 * (probability * (1 - probability) / POINTS) ** 0.5
    assert abs(float((factor == 0).double().mean()) - probability) < tolerance
    assert abs(float(factor.mean()) - 1) < tolerance / (1 - probability)


def test_drop_path_draws_anew_and_repeats():
    x, drop, first, second = torch.zeros(100, 1), DropPath(0.5), context(), context()
    draws = [drop(x, first) for _ in range(2)]
    assert not torch.equal(*draws)
    assert all(torch.equal(a, drop(x, second)) for a in draws)


def test_drop_path_is_nothing_in_evaluation_or_at_zero():
    x = torch.ones(5, 2)
    assert DropPath(0.5).eval()(x, Context()) is None
    assert DropPath(0.0)(x, Context()) is None
    assert torch.equal(residual(x, x, None), 2 * x)


def test_drop_path_needs_a_generator():
    with pytest.raises(ConfigError, match="generator"):
        DropPath(0.5)(torch.ones(5, 2), Context())


def test_residual():
    x, branch, factor = torch.ones(3, 2), torch.full((3, 2), 2.0), torch.tensor([[0.0], [1.0], [2.0]])
    assert residual(x, branch, factor).tolist() == [[1, 1], [3, 3], [5, 5]]
