# SPDX-License-Identifier: Apache-2.0
"""NumPy and torch give the same sums and the same choices."""

import sys

import numpy as np
import pytest

from ditr_cache.store.choose import Draw, serve
from ditr_cache.store.kernels import keep_highest, running_sum


@pytest.fixture(params=["numpy", "torch"])
def library(request, monkeypatch):
    if request.param == "torch":
        pytest.importorskip("torch")
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)


def some_hits(n, views, lowest_row=0):
    generator = np.random.default_rng(0)
    points = [np.flatnonzero(generator.random(n) < 0.5) for _ in range(views)]
    return [(p, (np.arange(len(p)) % 100 + 100 * v + lowest_row).astype(np.int32)) for v, p in enumerate(points)]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("n", [0, 1, 1000])
def test_running_sum(n):
    step = np.random.default_rng(0).integers(0, 2**31 - 1, n, np.int32)
    total = running_sum(step)
    assert total.dtype == np.int64
    np.testing.assert_array_equal(total, np.cumsum(step.astype(np.int64)))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_keep_highest(dtype):
    best = np.array([5, -7, 3, np.iinfo(dtype).min], dtype)
    keep_highest(best, np.array([0, 1, 3]), np.array([4, 9, -2], dtype))
    assert best.tolist() == [5, 9, 3, -2]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("lowest_row", [0, 65_535 - 700, 65_536, 1_000_000])
def test_the_choice_does_not_depend_on_how_rows_are_numbered(lowest_row):
    expected = serve(500, some_hits(500, 7), "random", Draw(3))
    shifted = serve(500, some_hits(500, 7, lowest_row), "random", Draw(3))
    assert shifted.dtype == np.int32
    np.testing.assert_array_equal(np.where(shifted < 0, -1, shifted - lowest_row), expected)


def test_the_choice_is_the_same_without_torch(monkeypatch):
    pytest.importorskip("torch")
    with_torch = serve(500, some_hits(500, 7), "random", Draw(3))
    monkeypatch.delitem(sys.modules, "torch")
    np.testing.assert_array_equal(serve(500, some_hits(500, 7), "random", Draw(3)), with_torch)


@pytest.mark.parametrize("views", [1, 2, 3, 10])
def test_the_choice_is_uniform(views):
    n = 100_000
    hits = [(np.arange(n), np.full(n, v, np.int32)) for v in range(views)]
    count = np.bincount(serve(n, hits, "random", Draw(1)), minlength=views)
    chi_square = ((count - n / views) ** 2 / (n / views)).sum()
    assert chi_square < views - 1 + 5 * np.sqrt(2 * views)
