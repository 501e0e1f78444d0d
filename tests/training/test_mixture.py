# SPDX-License-Identifier: Apache-2.0
"""Steps of several data sets: one data set a step, any step can be the first, every process sees the same data set."""

from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from ditr_cache.training.mixture import MixedSampler
from ditr_cache.training.sampler import BatchSampler

SIZES = st.lists(st.integers(4, 12), min_size=1, max_size=3)


def mixed(sizes, weights=None, accumulation=1, rank=0, world=1, seed=5):
    samplers = [
        BatchSampler([f"{i}-{k}" for k in range(n)], seed, 4, accumulation=accumulation, rank=rank, world=world)
        for i, n in enumerate(sizes)
    ]
    return MixedSampler(samplers, weights or [1] * len(sizes), seed)


@given(sizes=SIZES, epochs=st.integers(1, 3), data=st.data())
def test_any_step_can_be_the_first(sizes, epochs, data):
    sampler = mixed(sizes)
    whole = list(sampler.stream(0, 0, epochs))
    assert len(whole) == sampler.steps * epochs
    at = data.draw(st.integers(0, len(whole) - 1))
    assert list(sampler.stream(*divmod(at, sampler.steps), epochs)) == whole[at:]


@given(sizes=SIZES)
def test_each_data_set_goes_through_its_own_epochs(sizes):
    """All of its steps, in its own order, as if it were alone."""
    sampler, rounds = mixed(sizes), 3
    found = list(sampler.stream(0, 0, rounds))
    for source, n in enumerate(sizes):
        alone = BatchSampler([f"{source}-{k}" for k in range(n)], 5, 4)
        own = [key.batch for key in found if key.source == source]
        assert own == list(islice(alone.stream(0), len(own)))
        assert len(own) == alone.steps * rounds


def test_processes_and_accumulation_share_a_step_of_one_data_set():
    streams = [list(mixed([8, 12], accumulation=2, rank=rank, world=2).stream(0, 0, 2)) for rank in range(2)]
    assert len(streams[0]) == 2 * (2 + 3) * 2
    for mine, theirs in zip(*streams, strict=True):
        assert mine.source == theirs.source
    for first, second in zip(streams[0][::2], streams[0][1::2], strict=True):
        assert first.source == second.source
        assert (first.batch.epoch, first.batch.step) == (second.batch.epoch, second.batch.step)


def test_weights():
    sampler = mixed([8, 8, 8], [1, 2.5, 0.1])
    assert sampler.steps == 2 + 5 + 1
    assert Counter(key.source for key in sampler.stream(0, 0, 4)) == {0: 8, 1: 20, 2: 4}


def test_order_changes_from_epoch_to_epoch_and_with_the_seed():
    orders = [tuple(mixed([12, 12, 12], seed=seed).order(epoch)) for seed in range(2) for epoch in range(3)]
    assert len(set(orders)) > 3
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
