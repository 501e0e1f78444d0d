# SPDX-License-Identifier: Apache-2.0
"""A disk that runs full in the middle of a block: the store opens, and the same run finishes it once there is room."""

import errno
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from store_builder import DATASET, IDENTITY, NoSync, build_store, random_block, run_extraction, write_block

from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.manifest import Plan
from ditr_cache.store.reader import open_store
from ditr_cache.store.verify import verify_store
from ditr_cache.store.writer import StoreWriter

S = BlockSettings(32, "float16")
BLOCKS = [random_block(i, f"b{i}", points=300, views=4, dim=32) for i in range(4)]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 2 MiB; four blocks take more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"may not mount a tmpfs: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing further fails with EFBIG, which needs no root."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def extract_until_it_fails(path: Path, code: int) -> int:
    """Blocks that were committed before the medium gave up; the one that failed is abandoned."""
    writer = StoreWriter.create(path, IDENTITY, Filesystem())
    writer.add_plan(Plan(dataset=DATASET, blocks=tuple(b.plan for b in BLOCKS)))
    for done, block in enumerate(BLOCKS):
        out = None
        try:
            out = writer.start_block(block.id, S)
            for sample in block.samples:
                out.add_sample(sample.id, sample.split, sample.points)
                for view in sample.views:
                    out.add_view(view.encode(S))
            receipt = out.finish(0, {}, {})
            writer.commit(receipt)
        except OSError as error:
            if error.errno != code:
                raise
            if out is not None:
                writer.abandon(out)
            return done
    raise AssertionError("the medium never gave up")


def fill(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def digest_of_undisturbed(folder: Path) -> str:
    run_extraction(folder / "reference", NoSync(), BLOCKS, S)
    return open_store(folder / "reference").digest


def test_a_full_disk_leaves_a_store_that_resumes(small_disk, tmp_path):
    path = small_disk / "s"
    done = extract_until_it_fails(path, errno.ENOSPC)
    assert 1 <= done < 4
    # the unfinished block is gone, so that there is room to say so
    assert len(list((path / "blocks").iterdir())) == done
    writer = StoreWriter.create(path, IDENTITY)
    writer.fail(BLOCKS[done].id, "No space left on device")
    manifest = writer.finalize()
    assert len(manifest.planned) == 4 - done
    assert verify_store(path).problems == ()
    with open_store(path) as store:
        for sample in store.samples:
            store.read(sample)

    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    run_extraction(path, Filesystem(), BLOCKS, S)
    assert open_store(path).digest == digest_of_undisturbed(tmp_path)
    report = verify_store(path)
    assert (report.problems, report.notes) == ((), ())
    assert list((path / "failures").iterdir()) == []


def test_a_disk_that_is_full_to_the_last_byte_keeps_the_old_manifest(small_disk):
    path = small_disk / "s"
    writer = build_store(path, BLOCKS[:1], S, fs=Filesystem())
    before = (path / "LATEST").read_bytes()
    assert writer.commit(write_block(writer, BLOCKS[1], S))
    filler = small_disk / "filler"
    fill(filler)
    with pytest.raises(OSError, match="No space"):
        writer.finalize()
    assert (path / "LATEST").read_bytes() == before
    assert list(open_store(path).samples) == ["b0/s0"]
    filler.unlink()
    writer.finalize()
    assert list(open_store(path).samples) == ["b0/s0", "b1/s0"]
    assert verify_store(path).problems == ()


@pytest.mark.parametrize("limit", [0, 100, 2_000, 30_000])
def test_files_that_cannot_grow_leave_a_store_that_resumes(tmp_path, limit):
    path = tmp_path / "s"
    run_extraction(path, Filesystem(), BLOCKS[:1], S, planned=BLOCKS)
    with files_of_at_most(limit):
        writer = StoreWriter.create(path, IDENTITY, Filesystem())
        out = None
        with pytest.raises(OSError, match="File too large") as caught:  # noqa: PT012
            out = writer.start_block(BLOCKS[1].id, S)
            for sample in BLOCKS[1].samples:
                out.add_sample(sample.id, sample.split, sample.points)
                for view in sample.views:
                    out.add_view(view.encode(S))
            out.finish(0, {}, {})
        assert caught.value.errno == errno.EFBIG
        assert out is not None
        writer.abandon(out)
    assert verify_store(path).problems == ()
    assert len(list((path / "blocks").iterdir())) == 1
    run_extraction(path, Filesystem(), BLOCKS, S)
    assert open_store(path).digest == digest_of_undisturbed(tmp_path)
    shutil.rmtree(path)
