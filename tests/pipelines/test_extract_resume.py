# SPDX-License-Identifier: Apache-2.0
"""Killed, stopped, split or repeated: the finished store is the one of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ditr_cache.backbones import load_backbone
from ditr_cache.config import BackboneConfig, ExtractConfig, load_config
from ditr_cache.datasets.registry import open_dataset
from ditr_cache.pipelines.extract import Extract
from ditr_cache.pipelines.progress import Silent
from ditr_cache.store.block import BlockWriter
from ditr_cache.store.reader import open_store
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.writer import StoreWriter

SETTINGS = ["images.size=[28,42]", "run.batch_size=4", "run.threads=2", "visibility.depth_margin=null"]
BLOCKS, IMAGES = 4, 5 + 6 + 7 + 8

# Imports torch and loads the network once; every run is a fork of it, killed like a process of its own.
SERVER = """
import json, os, sys, time
from pathlib import Path
from ditr_cache.backbones import load_backbone
from ditr_cache.config import BackboneConfig, ExtractConfig, load_config
from ditr_cache.datasets.registry import open_dataset
from ditr_cache.pipelines.extract import Extract
from ditr_cache.store.writer import StoreWriter

backbone = load_backbone(BackboneConfig(weights=sys.argv[1]), "cpu")

def run(source, store, settings, shard, flush):
    os.fsync = lambda fd: time.sleep(flush)
    if source is None:
        while True:
            StoreWriter(Path(store)).finalize()
    config = load_config(ExtractConfig, [], settings)
    report = Extract(open_dataset(source), Path(store), config, backbone=backbone, shard=tuple(shard)).run()
    assert not report.failures, report

print("ready", flush=True)
for line in sys.stdin:
    word, _, rest = line.partition(" ")
    if word == "start":
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                run(**json.loads(rest))
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
    else:
        print(os.waitstatus_to_exitcode(os.waitpid(int(rest), 0)[1]), flush=True)
