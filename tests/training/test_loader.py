# SPDX-License-Identifier: Apache-2.0
"""One stream of batches, whoever prepares it and wherever it begins; and what is said when a sample is broken."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_world import Fails, blocks, config, dataset, kill_process, make_store, same

from ditr_cache.errors import CorruptStoreError, DitrCacheError, SampleError, TrainingError
from ditr_cache.training.loader import EvaluationClouds, LoaderConfig, MakeBatch, TrainBatches
from ditr_cache.training.sampler import BatchSampler
from ditr_cache.training.workers import load

SEED = 3


@pytest.fixture(scope="module", params=["float16", "int8"])
def store(request, tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / request.param, dtype=request.param)


def batches(store, workers=0, epochs=None, rank=0, world=1, accumulation=2, **options):
    sampler = BatchSampler(tuple(store.samples), SEED, 4, loop=2, accumulation=accumulation, rank=rank, world=world)
    make = MakeBatch(dataset(store, seed=SEED, settings=config(mix_prob=0.5), **options))
    return TrainBatches(make, sampler, LoaderConfig(workers), epochs)


def run(source, epochs=3):
    return [[list(step) for step in source.epoch(epoch)] for epoch in range(epochs)]


def all_same(a, b):
    flat = [[batch for epoch in run for step in epoch for batch in step] for run in (a, b)]
    assert len(flat[0]) == len(flat[1]) > 0
    for x, y in zip(*flat, strict=True):
        same(x, y)


@pytest.fixture(scope="module")
def alone(store):
    return run(batches(store))


def test_an_epoch_has_its_steps_of_accumulated_batches(alone, store):
    assert batches(store).steps == 2
    assert [[len(step) for step in epoch] for epoch in alone] == [[2, 2]] * 3
    clouds = {len(batch.offset) for epoch in alone for step in epoch for batch in step}
    assert clouds == {1, 2}  # mixed, and not


@pytest.mark.parametrize("workers", [1, 2])
def test_the_stream_is_the_same_for_any_number_of_workers(store, alone, workers):
    source = batches(store, workers, epochs=3)
    all_same(run(source), alone)
    source.close()


def test_any_step_can_be_the_first(store, alone):
    for epoch, start in ((0, 1), (1, 0), (2, 1)):
        source = batches(store)
        all_same([[list(s) for s in source.epoch(epoch, start)]], [alone[epoch][start:]])


def test_an_epoch_that_was_left_early_can_be_taken_again(store, alone):
    source = batches(store)
    next(iter(source.epoch(0)))
    all_same([[list(s) for s in source.epoch(0)]], alone[:1])
    # and going on after a step does not start anew
    steps = source.epoch(1)
    first = list(next(steps))
    all_same([[first], [list(s) for s in source.epoch(1, 1)]], [alone[1][:1], alone[1][1:]])


def test_two_processes_see_what_one_accumulates(store, alone):
    ranks = [run(batches(store, rank=r, world=2, accumulation=1)) for r in range(2)]
    together = [[[*a, *b] for a, b in zip(x, y, strict=True)] for x, y in zip(*ranks, strict=True)]
    all_same(together, alone)


@pytest.mark.parametrize("known", [True, False])
def test_an_error_names_the_sample_in_one_sentence(store, known):
    with pytest.raises(SampleError) as caught:
        next(batches(store, transforms=[Fails(known=known)]).epoch(0))
    text = str(caught.value)
    assert text.startswith("b")
    assert "/s0: " in text
    assert ("a coordinate is not finite\nLook at it." in text) if known else ("IndexError: only integers" in text)
    assert "Traceback" not in text
    # for whoever wants to know more
    assert "Traceback" in str(caught.value.__cause__)


def test_a_broken_store_is_named_from_a_worker(tmp_path):
    broken = make_store(tmp_path / "s", blocks(4))
    for block in (tmp_path / "s" / "blocks").iterdir():
        shard = block / "coord" / "c" / "0" / "0"
        data = bytearray(shard.read_bytes())
        data[100] ^= 1
        shard.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"^b\d/s0: blocks/.*coord.*damaged") as caught:
        next(batches(broken, 1).epoch(0))
    assert "Traceback" in str(caught.value.__cause__)
    assert isinstance(caught.value, DitrCacheError)


def test_a_dead_worker_is_no_riddle():
    with pytest.raises(TrainingError, match=r"prepares data died[^?]*run.workers"):
        list(load(kill_process, [1, 2], LoaderConfig(1)))


def test_workers_leave_signals_to_the_parent(store):
    source = batches(store, 1, epochs=2)
    stream = source.epoch(0)
    next(stream)
    workers = multiprocessing.active_children()
    assert len(workers) == 1
    for process in workers:
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGTERM)
    assert len(list(stream)) == 1
    assert len(list(source.epoch(1))) == 2
    source.close()


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    make_store(tmp_path / "s")
    script = f"""
import multiprocessing, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from data_world import dataset
from ditr_cache.store.reader import open_store
from ditr_cache.training.loader import LoaderConfig, MakeBatch, TrainBatches
from ditr_cache.training.sampler import BatchSampler
if __name__ == "__main__":
    store = open_store({str(tmp_path / "s")!r})
    batches = TrainBatches(MakeBatch(dataset(store)), BatchSampler(tuple(store.samples), 0, 2), LoaderConfig(2))
    next(batches.epoch(0))
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    time.sleep(100)
"""
    # from a file, for workers import the main module again
    path = tmp_path / "killed.py"
    path.write_text(script)
    with subprocess.Popen(
        [sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert len(parent.stdout.readline().split()) == 2
        parent.kill()
        # the pipe ends when nobody holds it: neither a worker nor the fork server
        assert parent.stdout.read() == ""


def test_evaluation_reads_every_sample_once(store):
    clouds = EvaluationClouds(dataset(store, "eval"), LoaderConfig())
    found = list(clouds)
    assert [sample_id for sample_id, _ in found] == list(store.samples)
    assert len(clouds) == len(store.samples)
    some = dict(EvaluationClouds(dataset(store, "eval"), LoaderConfig(1), ["b3/s0"]))
    np.testing.assert_array_equal(some["b3/s0"].sample.coord, dict(found)["b3/s0"].sample.coord)
    np.testing.assert_array_equal(some["b3/s0"].features.rows, dict(found)["b3/s0"].features.rows)


def test_pinning_without_cuda_is_no_error(store):
    make = MakeBatch(dataset(store))
    sampler = BatchSampler(tuple(store.samples), 0, 2)
    batch = next(TrainBatches(make, sampler, LoaderConfig(pin=True)).epoch(0))[0]
    assert batch.coord.is_pinned() == torch.cuda.is_available()
