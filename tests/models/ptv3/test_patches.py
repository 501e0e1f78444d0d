# SPDX-License-Identifier: Apache-2.0
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.models.ptv3.patches import cut, reorder

CPU = torch.device("cpu")


def by_the_rule(start: int, n: int, length: int) -> list[list[int]]:
    """Positions of each patch of one cloud, as the documents state it."""
    if n <= length:
        return [list(range(start, start + n))] if n else []
    patches = [list(range(start + i, start + i + length)) for i in range(0, n - length + 1, length)]
    if n % length:
        patches.append(list(range(start + n - length, start + n)))
    return patches


sizes = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any)


@settings(deadline=None)
@given(sizes, st.integers(1, 17))
def test_cut_follows_the_rule(counts, length):
    ends = tuple(torch.tensor(counts).cumsum(0).tolist())
    patches = cut(ends, length, CPU)
    expected = [p for end, n in zip(ends, counts, strict=True) for p in by_the_rule(end - n, n, length)]
    rows = [tuple(r.tolist()) for (count, n), part in _groups(patches) for r in part.view(count, n)]
    assert sorted(rows) == sorted(map(tuple, expected))
    assert [g[1] for g in patches.groups[1:]] == [g[1] for g in patches.groups[1:] if g[1] < length]
    assert sum(count == 1 and n < length for count, n in patches.groups) == sum(0 < n < length for n in counts)


@settings(deadline=None)
@given(sizes, st.integers(1, 17))
def test_a_point_reads_its_own_patch(counts, length):
    ends = tuple(torch.tensor(counts).cumsum(0).tolist())
    patches = cut(ends, length, CPU)
    assert patches.gather_R[patches.own_N].tolist() == list(range(ends[-1]))
    for end, n in zip(ends, counts, strict=True):
        for local in range(n if n > length else 0):
            mates = patches.gather_R.view(-1)[_patch_rows(patches, int(patches.own_N[end - n + local]))]
            first = min(local // length * length, n - length)
            assert mates[0] == end - n + first


@given(sizes, st.integers(1, 17), st.integers(0, 2**31))
def test_reorder_follows_the_curve(counts, length, seed):
    ends = tuple(torch.tensor(counts).cumsum(0).tolist())
    order = torch.randperm(ends[-1], generator=torch.Generator().manual_seed(seed))
    positions, points = cut(ends, length, CPU), reorder(cut(ends, length, CPU), order)
    assert torch.equal(points.gather_R, order[positions.gather_R])
    assert torch.equal(points.gather_R[points.own_N], torch.arange(ends[-1]))
    assert torch.equal(points.own_N[order], positions.own_N)


def _groups(patches):
    sizes = [count * n for count, n in patches.groups]
    return zip(patches.groups, patches.gather_R.split(sizes), strict=True)


def _patch_rows(patches, row):
    """Rows of the patch that a row lies in."""
    base = 0
    for count, n in patches.groups:
        if row < base + count * n:
            first = base + (row - base) // n * n
            return slice(first, first + n)
        base += count * n
    raise AssertionError(row)
