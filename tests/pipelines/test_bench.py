# SPDX-License-Identifier: Apache-2.0
"""`Bench`: what it counts is what is read, and raw reads are the same bytes."""

import errno
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from store_builder import build_store, random_block

from ditr_cache.errors import ConfigError, CorruptStoreError, StoreNotFoundError
from ditr_cache.pipelines.bench import Bench
from ditr_cache.pipelines.bench_reads import RawReads, Recorder, evict
from ditr_cache.store.local import LocalStorage
from ditr_cache.store.reader import FeatureStore, open_store
from ditr_cache.store.storage import Range
from ditr_cache.store.versions import read_manifest


class Counts:
    """Adds up what it is told."""

    def __init__(self):
        self.total = self.done = self.ended = 0

    def begin(self, images):
        self.total = images

    def advance(self, images):
        self.done += images

    def note(self, text):
        raise AssertionError(text)

    def end(self):
        self.ended += 1


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "store"
    build_store(folder, [random_block(i, f"b{i}", points=500, views=6) for i in range(3)])
    return folder


def test_report(store):
    progress = Counts()
    report = Bench(store, samples=7, count=4, progress=progress).run()
    assert [(s.name, s.reader) for s in report.speeds] == [
        ("cold", "store"),
        ("cold", "raw"),
        ("warm", "store"),
        ("warm", "raw"),
    ]
    for speed in report.speeds:
        assert 0 < speed.p50_s <= speed.p90_s <= speed.p99_s
        assert speed.samples_per_s > 0
        assert speed.bytes_per_s > 0
    assert (report.samples, report.distinct, report.count, report.remote) == (7, 3, 4, False)
    assert report.manifest == open_store(store).version
    assert report.warm_over_raw == report.speeds[2].p50_s / report.speeds[3].p50_s
    assert (progress.total, progress.done, progress.ended) == (21, 21, 1)
    assert report.to_dict()["speeds"][0]["name"] == "cold"


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_the_loader_too(store, kind):
    progress = Counts()
    report = Bench(store, samples=5, count=2, workers=2, kind=kind, prefetch=3, progress=progress).run()
    assert (report.workers, report.kind, report.prefetch) == (2, kind, 3)
    assert [s.name for s in report.speeds[4:]] == ["loader"]
    assert report.speeds[4].samples_per_s > 0
    assert progress.done == progress.total == 20


def test_bytes_are_those_that_were_asked_for(tmp_path):
    """A view a block: what is read is every chunk of rows, hits and points, and no more."""
    store = tmp_path / "store"
    build_store(store, [random_block(i, f"b{i}", points=500, views=1) for i in range(3)])
    report = Bench(store, samples=6, count=None).run()
    manifest, _ = read_manifest(LocalStorage(store))
    least = most = 0
    for receipt in manifest.blocks.values():
        for name, entry in receipt.arrays.items():
            if name in ("features", "row_patch", "hit_step", "hit_row", "coord", "color", "normal", "instance"):
                least += entry.data.size - 16 * entry.chunks - 4
        most += receipt.size
    # three blocks of one sample, each read twice
    assert least / 3 <= report.bytes_per_sample <= most / 3


def test_the_order_is_that_of_training(store):
    def order(seed):
        return [key.sample_id for key in Bench(store, samples=12, seed=seed)._keys]

    assert order(0) == order(0) != order(1)
    epochs = [order(0)[i : i + 3] for i in range(0, 12, 3)]
    assert all(sorted(epoch) == ["b0/s0", "b1/s0", "b2/s0"] for epoch in epochs)
    assert any(a != b for a, b in pairwise(epochs))


def test_reads_are_recorded_as_they_are_done(store):
    recorder = Recorder(LocalStorage(store))
    opened = FeatureStore(recorder, *read_manifest(recorder))
    assert [r.key for r in recorder.take()] == ["LATEST", f"manifest-{opened.version}.json"]
    a = opened.read("b1/s0", seed=0)
    first = recorder.take()
    b = opened.read("b1/s0", seed=0)
    np.testing.assert_array_equal(a.features.rows, b.features.rows)
    again = recorder.take()
    # tables and indexes are read once
    assert set(again) < set(first)
    assert all("b1" in r.key and 0 <= r.start < r.stop <= (store / r.key).stat().st_size for r in first)
    assert {r.key.split("/")[2] for r in again} >= {"features", "hit_step", "hit_row", "coord"}
    opened.close()


def test_raw_reads_are_the_bytes_of_the_ranges(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(200)))
    raw = RawReads(tmp_path)
    ranges = [Range("a", 3, 50), Range("a", 190, 200)]
    raw.reserve(ranges)
    raw.read(ranges[:1])
    assert bytes(raw._buffer[:47]) == bytes(range(3, 50))
    raw.read(ranges[1:])
    assert bytes(raw._buffer[:10]) == bytes(range(190, 200))
    with pytest.raises(CorruptStoreError, match="ends too early"):
        raw.read([Range("a", 190, 210)])
    with pytest.raises(CorruptStoreError, match="missing"):
        raw.read([Range("b", 0, 1)])
    raw.close()


def test_raw_reads_hold_few_files(tmp_path):
    raw = RawReads(tmp_path)
    for i in range(200):
        (tmp_path / str(i)).write_bytes(b"x")
        raw.reserve([Range(str(i), 0, 1)])
        raw.read([Range(str(i), 0, 1)])
    assert len(raw._files) == 128
    raw.close()


def test_evicted_files_are_no_longer_in_memory(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.fdatasync(file.fileno())
    with path.open("rb") as file:
        assert file.read()
        try:
            os.preadv(file.fileno(), [bytearray(100)], 0, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            pytest.skip("this file system cannot tell what is in memory")
        evict(tmp_path, ["file"])
        with pytest.raises(BlockingIOError):
            os.preadv(file.fileno(), [bytearray(100)], 0, os.RWF_NOWAIT)


def test_what_cannot_be_measured_is_said(tmp_path):
    with pytest.raises(StoreNotFoundError):
        Bench(tmp_path / "nowhere")
    build_store(tmp_path / "empty", [])
    with pytest.raises(ConfigError, match="has no samples"):
        Bench(tmp_path / "empty")
