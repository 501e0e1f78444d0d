# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost and nothing comes twice, whoever prepares it; and threads give what processes give."""

import threading
import time
from collections import Counter
from itertools import count, islice

import pytest
from data_world import Fails, config, dataset, make_store, same
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ditr_cache.errors import SampleError
from ditr_cache.training.config import RunConfig
from ditr_cache.training.loader import LoaderConfig, MakeBatch, TrainBatches
from ditr_cache.training.run_folder import FREE
from ditr_cache.training.sampler import BatchSampler
from ditr_cache.training.workers import load

KINDS = ["process", "thread"]


def itself(key):
    return key


def seen(ids, batch_size, world, accumulation, loop, loader, epoch, start):
    """How often each draw comes in an epoch from a step on and in the one after it, over all processes."""
    found = Counter()
    for rank in range(world):
        sampler = BatchSampler(ids, 5, batch_size, loop=loop, accumulation=accumulation, rank=rank, world=world)
        batches = TrainBatches(itself, sampler, loader, epoch + 2)
        for step in (*batches.epoch(epoch, start), *batches.epoch(epoch + 1)):
            assert len(step) == accumulation
            for micro_batch in step:
                found.update(micro_batch.draws)
        batches.close()
    return found


def expected(ids, batch_size, loop, epoch, start):
    sampler = BatchSampler(ids, 5, batch_size, loop=loop)
    end = sampler.steps * batch_size
    return [*sampler.order(epoch)[start * batch_size : end], *sampler.order(epoch + 1)[:end]]


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 12),
    loop=st.integers(1, 3),
    size=st.integers(1, 2),
    world=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    workers=st.integers(0, 3),
    prefetch=st.integers(1, 3),
    epoch=st.integers(0, 2),
    resume=st.floats(0, 1),
)
def test_every_draw_comes_exactly_once(n, loop, size, world, accumulation, workers, prefetch, epoch, resume):
    ids, batch_size = [f"s{i}" for i in range(n)], size * world * accumulation
    assume(n * loop >= batch_size)
    start = round(resume * (n * loop // batch_size))
    loader = LoaderConfig(workers, prefetch, "thread")
    found = seen(ids, batch_size, world, accumulation, loop, loader, epoch, start)
    assert found == dict.fromkeys(expected(ids, batch_size, loop, epoch, start), 1)


@pytest.mark.parametrize("world", [1, 2])
def test_every_draw_comes_exactly_once_from_processes(world):
    ids = [f"s{i}" for i in range(7)]
    found = seen(ids, 4, world, 2, 3, LoaderConfig(2, 3), 1, 2)
    assert found == dict.fromkeys(expected(ids, 4, 3, 1, 2), 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 1), (2, 3)])
def test_so_much_is_prepared_ahead_and_no_more(kind, workers, prefetch):
    asked = []

    def keys():
        for i in count():
            asked.append(i)
            yield i

    stream = load(itself, keys(), LoaderConfig(workers, prefetch, kind))
    for i in range(6):
        assert next(stream) == (i, i)
        assert len(asked) == i + 1 + workers * prefetch
    stream.close()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_threads_make_what_nobody_else_makes(tmp_path, dtype):
    store = make_store(tmp_path / "s", dtype=dtype)
    runs = []
    for workers in (0, 1, 4):
        sampler = BatchSampler(tuple(store.samples), 3, 2, loop=4)
        make = MakeBatch(dataset(store, seed=3, settings=config(mix_prob=0.5)))
        batches = TrainBatches(make, sampler, LoaderConfig(workers, 2, "thread"), 2)
        runs.append([batch for epoch in range(2) for step in batches.epoch(epoch) for batch in step])
        batches.close()
    assert len(runs[0]) == 20
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            same(a, b)


@pytest.mark.parametrize("known", [True, False])
def test_an_error_in_a_thread_names_the_sample(tmp_path, known):
    store = make_store(tmp_path / "s")
    make = MakeBatch(dataset(store, transforms=[Fails(known=known)]))
    batches = TrainBatches(make, BatchSampler(tuple(store.samples), 3, 2), LoaderConfig(2, 2, "thread"))
    with pytest.raises(SampleError, match=r"^b\d/s0"):
        next(batches.epoch(0))


def test_threads_end_when_nobody_wants_more():
    # those of the test before may still be ending
    others = set(threading.enumerate())

    def mine():
        return [t for t in threading.enumerate() if t.name.startswith("ditr-cache-data") and t not in others]

    stream = load(itself, count(), LoaderConfig(3, 2, "thread"))
    assert [value for _, value in islice(stream, 5)] == list(range(5))
    assert len(mine()) == 3
    stream.close()
    patience = time.monotonic() + 60
    while mine():
        assert time.monotonic() < patience
        time.sleep(0.01)


def test_who_prepares_may_change_when_a_run_goes_on():
    assert {f"run.{name}" for name in ("workers", "worker_kind", "prefetch")} <= FREE
    assert {"workers", "worker_kind", "prefetch"} <= set(RunConfig.model_fields)
