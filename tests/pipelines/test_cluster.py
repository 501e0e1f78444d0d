# SPDX-License-Identifier: Apache-2.0
"""Extraction on worker processes: the store of one process, whoever does which block."""

import json
import multiprocessing
import os
import signal
import threading

import dask
import psutil
import pytest
from dask_world import SLOW, Listener, World, check_clean, patience, receipts, settings
from distributed import Client

from ditr_cache.datasets.registry import open_dataset
from ditr_cache.errors import ConfigError, IdentityMismatchError
from ditr_cache.pipelines.cluster import ClusterExtract
from ditr_cache.pipelines.cluster_connect import LocalWorkers, RemoteScheduler
from ditr_cache.pipelines.extract import Extract
from ditr_cache.store.reader import open_store

BLOCKS, IMAGES = 6, 5 + 6 + 7 + 8 + 9 + 10


@pytest.fixture(scope="module")
def capture(tiny, tmp_path_factory):
    return tiny.write_capture(tmp_path_factory.mktemp("capture"), scenes=BLOCKS)


@pytest.fixture(scope="module")
def digest(capture, tiny_vit, tmp_path_factory):
    """Of one process, whose batches hold frames of several blocks."""
    return Extract(open_dataset(capture), tmp_path_factory.mktemp("one") / "store", settings(tiny_vit)).run().digest


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two workers of one scheduler."""
    with World(tmp_path_factory.mktemp("world")) as world:
        world.start_scheduler()
        world.start_worker()
        world.start_worker()
        with Client(world.address, set_as_default=False) as client:
            client.wait_for_workers(2)
        yield world


def run(world, capture, store, weights, *more, **options):
    cluster = RemoteScheduler(str(world.file))
    return ClusterExtract(open_dataset(capture), store, settings(weights, *more), cluster, **options).run()


def test_same_store_as_one_process(world, capture, tiny_vit, digest, tmp_path):
    listener = Listener()
    report = run(world, capture, tmp_path / "store", tiny_vit, progress=listener)
    assert (report.digest, report.blocks_done, report.blocks_failed) == (digest, BLOCKS, 0)
    assert (report.images, listener.total, listener.done, listener.ended) == (IMAGES, IMAGES, IMAGES, True)
    assert (report.device, report.failures, listener.notes) == ("2 x cpu", 0, [])
    check_clean(tmp_path / "store", BLOCKS)


def test_nothing_of_a_run_stays_in_the_workers(world, capture, tiny_vit, tmp_path):
    run(world, capture, tmp_path / "store", tiny_vit)
    with Client(world.address, set_as_default=False) as client:
        plugins = client.run(lambda dask_worker: [name for name in dask_worker.plugins if "ditr" in name])
        threads = client.run(lambda: [thread.name for thread in threading.enumerate()])
    assert list(plugins.values()) == [[], []]
    assert not [name for names in threads.values() for name in names if name in ("blocks", "committer", "feeder")]


def test_run_again_and_redo(world, capture, tiny_vit, digest, tmp_path):
    store = tmp_path / "store"
    first = run(world, capture, store, tiny_vit, shard=(1, 2))
    assert (first.blocks_planned, first.blocks_done) == (BLOCKS // 2, BLOCKS // 2)
    second = run(world, capture, store, tiny_vit)
    assert (second.blocks_done, second.blocks_skipped, second.digest) == (BLOCKS // 2, BLOCKS // 2, digest)
    third = run(world, capture, store, tiny_vit)
    assert (third.blocks_done, third.blocks_skipped, third.images) == (0, BLOCKS, 0)
    fourth = run(world, capture, store, tiny_vit, redo=True)
    assert (fourth.blocks_done, fourth.digest) == (BLOCKS, digest)
    assert {receipt.generation for receipt in receipts(store)} == {0, 1}


def test_other_settings_are_refused_before_a_worker_is_asked(world, capture, tiny_vit, tmp_path):
    run(world, capture, tmp_path / "store", tiny_vit)
    with pytest.raises(IdentityMismatchError, match=r"features\.dtype"):
        run(world, capture, tmp_path / "store", tiny_vit, "store.dtype=int8")


def test_relative_paths_mean_what_they_mean_here(world, capture, tiny_vit, digest, tmp_path, monkeypatch):
    """Workers run in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(tiny_vit)
    report = run(world, capture, type(tmp_path)("store"), type(tmp_path)("weights"))
    assert report.blocks_done == BLOCKS
    assert open_store(tmp_path / "store").digest == report.digest


