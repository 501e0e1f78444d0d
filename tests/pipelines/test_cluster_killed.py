# SPDX-License-Identifier: Apache-2.0
"""kill -9 of workers, schedulers and drivers at random moments: run again, it is the store of an undisturbed run."""

import json
import random
import signal
import threading
import time

import pytest
from dask_world import Listener, World, check_clean, kill, kill_child, patience, receipts, settings

from ditr_cache.datasets.registry import open_dataset
from ditr_cache.errors import IncompleteStoreError, RemoteError, StoreNotFoundError
from ditr_cache.pipelines.cluster import ClusterExtract
from ditr_cache.pipelines.cluster_connect import RemoteScheduler
from ditr_cache.pipelines.extract import Extract
from ditr_cache.store.reader import open_store

BLOCKS = 8


@pytest.fixture(scope="module")
def capture(tiny, tmp_path_factory):
    return tiny.write_capture(tmp_path_factory.mktemp("capture"), scenes=BLOCKS, views=3, points=100)


@pytest.fixture(scope="module")
def digest(capture, tiny_vit, tmp_path_factory):
    return Extract(open_dataset(capture), tmp_path_factory.mktemp("one") / "store", settings(tiny_vit)).run().digest


class Reader(threading.Thread):
    """Opens the store again and again while it is written: whatever it sees is whole."""

    def __init__(self, store):
        super().__init__()
        self._store, self._over = store, threading.Event()
        self.seen, self.error = set(), None

    def run(self):
        while not self._over.wait(0.05):
            try:
                with open_store(self._store) as store:
                    for sample in store.samples:
                        store.read(sample)
                    self.seen.add(len(store.samples))
            except (StoreNotFoundError, IncompleteStoreError):
                # its first manifest is yet to come
                continue
            except Exception as error:
                self.error = error
                return

    def __exit__(self, *_):
        self._over.set()
        self.join()

    def __enter__(self):
        self.start()
        return self


def begun(store):
    return (store / "blocks").exists() and any((store / "blocks").iterdir())


def test_killed_workers_are_replaced(capture, tiny_vit, digest, tmp_path):
    """The run itself goes on."""
    store, draw = tmp_path / "store", random.Random(1)
    with World(tmp_path / "world", flush=0.02) as world:
        world.start_scheduler()
        workers = [world.start_worker() for _ in range(2)]
        pipeline = ClusterExtract(open_dataset(capture), store, settings(tiny_vit), RemoteScheduler(world.address))
        reports = []
        driver = threading.Thread(target=lambda: reports.append(pipeline.run()))
        driver.start()
        for worker in workers:
            patience(lambda: begun(store))
            time.sleep(draw.uniform(0, 1))
            kill_child(worker)
        driver.join()
    assert [(report.digest, report.failed) for report in reports] == [(digest, {})]
    check_clean(store, BLOCKS)


def test_a_block_that_kills_its_process_is_listed_and_costs_nothing_else(capture, tiny_vit, tmp_path, monkeypatch):
    """What was in the same process is innocent, and done."""
    listener = Listener()
    with World(tmp_path / "world", deaths=0) as world:
        monkeypatch.syspath_prepend(world.folder)
        import damaged

        world.start_scheduler().start_worker()
        cluster = RemoteScheduler(world.address)
        report = ClusterExtract(
            damaged.Poisoned(capture), tmp_path / "store", settings(tiny_vit), cluster, progress=listener
        ).run()
    assert report.failed == {"scene1": "its worker processes died, 1 times in a row"}
    assert report.blocks_done + report.blocks_skipped == BLOCKS - 1
    assert any("scene1" in note and "tried again at the end, alone" in note for note in listener.notes)


def test_lost_scheduler_ends_the_run_with_a_sentence(capture, tiny_vit, digest, tmp_path):
    store = tmp_path / "store"
    with World(tmp_path / "world", flush=0.02) as world:
        world.start_scheduler().start_worker()
        killer = threading.Thread(target=lambda: patience(lambda: begun(store)) and kill(world.scheduler))
        killer.start()
        with pytest.raises(RemoteError, match="the connection to the Dask scheduler was lost"):
            ClusterExtract(
                open_dataset(capture), store, settings(tiny_vit), RemoteScheduler(world.address, patience=3)
            ).run()
        killer.join()
    # what was finished is to be seen
    assert (store / "LATEST").exists()
    assert Extract(open_dataset(capture), store, settings(tiny_vit)).run().digest == digest
    check_clean(store, BLOCKS)


def test_killed_driver_and_run_again(capture, tiny_vit, digest, tmp_path):
    """Its workers finish what they are at; nobody is in the way of the next one."""
    store = tmp_path / "store"
    with World(tmp_path / "world", flush=0.02) as world, Reader(store) as reader:
        world.start_scheduler().start_worker()
        driver = world.start_driver(capture, store, tiny_vit, "--scheduler", world.file)
        patience(lambda: begun(store) and receipts(store))
        kill(driver)
        assert driver.wait() == -signal.SIGKILL
        again = world.start_driver(capture, store, tiny_vit, "--scheduler", world.file)
        assert again.wait(120) == 0, world.log(again)
    text = world.log(again)
    assert json.loads(text[text.index("{\n") :])["digest"] == digest
    assert reader.error is None
    check_clean(store, BLOCKS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_12_times(tiny, tiny_vit, tmp_path):
    """Workers, nannies, schedulers and drivers, in any order, while somebody reads."""
    blocks, kills, draw, victims = 60, 12, random.Random(12), []
    capture = tiny.write_capture(tmp_path / "capture", scenes=blocks, views=2, points=50)
    digest = Extract(open_dataset(capture), tmp_path / "one", settings(tiny_vit)).run().digest
    store = tmp_path / "store"
    with World(tmp_path / "world", flush=0.05) as world, Reader(store) as reader:

        def start_all():
            world.start_scheduler()
            return [world.start_worker(), world.start_worker()]

        def start_driver():
            return world.start_driver(capture, store, tiny_vit, "--scheduler", world.file)

        workers, driver = start_all(), start_driver()
        while len(victims) < kills:
            done = len(receipts(store)) if begun(store) else 0
            patience(lambda n=done: begun(store) and len(receipts(store)) > n)
            assert driver.poll() is None, world.log(driver)
            time.sleep(draw.uniform(0, 1))
            victim = draw.choice(["worker", "nanny", "scheduler", "driver"])
            victims.append(victim)
            i = draw.randrange(2)
            if victim == "worker":
                kill_child(workers[i])
            elif victim == "nanny":
                kill(workers[i])
                workers[i] = world.start_worker()
            elif victim == "driver":
                kill(driver)
                driver = start_driver()
            else:
                kill(world.scheduler)
                assert driver.wait(120) == 1
                assert "the connection to the Dask scheduler was lost" in world.log(driver)
                for worker in workers:
                    kill(worker)
                workers, driver = start_all(), start_driver()
        assert driver.wait(300) == 0, world.log(driver)
    print("killed", victims, "readers saw", sorted(reader.seen))
    assert reader.error is None
    with open_store(store) as found:
        assert found.digest == digest
    check_clean(store, blocks)
