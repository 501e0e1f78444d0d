# SPDX-License-Identifier: Apache-2.0
"""A full disk ends the run with one clear error, wherever it strikes; with room, the run goes on to the same store."""

import errno
import os
import subprocess
import threading

import pytest

from ditr_cache.errors import StoreError
from ditr_cache.store.reader import open_store
from ditr_cache.store.writer import StoreWriter


class Disk:
    """A small tmpfs."""

    def __init__(self, path):
        path.mkdir()
        self.path = path
        self.made = self._mount("-t", "tmpfs", "-o", "size=64k", "tmpfs")

    def _mount(self, *args):
        try:
            return subprocess.run(["mount", *args, str(self.path)], capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False

    def resize(self, kib):
        assert self._mount("-o", f"remount,size={kib}k")

    def close(self):
        if self.made:
            subprocess.run(["umount", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    if not disk.made:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    disk.close()


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Digest of the store that fits, and its size in KiB on a tmpfs."""
    path = tmp_path_factory.mktemp("whole") / "store"
    digest = tiny.extract(tiny.rooms(4), path).run().digest
    entries = [p for p in path.rglob("*") if p.is_file()]
    return digest, sum(-(-p.stat().st_size // 4096) * 4 for p in entries)


def check(store, digest):
    read = open_store(store)
    assert read.digest == digest
    for sample in read.samples:
        read.read(sample)
    folders = {r.folder.removeprefix("blocks/") for r in read.manifest.blocks.values()}
    assert {p.name for p in (store / "blocks").iterdir()} == folders
    assert not [p for p in store.rglob("*") if p.name.endswith(".tmp")]


@pytest.mark.parametrize("share", [0.03, 0.2, 0.45, 0.6, 0.85, 0.95])
def test_a_full_disk(tiny, disk, whole, share):
    digest, kib = whole
    store, threads = disk.path / "store", threading.active_count()
    disk.resize(max(4, int(share * kib)))
    with pytest.raises(StoreError, match="the disk is full") as caught:
        tiny.extract(tiny.rooms(4), store).run()
    assert "run the same command" in str(caught.value)
    assert threading.active_count() == threads
    # still full: the same again, and finished blocks stay
    done = set(StoreWriter(store).committed()) if (store / "zarr.json").exists() else set()
    with pytest.raises(StoreError, match="the disk is full"):
        tiny.extract(tiny.rooms(4), store).run()
    disk.resize(4 * kib)
    report = tiny.extract(tiny.rooms(4), store).run()
    assert (report.failures, report.blocks_done + report.blocks_skipped) == (0, 4)
    assert report.blocks_skipped >= len(done)
    check(store, digest)


@pytest.mark.slow
def test_disks_of_every_size(tiny, disk, whole):
    """Enlarged in small steps, so that the disk fills up at nearly every step of the protocol."""
    digest, kib = whole
    store = disk.path / "store"
    failed, size = 0, 8
    while True:
        disk.resize(size)
        job = tiny.extract(tiny.rooms(4), store)
        if size > 2 * kib:
            assert job.run().failures == 0
            break
        try:
            job.run()
        except StoreError:
            failed += 1
        size += 8
    assert failed > 10
    check(store, digest)


class FailsOnce:
    """Stands in for `os.write`-like calls: the n-th one finds the disk full."""

    def __init__(self, call, n):
        self.call, self.left = call, n

    def __call__(self, *args, **options):
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.call(*args, **options)


@pytest.mark.parametrize("n", [1, 2, 7, 30, 60, 90, 91, 92, 93, 94, 120, 200])
def test_one_flush_that_fails(tiny, whole, tmp_path, monkeypatch, n):
    """File systems with delayed allocation say only at a flush that there was no room."""
    store = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", FailsOnce(os.fsync, n))
        with pytest.raises(StoreError, match="the disk is full"):
            tiny.extract(tiny.rooms(4), store).run()
    assert tiny.extract(tiny.rooms(4), store).run().failures == 0
    check(store, whole[0])
