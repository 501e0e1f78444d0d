# SPDX-License-Identifier: Apache-2.0
"""Real processes on one store: at once, and killed at random moments."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest
from store_builder import NoSync, build_store, fast_folder
from store_processes import BLOCKS, SETTINGS, extract, extract_only, finalise_again_and_again

from ditr_cache.errors import StoreNotFoundError
from ditr_cache.store.reader import open_store
from ditr_cache.store.verify import verify_store

# children are forked off a server that has imported torch, and opened no store
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "ditr_cache.store.quantize", "ditr_cache.store.writer"])


@pytest.fixture(scope="module")
def digest() -> str:
    with fast_folder() as folder:
        build_store(folder / "s", BLOCKS, SETTINGS, fs=NoSync())
        return open_store(folder / "s").digest


def check_complete(path: Path, digest: str) -> None:
    with open_store(path) as store:
        assert store.digest == digest
        folders = {r.folder.removeprefix("blocks/") for r in store.manifest.blocks.values()}
        assert folders == {p.name for p in (path / "blocks").iterdir()}
    report = verify_store(path)
    assert (report.problems, report.notes, report.blocks) == ((), (), len(BLOCKS))
    assert list(path.rglob(".*.tmp")) == []


def start(function, *args):
    process = CONTEXT.Process(target=function, args=args)
    process.start()
    return process


def read_what_is_there(path: Path) -> int:
    try:
        store = open_store(path)
    except StoreNotFoundError:
        return 0
    with store:
        for sample in store.samples:
            store.read(sample)
        return len(store.samples)


@pytest.mark.parametrize("seed", range(2))
def test_two_extractions_and_two_finalisers_at_once_lose_nothing(tmp_path, digest, seed):
    rng, path = random.Random(seed), tmp_path / "s"
    orders = [rng.sample(range(len(BLOCKS)), len(BLOCKS)) for _ in range(2)]
    processes = [start(extract, path, order) for order in orders]
    processes += [start(finalise_again_and_again, path) for _ in range(2)]
    seen = 0
    while any(p.is_alive() for p in processes):
        now = read_what_is_there(path)
        assert now >= seen
        seen = now
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    check_complete(path, digest)


@pytest.mark.parametrize("kills", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_run_again(tmp_path, digest, kills):
    rng = random.Random(0)
    for _ in range(2):
        # the first one starts the fork server too
        began = time.monotonic()
        whole = start(extract, tmp_path / f"whole-{began}", list(range(len(BLOCKS))))
        whole.join()
        seconds = time.monotonic() - began
    stores = [tmp_path / "store-0"]
    interrupted = 0
    while interrupted < kills:
        path = stores[-1]
        process = start(rng.choice([extract, extract_only]), path, rng.sample(range(len(BLOCKS)), len(BLOCKS)))
        process.join(rng.uniform(0, seconds))
        interrupted += process.is_alive()
        process.kill()
        process.join()
        read_what_is_there(path)
        if len(list(path.glob("receipts/[!.]*.json"))) == len(BLOCKS):
            stores.append(tmp_path / f"store-{len(stores)}")
    for path in stores:
        extract(path, list(range(len(BLOCKS))))
        check_complete(path, digest)