def test_damaged_blocks_and_frames_are_listed_and_cost_nothing_else(world, tiny, tiny_vit, tmp_path):
    source = tiny.write_capture(tmp_path / "capture", scenes=4)
    (source / "scene1" / "points.ply").write_bytes(b"ply\n")
    (source / "scene2" / "images" / "0.png").write_bytes(b"\x89PNG")
    one = Extract(open_dataset(source), tmp_path / "one", settings(tiny_vit)).run()
    listener = Listener()
    many = run(world, source, tmp_path / "many", tiny_vit, progress=listener)
    assert many.failed == one.failed
    assert list(many.failed) == ["scene1"]
    assert (many.dropped, many.digest, many.images) == (one.dropped, one.digest, one.images)
    assert [note.view for note in many.dropped] == ["images/0.png"]
    assert any("scene2 images/0.png: " in note for note in listener.notes)
    assert any("block scene1 failed: " in note for note in listener.notes)


def test_a_bug_costs_its_block_only(world, capture, tiny_vit, tmp_path, monkeypatch):
    """What nobody expects breaks the stages of a process, with all that is in them."""
    monkeypatch.syspath_prepend(world.folder)
    import damaged

    listener = Listener()
    cluster = RemoteScheduler(world.address)
    report = ClusterExtract(
        damaged.Broken(capture), tmp_path / "store", settings(tiny_vit), cluster, progress=listener
    ).run()
    assert report.failed == {"scene1": "RuntimeError: a bug in a reader"}
    assert (report.blocks_done, listener.done) == (BLOCKS - 1, IMAGES - 6)
    assert json.loads(next((tmp_path / "store" / "failures").iterdir()).read_bytes())["failure"]["block"] == "scene1"


def test_two_drivers_of_one_scheduler_and_one_of_another(world, capture, tiny_vit, digest, tmp_path):
    store, reports = tmp_path / "store", []
    clusters = [RemoteScheduler(world.address), RemoteScheduler(str(world.file)), LocalWorkers(1)]
    pipelines = [ClusterExtract(open_dataset(capture), store, settings(tiny_vit), cluster) for cluster in clusters]
    threads = [threading.Thread(target=lambda p=pipeline: reports.append(p.run())) for pipeline in pipelines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 3
    assert sum(report.blocks_done for report in reports) == BLOCKS
    assert all(not report.failed for report in reports)
    assert open_store(store).digest == digest
    check_clean(store, BLOCKS)


class TestOwnWorkers:
    def test_same_store_and_no_process_stays(self, capture, tiny_vit, digest, tmp_path):
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        seen = {}

        def look(images):
            children = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
            seen["pids"] = {child.pid for child in children if "spawn_main" in " ".join(child.cmdline())}
            seen["addresses"] = {
                connection.laddr.ip
                for process in [psutil.Process(), *children]
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }

        listener = Listener()
        listener.advance = look
        report = ClusterExtract(
            open_dataset(capture), tmp_path / "store", settings(tiny_vit), LocalWorkers(2), progress=listener
        ).run()
        assert (report.digest, report.blocks_done, report.device) == (digest, BLOCKS, "2 x cpu")
        assert len(seen["pids"]) == 2
        assert seen["addresses"] == {"127.0.0.1"}
        assert not [pid for pid in seen["pids"] if psutil.pid_exists(pid)]
        check_clean(tmp_path / "store", BLOCKS)

    def test_stopped(self, tiny, tiny_vit, tmp_path):
        """What is finished is there, and no half block; Ctrl-C at a terminal reaches the workers too."""
        slow, store, blocks = tmp_path / "slow.py", tmp_path / "store", 16
        slow.write_text(SLOW.format(seconds=0.02))
        capture = tiny.write_capture(tmp_path / "capture", scenes=blocks, views=2, points=50)
        pipeline = ClusterExtract(open_dataset(capture), store, settings(tiny_vit), LocalWorkers(2))

        def stop():
            patience(lambda: receipts(store) if (store / "receipts").exists() else None)
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGINT)
            pipeline.request_stop()

        stopper = threading.Thread(target=stop)
        stopper.start()
        with dask.config.set({"distributed.worker.preload": [str(slow)]}):
            report = pipeline.run()
        stopper.join()
        assert report.interrupted
        assert 1 <= report.blocks_done + report.blocks_skipped < blocks
        check_clean(store, report.blocks_done + report.blocks_skipped)
        whole = Extract(open_dataset(capture), store, settings(tiny_vit)).run()
        assert whole.digest == Extract(open_dataset(capture), tmp_path / "one", settings(tiny_vit)).run().digest

    def test_cores_are_shared(self, tiny_vit):
        cores = len(os.sched_getaffinity(0))
        config = settings(tiny_vit)
        free = config.model_copy(update={"run": config.run.model_copy(update={"threads": None})})
        assert LocalWorkers(1).adapt(free).run.threads == cores
        assert LocalWorkers(1000).adapt(free).run.threads == 1
        assert LocalWorkers(2).adapt(config).run.threads == config.run.threads == 2

    def test_no_such_shard(self, capture, tiny_vit, tmp_path):
        with pytest.raises(ConfigError, match="0 <= i < n"):
            ClusterExtract(open_dataset(capture), tmp_path, settings(tiny_vit), LocalWorkers(1), shard=(2, 2))
