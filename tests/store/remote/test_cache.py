# SPDX-License-Identifier: Apache-2.0
"""The folder never grows beyond its size and never gives wrong bytes, whoever uses it at the same time."""

import contextlib
import multiprocessing
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_builder import fast_folder

from ditr_cache.store.remote.cache import DiskCache


def used(folder: Path) -> int:
    total = 0
    for path in folder.rglob("??/*"):
        # others may be making room
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def content(name: str, n: int) -> bytes:
    return random.Random(name).randbytes(n)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 400), st.booleans()), max_size=60))
def test_gives_what_was_put_or_nothing_and_stays_small(steps):
    with fast_folder() as folder:
        cache, put = DiskCache(folder, 1000), {}
        for name, size, write in steps:
            if write:
                cache.put(f"{name}", memoryview(content(f"{name}", size)))
                put[name] = size
            elif (got := cache.get(f"{name}")) is not None:
                assert bytes(got) == content(f"{name}", put[name])
            assert used(folder) <= 1000


def test_what_was_used_last_stays(tmp_path):
    cache = DiskCache(tmp_path, 1000)
    for name in "abc":
        cache.put(name, memoryview(content(name, 296)))
        os.utime(cache._path(name), ns=(ord(name), ord(name)))
    assert cache.get("a") is not None
    cache.put("d", memoryview(content("d", 296)))
    assert [name for name in "abcd" if cache.get(name) is not None] == ["a", "c", "d"]


def test_an_entry_larger_than_the_cache_is_not_kept(tmp_path):
    cache = DiskCache(tmp_path, 1000)
    cache.put("small", memoryview(b"x" * 100))
    cache.put("large", memoryview(b"x" * 2000))
    assert cache.get("large") is None
    assert cache.get("small") is not None


@pytest.mark.parametrize("damage", [b"", b"abc", None])
def test_a_torn_entry_is_none(tmp_path, damage):
    cache = DiskCache(tmp_path, 1000)
    cache.put("a", memoryview(b"x" * 100))
    cache._path("a").write_bytes(cache._path("a").read_bytes()[:-1] if damage is None else damage)
    assert cache.get("a") is None
    cache.put("a", memoryview(b"y" * 100))
    assert bytes(cache.get("a")) == b"y" * 100


def _hammer(folder: str, seed: int) -> None:
    cache, rng = DiskCache(Path(folder), 50_000), random.Random(seed)
    for _ in range(80):
        name = f"{rng.randrange(40)}"
        if rng.random() < 0.5:
            cache.put(name, memoryview(content(name, 100 * int(name))))
        elif (got := cache.get(name)) is not None:
            assert bytes(got) == content(name, 100 * int(name))
        with cache._lock():  # nobody adds or removes while it is counted
            assert used(Path(folder)) <= 50_000


def test_many_processes_and_one_that_is_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_hammer, args=(str(tmp_path), seed)) for seed in range(4)]
    for process in processes:
        process.start()
    processes[0].kill()
    for process in processes[1:]:
        process.join()
        assert process.exitcode == 0
    processes[0].join()
    assert used(tmp_path) <= 50_000