"""


class Server:
    """Starts runs, each in a process."""

    def __init__(self, weights):
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(weights)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout.readline() == "ready\n"

    def _ask(self, line):
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, source, store, shard=(0, 1), flush=0.001):
        """Begin a run; `flush` is what flushing a file takes, so that most of the time goes between two steps."""
        request = {"source": source and str(source), "store": str(store), "settings": SETTINGS, "shard": shard}
        return self._ask("start " + json.dumps(request | {"flush": flush}))

    def wait(self, pid):
        """Exit code; minus the signal for a killed run."""
        return self._ask(f"wait {pid}")

    def run(self, *args, **options):
        began = time.monotonic()
        assert self.wait(self.start(*args, **options)) == 0
        return time.monotonic() - began

    def close(self):
        self._process.communicate()


@pytest.fixture(scope="module")
def server(tiny_vit):
    server = Server(tiny_vit)
    yield server
    server.close()


@pytest.fixture(scope="module")
def capture(tiny, tmp_path_factory):
    return tiny.write_capture(tmp_path_factory.mktemp("capture"), scenes=BLOCKS)


@pytest.fixture(scope="module")
def undisturbed(server, capture, tmp_path_factory):
    """Digest of a store that nothing happened to, and the seconds it took."""
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    server.run(capture, store)
    seconds = min(server.run(capture, store.with_name(f"again{i}")) for i in range(2))
    assert open_store(store).digest == open_store(store.with_name("again0")).digest
    check_clean(store)
    return open_store(store).digest, seconds


def receipts(store):
    return [Receipt.model_validate_json(p.read_bytes()) for p in (store / "receipts").glob("[!.]*.json")]


def check_clean(store):
    """Nothing lies around but what the manifest names."""
    folders = {r.folder.removeprefix("blocks/") for r in receipts(store)}
    assert {p.name for p in (store / "blocks").iterdir()} == folders
    assert len(folders) == BLOCKS
    assert not [p for p in store.rglob("*") if p.name.endswith(".tmp")]
    assert not list((store / "failures").iterdir())
    assert len(list((store / "plans").iterdir())) == 1


class TestKill:
    def kill_and_finish(self, server, capture, store, seconds, draw):
        pid = server.start(capture, store)
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        killed = server.wait(pid) != 0
        left = len(receipts(store)) if (store / "receipts").exists() else 0
        server.run(capture, store, flush=0)
        return killed, left

    def check(self, server, capture, undisturbed, tmp_path, times):
        digest, seconds = undisturbed
        draw = random.Random(20)
        outcomes = []
        for i in range(times):
            store = tmp_path / f"store{i}"
            outcomes.append(self.kill_and_finish(server, capture, store, seconds, draw))
            assert open_store(store).digest == digest
            check_clean(store)
        print("killed", sum(killed for killed, _ in outcomes), "blocks there", [left for _, left in outcomes])
        return outcomes

    def test_killed_at_5_moments(self, server, capture, undisturbed, tmp_path):
        self.check(server, capture, undisturbed, tmp_path, 5)

    @pytest.mark.slow
    def test_killed_at_30_moments(self, server, capture, undisturbed, tmp_path):
        outcomes = self.check(server, capture, undisturbed, tmp_path, 30)
        assert sum(killed for killed, _ in outcomes) >= 15
        assert len({left for killed, left in outcomes if killed}) >= 3

    @pytest.mark.slow
    def test_killed_again_and_again(self, server, capture, undisturbed, tmp_path):
        """One store, killed ten times before a run may end."""
        digest, seconds = undisturbed
        draw, store = random.Random(21), tmp_path / "store"
        for _ in range(10):
            pid = server.start(capture, store)
            time.sleep(draw.uniform(0, 0.5 * seconds))
            os.kill(pid, signal.SIGKILL)
            server.wait(pid)
        server.run(capture, store)
        assert open_store(store).digest == digest
        check_clean(store)


class TestTogether:
    @pytest.mark.parametrize("repeat", [0, pytest.param(1, marks=pytest.mark.slow)])
    def test_two_extractors_and_two_finalisers(self, server, capture, undisturbed, tmp_path, repeat):
        store = tmp_path / "store"
        runs = [server.start(capture, store) for _ in range(2)]
        while not (store / "zarr.json").exists():
            time.sleep(0.01)
        finalisers = [server.start(None, store) for _ in range(2)]
        codes = [server.wait(pid) for pid in runs]
        for pid in finalisers:
            os.kill(pid, signal.SIGKILL)
            server.wait(pid)
        assert codes == [0, 0]
        StoreWriter(store).finalize()
        assert open_store(store).digest == undisturbed[0]
        check_clean(store)

    def test_shards_at_once(self, server, capture, undisturbed, tmp_path):
        store = tmp_path / "store"
        pids = [server.start(capture, store, shard=(i, 3)) for i in range(3)]
        assert [server.wait(pid) for pid in pids] == [0, 0, 0]
        assert open_store(store).digest == undisturbed[0]
        check_clean(store)


class Calls:
    """An image that does something else first, once."""

    def __init__(self, source, action):
        self.source, self.action = source, action

    def read(self):
        action, self.action = self.action, None
        if action is not None:
            action()
        return self.source.read()


class TestOvertaken:
    """Another run commits what this one is working on; its finaliser may even take this one's files."""

    def other(self, tiny, store):
        def action():
            assert tiny.extract(tiny.rooms(3), store).run().blocks_done == 3

        return action

    def check(self, tiny, dataset, tmp_path, **options):
        report = tiny.extract(dataset, tmp_path / "store", **options).run()
        assert (report.blocks_done, report.blocks_skipped, report.failures, report.images) == (0, 3, 0, 0)
        tiny.extract(tiny.rooms(3), tmp_path / "alone").run()
        assert open_store(tmp_path / "alone").digest == report.digest
        folders = {r.folder.removeprefix("blocks/") for r in receipts(tmp_path / "store")}
        assert {p.name for p in (tmp_path / "store/blocks").iterdir()} == folders
        assert not list((tmp_path / "store/failures").iterdir())

    @pytest.mark.parametrize("i", [0, 2])
    def test_while_a_frame_is_read(self, tiny, tmp_path, i):
        dataset = tiny.rooms(3)
        scene = dataset.blocks["r0"]["r0"]
        views = list(scene.views)
        views[i] = replace(views[i], image=Calls(views[i].image, self.other(tiny, tmp_path / "store")))
        dataset.blocks["r0"]["r0"] = replace(scene, views=tuple(views))
        self.check(tiny, dataset, tmp_path)

    def test_before_a_scene_is_loaded(self, tiny, tmp_path):
        dataset, other = tiny.rooms(3), self.other(tiny, tmp_path / "store")

        class Overtaken(tiny.Rooms):
            def load(self, sample_id):
                if not self.loaded:
                    other()
                return super().load(sample_id)

        dataset.__class__ = Overtaken
        self.check(tiny, dataset, tmp_path)

    def test_while_writing(self, tiny, tmp_path, monkeypatch):
        add_view, other = BlockWriter.add_view, self.other(tiny, tmp_path / "store")
        calls = []

        def overtaken(writer, view):
            calls.append(view.name)
            if len(calls) == 2:
                other()
            add_view(writer, view)

        monkeypatch.setattr(BlockWriter, "add_view", overtaken)
        self.check(tiny, tiny.rooms(3), tmp_path)

    def test_just_before_the_receipt(self, tiny, tmp_path, monkeypatch):
        commit, other = StoreWriter.commit, self.other(tiny, tmp_path / "store")
        calls = []

        def overtaken(writer, receipt):
            calls.append(receipt.block)
            if len(calls) == 1:
                other()
            return commit(writer, receipt)

        monkeypatch.setattr(StoreWriter, "commit", overtaken)
        self.check(tiny, tiny.rooms(3), tmp_path)


