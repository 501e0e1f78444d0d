# SPDX-License-Identifier: Apache-2.0
"""Push, pull and merge are killed at random moments while somebody reads: in the end nothing is different."""

import multiprocessing
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
from share_processes import merge, pull, push
from share_world import BLOCKS, add_block, fast_folder, make, sound, version_of

from ditr_cache.errors import StoreNotFoundError
from ditr_cache.pipelines.diff import Diff
from ditr_cache.store.reader import open_store
from ditr_cache.store.verify import verify_store

# children are forked off a server that has imported torch, and opened no store
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "share_processes", "ditr_cache.store.encode", "ditr_cache.store.block"])
KILLS = [5, pytest.param(25, marks=pytest.mark.slow)]


class Reader(threading.Thread):
    """Opens and reads a store again and again; whenever there is one, it is one of those that it may be."""

    def __init__(self, target: str, allowed: set[str]) -> None:
        super().__init__()
        self.target, self.allowed = target, allowed
        self.seen: set[str] = set()
        self.error: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            while not self.done.wait(0.001):
                self.look()
        except BaseException as error:
            self.error = error

    def look(self) -> None:
        try:
            store = open_store(self.target)
        except StoreNotFoundError:
            return
        with store:
            assert store.manifest.planned == ()
            for sample in store.samples:
                store.read(sample)
            self.seen.add(store.digest)
            assert self.seen <= self.allowed

    def end(self) -> None:
        self.done.set()
        self.join()
        if self.error is not None:
            raise self.error


def start(work, sources, target, environment):
    process = CONTEXT.Process(target=work, args=([str(s) for s in sources], str(target), environment))
    process.start()
    return process


def killed(work, sources, target_of, kills: int, *, environment=None, old: str | None = None) -> str:
    """Kill `work` so many times, each run going on where the one before was killed.

    Args:
        work: Fills a target from sources.
        sources: Stores.
        target_of: Number -> a fresh target.
        kills: How many.
        environment: For the process.
        old: Content digest of what targets hold before.

    Returns:
        An undisturbed one.
    """
    environment = environment or {}
    rng = random.Random(0)
    for n in range(2):
        # the first one starts the fork server too
        whole, began = target_of(-n), time.monotonic()
        process = start(work, sources, whole, environment)
        process.join()
        assert process.exitcode == 0
        seconds = time.monotonic() - began
    with open_store(whole) as store:
        digest = store.digest
    interrupted, number = 0, 1
    while interrupted < kills:
        target = target_of(number)
        reader = Reader(target, {digest} | ({old} if old else set()))
        reader.start()
        try:
            while interrupted < kills:
                process = start(work, sources, target, environment)
                process.join(rng.uniform(0, 1.5 * seconds))
                interrupted += process.is_alive()
                process.kill()
                process.join()
                if digest in reader.seen:
                    break
            process = start(work, sources, target, environment)
            process.join()
            assert process.exitcode == 0
        finally:
            reader.end()
        reader.look()
        assert digest in reader.seen
        assert Diff(whole, target).run().equal
        assert verify_store(target).problems == ()
        if "://" not in str(target):
            sound(target)
        number += 1
    return whole


@pytest.fixture
def tmp_path():
    with fast_folder() as folder:
        yield folder


@pytest.mark.parametrize("kills", KILLS)
def test_push(tmp_path, kills):
    """Onto an older version, which readers see until the newer one is complete."""
    source = make(tmp_path / "source", BLOCKS[:1])
    before = open_store(shutil.copytree(source, tmp_path / "before")).digest
    for block in BLOCKS[1:]:
        add_block(source, block)

    def target(number: int) -> Path:
        return shutil.copytree(tmp_path / "before", tmp_path / f"copy {number}")

    assert version_of(killed(push, [source], target, kills, old=before)) == version_of(source)


@pytest.mark.parametrize("kills", KILLS)
def test_pull_of_a_part(tmp_path, kills):
    source = make(tmp_path / "source")
    killed(pull, [source], lambda n: tmp_path / f"part {n}", kills)


@pytest.mark.parametrize("kills", KILLS)
def test_merge(tmp_path, kills):
    shards = [make(tmp_path / f"shard {i}", [block]) for i, block in enumerate(BLOCKS)]
    killed(merge, shards, lambda n: tmp_path / f"out {n}", kills)


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_push_to_a_bucket(tmp_path, s3, kills):
    source = make(tmp_path / "source", BLOCKS[:1])
    killed(push, [source], lambda n: s3.url(f"store-{n}"), kills, environment=s3.environment)
