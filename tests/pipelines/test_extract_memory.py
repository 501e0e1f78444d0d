# SPDX-License-Identifier: Apache-2.0
"""Memory is bounded by the batch, however long a scene is and whoever is slow; and nobody waits for ever."""

import threading
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest

from ditr_cache.pipelines import feeder
from ditr_cache.store.block import BlockWriter
from ditr_cache.store.reader import open_store

BATCH, THREADS = 4, 2
PERMITS = 2 * BATCH + 2 * THREADS
MOST = PERMITS + 2  # whoever has just dealt with one still holds it in a variable

pytestmark = pytest.mark.timeout(60)


class Alive:
    """Counts objects that are not collected yet."""

    def __init__(self):
        self.now, self.peak, self.total, self._lock = 0, 0, 0, threading.Lock()

    def watch(self, thing):
        with self._lock:
            self.now, self.total = self.now + 1, self.total + 1
            self.peak = max(self.peak, self.now)
        weakref.finalize(thing, self._gone)

    def _gone(self):
        with self._lock:
            self.now -= 1


@pytest.fixture
def frames(monkeypatch):
    """How many prepared frames are alive."""
    alive, prepare = Alive(), feeder.prepare_frame

    def watched(*args):
        prepared = prepare(*args)
        alive.watch(prepared.image_3hw)
        return prepared

    monkeypatch.setattr(feeder, "prepare_frame", watched)
    return alive


def slowed(monkeypatch, owner, name, seconds):
    method = getattr(owner, name)

    def slow(*args, **options):
        time.sleep(seconds)
        return method(*args, **options)

    monkeypatch.setattr(owner, name, slow)


class TestBound:
    @pytest.mark.parametrize("slow", ["nobody", "vit", "committer"])
    @pytest.mark.parametrize("blocks", [1, 6])
    def test_prepared_frames(self, tiny, tmp_path, monkeypatch, frames, slow, blocks):
        vit = tiny.PatchSums()
        if slow == "vit":
            slowed(monkeypatch, tiny.PatchSums, "__call__", 0.02)
        if slow == "committer":
            slowed(monkeypatch, BlockWriter, "add_view", 0.005)
        report = tiny.extract(tiny.rooms(blocks, views=90 // blocks), tmp_path / "store", backbone=vit).run()
        assert (report.images, report.failures) == (90, 0)
        print("peak", frames.peak, "of", MOST)
        assert frames.total == 90
        assert frames.now == 0
        assert frames.peak <= MOST
        assert all(batch[0] == BATCH for batch in vit.batches)
        # one part of a batch at the end, no more: batches run across scenes
        assert len(vit.batches) == -(-90 // BATCH)

    @pytest.mark.parametrize("views", [0, 1])
    def test_scenes(self, tiny, tmp_path, monkeypatch, views):
        """Many small samples in a block, and samples without any view, which no frame would hold back."""
        alive = Alive()

        class Watched(tiny.Rooms):
            def load(self, sample_id):
                scene = super().load(sample_id)
                color = scene.points.color.copy()
                alive.watch(color)
                return replace(scene, points=replace(scene.points, color=color))

        slowed(monkeypatch, BlockWriter, "add_sample", 0.003)
        dataset = Watched({"b": [tiny.room(f"s{i:03d}", views=views) for i in range(80)]})
        report = tiny.extract(dataset, tmp_path / "store").run()
        assert (report.images, report.failures, report.blocks_done) == (80 * views, 0, 1)
        print("peak", alive.peak)
        assert (alive.total, alive.now) == (80, 0)
        # and the one that waits for a permit
        assert alive.peak <= MOST + 1
        store = open_store(tmp_path / "store")
        assert len(store.samples) == 80
        assert store.read("s079").features.rows.shape[1] == 6

    def test_a_sample_without_views_that_is_left_to_others(self, tiny, tmp_path):
        report = tiny.extract(tiny.rooms(3, views=0), tmp_path / "store").run()
        assert (report.blocks_done, report.images, report.rows, report.views_per_point) == (3, 0, 0, 0)
        again = tiny.extract(tiny.rooms(3, views=0), tmp_path / "store").run()
        assert (again.blocks_skipped, again.digest) == (3, report.digest)


def mixed(tiny, sizes):
    views = tuple(replace(tiny.view("r", i, *size), name=f"{i:03d}") for i, size in enumerate(sizes))
    return tiny.Rooms({"r": [replace(tiny.room("r", views=0), views=views)]})


COMMON, TALL, SQUARE, WIDE = (20, 28), (28, 20), (24, 24), (16, 36)
SIZES = {
    "a rare one first": [TALL] + [COMMON] * 60,
    "a rare one in the middle": [COMMON] * 30 + [TALL] + [COMMON] * 29,
    "two in turn": [COMMON, TALL] * 30,
    "many in turn": [COMMON, TALL, SQUARE, WIDE] * 12,
    "each one rare": [(20, 20 + 4 * i) for i in range(24)],
    "rare ones among common ones": ([COMMON] * 9 + [TALL] + [COMMON] * 7 + [WIDE]) * 3,
    "fewer than a batch": [COMMON, TALL],
}


class TestSizes:
    """Images of several sizes share a run; the batches of a rare one must not hold up everything behind it."""

    @pytest.mark.parametrize("name", SIZES)
    def test_no_deadlock_and_no_difference(self, tiny, tmp_path, frames, name):
        sizes = SIZES[name]
        settings = ("images.size=null", "images.budget=36")
        report = tiny.extract(mixed(tiny, sizes), tmp_path / "store", *settings).run()
        assert (report.images, report.failures) == (len(sizes), 0)
        assert frames.peak <= MOST
        one = tiny.extract(mixed(tiny, sizes), tmp_path / "one", *settings, "run.batch_size=1", "run.threads=1").run()
        assert one.digest == report.digest
        grids = open_store(tmp_path / "store")
        receipt, _ = grids.samples.locate("r")
        assert len(np.unique(grids.block(receipt).array("grid").read_all(), axis=0)) >= min(2, len(set(sizes)))

    def test_bad_frames_between_rare_sizes(self, tiny, tmp_path):
        dataset = mixed(tiny, ([TALL] + [COMMON] * 14) * 4)
        scene = dataset.blocks["r"]["r"]
        broken = replace(scene.views[0], image=tiny.Pixels(np.zeros((3, 3, 3), np.uint8)))
        views = tuple(replace(broken, name=v.name) if i % 15 in (1, 2, 3) else v for i, v in enumerate(scene.views))
        dataset.blocks["r"]["r"] = replace(scene, views=views)
        report = tiny.extract(dataset, tmp_path / "store", "images.size=null", "images.budget=36").run()
        assert (report.images, len(report.dropped)) == (48, 12)


class TestThreads:
    def test_nothing_is_left_behind(self, tiny, tmp_path):
        before = threading.active_count()
        tiny.extract(tiny.rooms(2), tmp_path / "store").run()
        assert threading.active_count() == before
