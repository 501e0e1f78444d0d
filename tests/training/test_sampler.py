# SPDX-License-Identifier: Apache-2.0
"""The order of training: complete, seeded, the same from any step on and for any division among processes."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.errors import ConfigError
from ditr_cache.training.sampler import BatchSampler

IDS = [f"s{i}" for i in range(7)]


def test_an_epoch_visits_every_sample_loop_times():
    order = BatchSampler(IDS, 0, 2, loop=3).order(5)
    assert Counter(draw.sample_id for draw in order) == dict.fromkeys(IDS, 3)
    assert [(d.epoch, d.position) for d in order] == [(5, i) for i in range(21)]


def test_orders_differ_by_seed_and_epoch_and_repeat():
    orders = [tuple(d.sample_id for d in BatchSampler(IDS, seed, 2).order(e)) for seed in (0, 1) for e in range(4)]
    assert len(set(orders)) == len(orders)
    assert orders[0] == tuple(d.sample_id for d in BatchSampler(IDS, 0, 7).order(0))


def test_every_place_in_the_order_is_for_any_sample_alike():
    counts = Counter(BatchSampler(IDS, 0, 2).order(e)[0].sample_id for e in range(2100))
    assert sum((counts[i] - 300) ** 2 / 300 for i in IDS) < 55  # chi-square, 6 degrees: p < 1e-9


@settings(deadline=None)
@given(
    n=st.integers(1, 20),
    loop=st.integers(1, 3),
    size=st.integers(1, 3),
    parts=st.sampled_from([1, 2, 4, 6]),
    seed=st.integers(0, 9),
)
def test_processes_see_together_what_one_sees(n, loop, size, parts, seed):
    ids, batch_size = IDS[:n], size * parts
    if len(ids) * loop < batch_size:
        with pytest.raises(ConfigError, match=r"data.loop=.*\nRaise"):
            BatchSampler(ids, seed, batch_size, loop=loop, accumulation=parts)
        return
    one = BatchSampler(ids, seed, batch_size, loop=loop, accumulation=parts)
    alone = list(one.epoch(3))
    assert one.steps == len(ids) * loop // batch_size
    drawn = [draw for batch in alone for draw in batch.draws]
    assert drawn == one.order(3)[: one.steps * batch_size]
    assert [(b.step, b.number) for b in alone] == [(s, m) for s in range(one.steps) for m in range(parts)]
    for world in (w for w in (1, 2, 3) if parts % w == 0):
        together = []
        for rank in range(world):
            some = BatchSampler(ids, seed, batch_size, loop=loop, accumulation=parts // world, rank=rank, world=world)
            mine = list(some.epoch(3))
            assert all(b.number % world == rank for b in mine)
            together += mine
        assert sorted(together, key=lambda b: (b.step, b.number)) == alone


@settings(deadline=None)
@given(epoch=st.integers(0, 3), step=st.integers(0, 4))
def test_any_step_can_be_the_first(epoch, step):
    sampler = BatchSampler(IDS, 1, 4, loop=3, accumulation=2)
    whole = list(sampler.stream(0, 0, epochs=6))
    assert len(whole) == 6 * 5 * 2
    assert list(sampler.stream(epoch, step, epochs=6)) == whole[(epoch * 5 + step) * 2 :]
    endless = sampler.stream(epoch, step)
    assert list(islice(endless, 7)) == list(sampler.stream(epoch, step, epochs=9))[:7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 5, "accumulation": 2}, "5 clouds a step cannot be divided among 1 x 2"),
        ({"batch_size": 0}, "0 clouds"),
        ({"batch_size": 8}, "7 draws .7 samples, data.loop=1., a step takes 8"),
        ({"batch_size": 2, "rank": 2, "world": 2}, "process 2 of 2"),
    ],
)
def test_what_cannot_be_divided_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        BatchSampler(IDS, 0, **options)
