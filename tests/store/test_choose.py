# SPDX-License-Identifier: Apache-2.0
"""A seed gives the same draw in every version, and draws are fair."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_golden_store import GOLDEN

from ditr_cache.errors import ConfigError
from ditr_cache.store.choose import Draw, draw_views, serve
from ditr_cache.store.reader import open_store

# hits of four views on eight points; rows are numbered through
HITS = [
    (np.array([0, 1, 2, 3, 4, 5]), np.array([0, 1, 1, 2, 0, 3], np.int32)),
    (np.array([1, 3, 5, 6]), np.array([4, 5, 5, 6], np.int32)),
    (np.array([], int), np.array([], np.int32)),
    (np.array([0, 1, 2, 3, 5, 6]), np.array([7, 8, 9, 7, 8, 9], np.int32)),
]

# seed: three of ten views, all of five, and who serves the points of HITS. Never change these numbers
DRAWS = {
    0: ([9, 6, 4], [0, 2, 1, 4, 3], [0, 8, 9, 7, 0, 8, 6, -1]),
    1: ([7, 6, 2], [2, 4, 3, 0, 1], [7, 8, 9, 7, 0, 3, 6, -1]),
    2: ([3, 7, 9], [1, 3, 4, 2, 0], [7, 4, 1, 2, 0, 8, 9, -1]),
    3: ([4, 5, 0], [0, 4, 2, 1, 3], [7, 4, 9, 2, 0, 5, 6, -1]),
    4: ([5, 7, 1], [3, 0, 1, 2, 4], [0, 1, 9, 5, 0, 3, 9, -1]),
}


def pcg64(seed: int):
    """PCG64 (XSL RR 128/64, O'Neill 2014) in plain Python, seeded as the store seeds it."""
    digest = hashlib.sha256(str(seed).encode()).digest()
    state, increment = int.from_bytes(digest[:16], "little"), int.from_bytes(digest[16:], "little") | 1
    while True:
        state = (state * 0x2360ED051FC65DA44385DF649FCCF645 + increment) % 2**128
        word, turn = (state >> 64 ^ state) % 2**64, state >> 122
        yield (word >> turn | word << (64 - turn)) % 2**64


def slow_random(n: int, hits, numbers) -> list[int]:
    """Rule `random` as documented: every hit draws 16 bits, taken as signed, and the highest stays."""
    best = [(-(2**15) - 1, -1)] * n
    for point_H, row_H in hits:
        words = [next(numbers) for _ in range(-(-len(point_H) // 4))]
        for i, (point, row) in enumerate(zip(point_H.tolist(), row_H.tolist(), strict=True)):
            key = words[i // 4] >> 16 * (i % 4) & 0xFFFF
            best[point] = max(best[point], (key - 2**16 if key >= 2**15 else key, row))
    return [row for _, row in best]


@pytest.mark.parametrize("seed", range(5))
def test_golden_draws(seed):
    three, all_five, index = DRAWS[seed]
    assert draw_views(range(10), 3, "random", Draw(seed)) == three
    assert draw_views([4, 3, 2, 1, 0], 9, "random", Draw(seed)) == all_five
    served = serve(8, HITS, "random", Draw(seed))
    assert served.dtype == np.int32
    assert served.tolist() == index


@given(seed=st.integers(-(2**70), 2**70), n=st.integers(0, 40))
@settings(max_examples=50)
def test_draws_are_what_the_documentation_says(seed, n):
    numbers = pcg64(seed)
    words = [next(numbers) for _ in range(n)]
    assert Draw(seed).permutation(n).tolist() == sorted(range(n), key=words.__getitem__)
    assert Draw(seed).below(n + 1) == next(pcg64(seed)) % (n + 1)
    assert serve(8, HITS, "random", Draw(seed)).tolist() == slow_random(8, HITS, pcg64(seed))


# views and rows of the first 32 points
READS = {
    0: (
        "0 -1 0 0 0 0 -1 0 0 -1 2 0 0 -1 0 0 0 0 0 0 -1 -1 -1 0 0 2 -1 2 -1 -1 0 0",
        "30 -1 28 34 30 11 -1 30 5 -1 1 17 7 -1 27 23 30 25 9 31 -1 -1 -1 10 34 0 -1 0 -1 -1 15 13",
    ),
    1: (
        "0 -1 0 0 2 0 -1 0 0 -1 2 0 0 -1 0 0 0 0 0 0 -1 -1 -1 0 0 2 -1 2 -1 -1 0 0",
        "30 -1 28 34 0 11 -1 30 5 -1 1 17 7 -1 27 23 30 25 9 31 -1 -1 -1 10 34 0 -1 0 -1 -1 15 13",
    ),
    2: (
        "1 0 1 1 1 0 1 1 1 0 1 0 0 1 0 1 1 0 1 1 0 1 1 0 0 0 0 1 1 0 1 0",
        "26 63 6 1 18 37 28 20 1 61 3 58 46 28 52 30 6 33 16 5 48 15 8 62 63 59 47 13 16 35 30 41",
    ),
}


@pytest.mark.parametrize("seed", range(3))
def test_golden_reads(seed):
    """The same through the whole reader: views, then variants, then points."""
    with open_store(GOLDEN / "store-v1-f16") as store:
        (sample,) = store.samples
        got = store.read(sample, count=2, variant="random", seed=seed)
        for array, expected in zip((got.view, got.features.index), READS[seed], strict=True):
            assert array[:32].tolist() == list(map(int, expected.split()))


def test_last_and_first():
    assert serve(8, HITS, "last", Draw(0)).tolist() == [7, 8, 9, 7, 0, 8, 9, -1]
    assert serve(8, HITS, "first", Draw(0)).tolist() == [0, 1, 1, 2, 0, 3, 6, -1]
    assert serve(3, [], "last", Draw(0)).tolist() == [-1, -1, -1]
    assert serve(3, [], "random", Draw(0)).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("count", range(1, 15))
def test_strided_is_the_official_choice(count):
    views = list(range(10))
    step = max(1, 10 // count)
    assert draw_views(views, count, "strided", Draw(0)) == views[::step][:count]


@pytest.mark.parametrize(("count", "pick"), [(0, "random"), (-1, "strided"), (None, "best"), (3, "Random")])
def test_wrong_choices_are_refused(count, pick):
    with pytest.raises(ConfigError):
        draw_views([0, 1], count, pick, Draw(0))
    with pytest.raises(ConfigError):
        serve(1, HITS[2:3], "mean", Draw(0))


def chi_square(counts: np.ndarray) -> float:
    """Of equal expectations."""
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


# 99.99 % quantiles of chi-square with 1, 2 and 9 degrees of freedom
QUANTILE = {2: 15.14, 3: 18.42, 10: 33.72}


def test_rule_random_is_uniform_over_the_views_that_see_a_point():
    """10,000 draws; a point of two views and three of three."""
    served = np.stack([serve(8, HITS, "random", Draw(seed)) for seed in range(10_000)])
    for point in range(8):
        rows = [row for points, rows in HITS for p, row in zip(points, rows, strict=True) if p == point]
        found, counts = np.unique(served[:, point], return_counts=True)
        assert found.tolist() == sorted(rows or [-1])
        if len(rows) > 1:
            assert chi_square(counts) < QUANTILE[len(rows)]
    # points draw alone: 1 and 5 are seen by the same three views, and agree in a third of the draws
    both = [[1, 4, 8].index(a) == [3, 5, 8].index(b) for a, b in served[:, [1, 5]].tolist()]
    assert abs(np.mean(both) - 1 / 3) < 0.02


def test_rule_last_with_a_random_pick_is_uniform_too():
    counts = np.zeros((3, 3), int)
    for seed in range(10_000):
        draw = Draw(seed)
        order = draw_views(range(4), 4, "random", draw)
        row = serve(8, [HITS[v] for v in order], "last", draw)
        for i, (point, rows) in enumerate([(1, [1, 4, 8]), (3, [2, 5, 7]), (5, [3, 5, 8])]):
            counts[i, rows.index(row[point])] += 1
    assert all(chi_square(c) < QUANTILE[3] for c in counts)


def test_views_are_drawn_uniformly_and_without_replacement():
    draws = np.array([draw_views(range(10), 3, "random", Draw(seed)) for seed in range(10_000)])
    assert all(len(set(d)) == 3 for d in draws.tolist())
    for position in range(3):
        assert chi_square(np.bincount(draws[:, position], minlength=10)) < QUANTILE[10]
    pairs = np.unique(draws[:, 0] * 10 + draws[:, 1], return_counts=True)[1]
    assert len(pairs) == 90
    assert chi_square(pairs) < 161.0
    variants = np.bincount([Draw(seed).below(3) for seed in range(10_000)])
    assert chi_square(variants) < QUANTILE[3]