@pytest.fixture(scope="module")
def vit(tiny_vit):
    return load_backbone(BackboneConfig(weights=tiny_vit), "cpu")


class TestHere:
    """In this process."""

    def job(self, capture, store, vit, *settings, **options):
        config = load_config(ExtractConfig, [], [*SETTINGS, *settings])
        return Extract(open_dataset(capture), store, config, backbone=vit, **options)

    @pytest.mark.parametrize("settings", [("run.threads=1",), ("run.threads=7",), ("run.batch_size=4",)])
    def test_threads_change_nothing(self, capture, undisturbed, vit, tmp_path, settings):
        report = self.job(capture, tmp_path / "store", vit, *settings).run()
        assert (report.digest, report.images) == (undisturbed[0], IMAGES)

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
    def test_shards_in_turn(self, capture, undisturbed, vit, tmp_path, order):
        reports = [self.job(capture, tmp_path / "store", vit, shard=(i, 3)).run() for i in order]
        assert reports[-1].digest == undisturbed[0]
        assert sum(r.blocks_done for r in reports) == sum(r.blocks_planned for r in reports) == BLOCKS
        assert not any(r.blocks_skipped for r in reports)
        check_clean(tmp_path / "store")

    def test_resumed_after_any_block(self, capture, undisturbed, vit, tmp_path):
        """Batches run across scenes: what is left to do must not change them."""
        self.job(capture, tmp_path / "store", vit).run()
        for missing in ({0}, {1, 3}, {0, 1, 2}):
            for i in missing:
                (tmp_path / f"store/receipts/scene{i}.0.json").unlink()
            report = self.job(capture, tmp_path / "store", vit).run()
            assert (report.blocks_done, report.blocks_skipped) == (len(missing), BLOCKS - len(missing))
            assert report.digest == undisturbed[0]
            check_clean(tmp_path / "store")

    def test_redo(self, capture, undisturbed, vit, tmp_path):
        self.job(capture, tmp_path / "store", vit).run()
        report = self.job(capture, tmp_path / "store", vit, redo=True).run()
        assert (report.blocks_done, report.digest) == (BLOCKS, undisturbed[0])
        assert {r.generation for r in receipts(tmp_path / "store")} == {0, 1}
        StoreWriter(tmp_path / "store").collect(now=True)
        assert open_store(tmp_path / "store").digest == undisturbed[0]
        assert len(list((tmp_path / "store/blocks").iterdir())) == BLOCKS

    @pytest.mark.parametrize("after", [0, 1, 3, 5])
    def test_request_stop(self, capture, undisturbed, vit, tmp_path, after):
        """Finished blocks are finalised, the one at hand is given up, the next run ends at the same digest."""
        store = tmp_path / "store"

        class Listener:
            def __init__(self):
                self.images, self.job = 0, None

            def begin(self, images):
                assert images == IMAGES
                if after == 0:
                    self.job.request_stop()

            def advance(self, images):
                self.images += images
                if after and len(list((store / "receipts").iterdir())) >= after:
                    self.job.request_stop()

            def note(self, text):
                pass

            def end(self):
                self.ended = True

        listener = Listener()
        listener.job = self.job(capture, store, vit, progress=listener)
        report = listener.job.run()
        assert listener.ended
        assert report.interrupted == (after <= BLOCKS)
        assert not report.failures
        done = receipts(store)
        assert len(done) == report.blocks_done == len(open_store(store).manifest.blocks)
        assert {p.name for p in (store / "blocks").iterdir()} == {r.folder.removeprefix("blocks/") for r in done}
        if after == 0:
            assert not done
        report = self.job(capture, store, vit).run()
        assert (report.digest, report.interrupted) == (undisturbed[0], False)
        assert report.blocks_done + len(done) == BLOCKS
        check_clean(store)

    def test_stopped_from_a_signal_handler(self, capture, undisturbed, vit, tmp_path):
        class Listener(Silent):
            def advance(self, images):
                if images and list((tmp_path / "store" / "receipts").iterdir()):
                    os.kill(os.getpid(), signal.SIGTERM)

        job = self.job(capture, tmp_path / "store", vit, "run.batch_size=1", progress=Listener())
        before = signal.signal(signal.SIGTERM, lambda *_: job.request_stop())
        try:
            report = job.run()
        finally:
            signal.signal(signal.SIGTERM, before)
        assert report.interrupted
        assert 0 < report.blocks_done < BLOCKS
        assert report.blocks_done == len(open_store(tmp_path / "store").manifest.blocks)
        assert self.job(capture, tmp_path / "store", vit).run().digest == undisturbed[0]
