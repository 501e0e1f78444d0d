# SPDX-License-Identifier: Apache-2.0
"""The commit protocol on object storage: the same promises as in a folder, kept with conditional requests."""

import multiprocessing
import multiprocessing.util
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from servers import Fault
from store_builder import DATASET, IDENTITY, build_store, fast_folder, random_block, run_extraction, write_block
from store_processes import BLOCKS as MANY
from store_processes import SETTINGS as MANY_SETTINGS
from store_processes import extract, finalise_again_and_again

from ditr_cache.errors import RemoteError, StoreError, StoreNotFoundError
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.manifest import DatasetEntry, Plan, PlannedBlock, PlannedSample
from ditr_cache.store.reader import open_store
from ditr_cache.store.remote.writable import WritableRemoteStorage
from ditr_cache.store.verify import verify_store
from ditr_cache.store.writer import StoreWriter

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "ditr_cache.store.quantize", "ditr_cache.store.writer"])
S = BlockSettings(8, "float16", points=False)
BLOCKS = [random_block(i, f"block {i}", points=9, views=1) for i in range(3)]
DAY = 24 * 3600


def digest_of(blocks, settings) -> str:
    """Of the same blocks in a folder."""
    with fast_folder() as folder:
        build_store(folder / "s", blocks, settings)
        return open_store(folder / "s").digest


@pytest.fixture(scope="module")
def digest() -> str:
    return digest_of(BLOCKS[:1], S)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch) -> Path:
    """Where blocks are written before they are uploaded."""
    # multiprocessing keeps files there as well, for longer than a test
    multiprocessing.util.get_temp_dir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def block_folders(url: str) -> set[str]:
    return {entry.key.split("/")[1] for entry in WritableRemoteStorage(url).list("blocks/")}


def check_readers_see_whole_blocks(url: str) -> None:
    """Either there is no store yet, or every sample that it lists reads to what was written."""
    try:
        store = open_store(url)
    except StoreNotFoundError:
        return
    with store:
        for sample_id in store.samples:
            got = store.read(sample_id, rule="last")
            expected = BLOCKS[int(sample_id[6])].samples[0].views[0].rows
            np.testing.assert_array_equal(got.features.rows, expected.astype(np.float16))


@pytest.mark.parametrize("server", ["s3", "bucket"])
def test_a_store_in_a_bucket_is_the_store_in_a_folder(request, server, scratch):
    url = request.getfixturevalue(server).url()
    blocks = [random_block(i, f"wände {i}", samples=2, points=300, views=12, dim=64, cls=True) for i in range(2)]
    settings = BlockSettings(64, "int8", "zstd", class_token=True, align_views=True)
    writer = build_store(url, blocks, settings)
    with open_store(url) as store:
        assert store.digest == digest_of(blocks, settings)
        assert store.root == url == writer.location
    report = verify_store(url)
    assert (report.problems, report.notes, report.blocks) == ((), (), 2)
    assert list(scratch.iterdir()) == []
    writer.abandon(writer.start_block("another", settings))
    assert list(scratch.iterdir()) == []


def run_and_stop(bucket, url: str, fault: Fault, blocks=BLOCKS[:1]) -> bool:
    """Whether an extraction came through."""
    bucket.faults(fault)
    try:
        run_extraction(url, None, blocks, S, planned=blocks)
    except RemoteError:
        return False
    finally:
        bucket.faults()
    return True


def requests_of_a_run(bucket) -> int:
    bucket.log()
    assert run_and_stop(bucket, bucket.url("undisturbed"), Fault("slow", times=0))
    return len(bucket.log())


def check_finished(bucket, url: str, digest: str) -> None:
    """After one clean run all is there, and a day later there is nothing else."""
    check_readers_see_whole_blocks(url)
    run_extraction(url, None, BLOCKS[:1], S)
    assert open_store(url).digest == digest
    bucket.age(DAY + 60, url.rpartition("/")[2])
    StoreWriter(url).finalize()
    report = verify_store(url)
    assert (report.problems, report.notes) == ((), ())
    assert len(block_folders(url)) == 1
    assert not [e.key for e in WritableRemoteStorage(url).list("") if ".tmp" in e.key]


@pytest.mark.parametrize("part", [pytest.param(i, marks=[pytest.mark.slow] * (i > 0)) for i in range(4)])
def test_a_crash_between_any_two_requests(bucket, digest, scratch, part):
    """From the k-th request on the server takes nothing any more, for every k."""
    total = requests_of_a_run(bucket)
    for k in range(part, total, 4):
        url = bucket.url(f"crash-{k}")
        assert not run_and_stop(bucket, url, Fault("status", skip=k, times=-1, status=403))
        check_finished(bucket, url, digest)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("kind", ["lost", "lost_status", "drop"])
@pytest.mark.parametrize("part", [pytest.param(i, marks=[pytest.mark.slow] * (i > 0)) for i in range(8)])
def test_any_lost_request_or_reply_changes_nothing(bucket, digest, impatient, kind, part):
    total = requests_of_a_run(bucket)
    for k in range(part, total, 8):
        url = bucket.url(f"{kind}-{k}")
        assert run_and_stop(bucket, url, Fault(kind, skip=k, status=500))
        assert len(block_folders(url)) == 1
        check_finished(bucket, url, digest)


def with_environment(variables: dict[str, str], function, *args) -> None:
    """For processes that are forked off a server which is older than the variables."""
    os.environ.update(variables)
    tempfile.tempdir = variables["TMPDIR"]
    function(*args)


def start(server, function, *args):
    variables = {**server.environment, "TMPDIR": tempfile.gettempdir()}
    process = CONTEXT.Process(target=with_environment, args=(variables, function, *args))
    process.start()
    return process


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_two_extractions_and_two_finalisers_at_once_lose_nothing(bucket, seed):
    rng, url = random.Random(seed), bucket.url()
    orders = [rng.sample(range(len(MANY)), len(MANY)) for _ in range(2)]
    processes = [start(bucket, extract, url, order) for order in orders]
    processes += [start(bucket, finalise_again_and_again, url) for _ in range(2)]
    seen = 0
    while any(p.is_alive() for p in processes):
        try:
            with open_store(url) as store:
                assert len(store.samples) >= seen
                seen = len(store.samples)
                for sample in rng.sample(list(store.samples), min(2, seen)):
                    store.read(sample)
        except StoreNotFoundError:
            assert seen == 0
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert open_store(url).digest == digest_of(MANY, MANY_SETTINGS)
    report = verify_store(url)
    assert (report.problems, report.notes, report.blocks) == ((), (), len(MANY))


@pytest.mark.slow
def test_killed_at_random_moments_and_run_again(bucket):
    rng, url, kills = random.Random(0), bucket.url(), 0
    while kills < 20 or len(StoreWriter(url).committed()) < len(MANY):
        process = start(bucket, extract, url, rng.sample(range(len(MANY)), len(MANY)))
        process.join(rng.uniform(0.1, 1.0))
        kills += process.is_alive()
        process.kill()
        process.join()
        try:
            with open_store(url) as store:
                for sample in store.samples:
                    store.read(sample)
        except StoreNotFoundError:
            pass
    StoreWriter(url).finalize()
    assert open_store(url).digest == digest_of(MANY, MANY_SETTINGS)
    assert verify_store(url).problems == ()


class Overtaken(WritableRemoteStorage):
    """Whose LATEST is swapped by somebody else at the last moment, three times."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.todo = list(BLOCKS)

    def swap(self, key, data, seen):
        if self.todo:
            faster = StoreWriter(self._url)
            faster.commit(write_block(faster, self.todo.pop(), S))
            faster.finalize()
        return super().swap(key, data, seen)


def test_a_slow_finaliser_cannot_take_back_what_a_fast_one_published(bucket):
    writer = StoreWriter.create(bucket.url(), IDENTITY)
    bucket.log()
    slow = StoreWriter(Overtaken(bucket.url()))
    assert len(slow.finalize().blocks) == 3
    swaps = [r["status"] for r in bucket.log() if r["method"] == "PUT" and r["key"] == "store/LATEST"]
    assert swaps == [200, 412, 200, 412, 200, 412, 200]
    assert sorted(open_store(bucket.url()).manifest.blocks) == [b.id for b in BLOCKS]
    assert verify_store(bucket.url()).problems == ()
    assert len(writer.finalize().blocks) == 3


class Busy(WritableRemoteStorage):
    """Whose receipts grow while the manifest is written: no conflict, and yet too old."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.todo = list(BLOCKS)

    def replace(self, key, data):
        super().replace(key, data)
        if self.todo:
            other = StoreWriter(self._url)
            other.commit(write_block(other, self.todo.pop(), S))


def test_a_block_that_is_committed_while_a_finaliser_works_is_in_its_manifest(bucket):
    StoreWriter.create(bucket.url(), IDENTITY)
    assert len(StoreWriter(Busy(bucket.url())).finalize().blocks) == 3
    assert verify_store(bucket.url()).problems == ()


def test_who_commits_second_loses_and_cleans_up(bucket):
    first, second = (StoreWriter.create(bucket.url(), IDENTITY) for _ in range(2))
    receipts = [write_block(writer, BLOCKS[0], S) for writer in (first, second)]
    assert first.commit(receipts[0])
    assert not second.commit(receipts[1])
    assert block_folders(bucket.url()) == {receipts[0].folder.removeprefix("blocks/")}
    # the same receipt once more, as somebody does who was not told of his success
    assert first.commit(receipts[0])
    assert len(block_folders(bucket.url())) == 1


def test_an_upload_that_fails_fails_the_block(bucket, impatient, scratch):
    writer = StoreWriter.create(bucket.url(), IDENTITY)
    receipt = write_block(writer, BLOCKS[0], S)
    bucket.faults(Fault("status", "PUT", "features/c/0/0", times=-1))
    with pytest.raises(OSError, match="does not answer"):
        writer.commit(receipt)
    bucket.faults()
    assert list(scratch.iterdir()) == []
    assert not writer.has_receipt(BLOCKS[0].id)
    assert writer.commit(write_block(writer, BLOCKS[0], S))
    writer.finalize()
    report = verify_store(bucket.url())
    assert report.problems == ()
    assert [note.path for note in report.notes] == [receipt.folder]


def test_a_large_block_arrives_whole_whatever_happens_on_the_way(bucket, impatient):
    """Its features go in parts."""
    block = random_block(0, points=3000, views=64, dim=1536)
    settings = BlockSettings(1536, "float16")
    writer = StoreWriter.create(bucket.url(), IDENTITY)
    bucket.log()
    bucket.faults(
        Fault("flip", "PUT", "features/c/0/0", skip=1),
        Fault("drop", "PUT", "coord"),
        Fault("lost", "PUT", "receipts/"),
        Fault("status", "PUT", "affine|grid", times=3, status=429),
    )
    receipt = write_block(writer, block, settings)
    assert receipt.arrays["features"].data.size > 16 << 20
    assert writer.commit(receipt)
    assert {r["fault"] for r in bucket.log()} == {"", "flip", "drop", "lost", "status"}
    bucket.faults()
    writer.finalize()
    assert verify_store(bucket.url()).problems == ()
    assert bucket.unfinished_uploads() == 0


def test_what_killed_processes_left_behind_goes_after_a_day(bucket, scratch):
    writer = StoreWriter.create(bucket.url(), IDENTITY)
    for name, age in (("old", DAY + 60), ("young", 0)):
        folder = scratch / f"ditr-cache-{name}-{'0' * 32}"
        (folder / "features").mkdir(parents=True)
        for path in (folder / "features", folder):
            os.utime(path, (time.time() - age,) * 2)
    (scratch / "ditr-cache-of-somebody").mkdir()
    os.utime(scratch / "ditr-cache-of-somebody", (0, 0))
    writer.abandon(writer.start_block("b", S))
    assert {path.name[:16] for path in scratch.iterdir()} == {"ditr-cache-young", "ditr-cache-of-so"}


def test_objects_that_somebody_else_brought_can_be_committed(bucket, tmp_path):
    """What copying stores does."""
    source = build_store(tmp_path / "s", BLOCKS[:1], S)
    (receipt,) = source.receipts()
    writer = StoreWriter.create(bucket.url(), IDENTITY)
    names = list(receipt.object_entries)
    for name in names[1:]:
        data = source.storage.read(name)
        writer.storage.write(name, [data], len(data))
    with pytest.raises(StoreError, match="collected"):
        writer.commit(receipt)
    writer.storage.write(names[0], [b"too short"], 9)
    with pytest.raises(StoreError, match="collected"):
        writer.commit(receipt)
    assert not writer.has_receipt(receipt.block)
    data = source.storage.read(names[0])
    writer.storage.write(names[0], [data], len(data))
    assert writer.commit(receipt)
    writer.finalize()
    assert open_store(bucket.url()).digest == open_store(tmp_path / "s").digest


def test_what_is_collected_and_when(bucket):
    """Nothing is locked: what others may still need goes after a day only."""
    writer, other = (StoreWriter.create(bucket.url(), IDENTITY) for _ in range(2))
    assert writer.commit(write_block(writer, BLOCKS[0], S))
    writer.fail(BLOCKS[0].id, "before it came through")
    writer.fail(BLOCKS[1].id, "no luck")
    first = writer.finalize()
    assert [e.key[:18] for e in writer.storage.list("failures/")] == ["failures/block%201"]
    kept = block_folders(bucket.url())
    # beaten, abandoned, and a proof that was interrupted
    beaten, orphan = (write_block(other, BLOCKS[i], S) for i in (0, 1))
    for receipt in (beaten, orphan):
        other.storage.publish(receipt.folder, receipt.objects)
    other.storage.replace(".probe-0.tmp", b"first")
    assert writer.commit(write_block(writer, BLOCKS[2], S))
    writer.finalize()
    kept |= {r.folder.removeprefix("blocks/") for r in writer.receipts()}
    extra = {r.folder.removeprefix("blocks/") for r in (beaten, orphan)}
    assert writer.collect() == []
    assert block_folders(bucket.url()) == kept | extra
    bucket.age(DAY + 60, f"store/{orphan.folder}")
    # one recent object shows that its writer lives
    other.storage.replace(f"{orphan.folder}/zarr.json", b"{}")
    assert writer.collect() == []
    bucket.age(DAY + 60, f"store/{orphan.folder}/zarr.json")
    assert writer.collect() == [orphan.folder]
    bucket.age(DAY + 60)
    old = [name for name in (e.key for e in writer.storage.entries("")) if name.startswith("manifest-")]
    removed = writer.collect()
    assert len(old) == 2
    assert {*removed} == {".probe-0.tmp", beaten.folder, *old} - {open_latest(writer)}
    assert block_folders(bucket.url()) == kept
    assert first.digest != open_store(bucket.url()).digest


def open_latest(writer: StoreWriter) -> str:
    return writer.storage.read("LATEST").decode().strip()


def test_now_takes_what_is_young_and_what_was_replaced(bucket):
    writer, other = (StoreWriter.create(bucket.url(), IDENTITY) for _ in range(2))
    assert writer.commit(write_block(writer, BLOCKS[0], S))
    first = writer.receipt(BLOCKS[0].id)
    assert writer.commit(write_block(writer, BLOCKS[0], S, generation=1))
    orphan = write_block(other, BLOCKS[1], S)
    other.storage.publish(orphan.folder, orphan.objects)
    assert writer.collect() == []
    assert set(writer.collect(now=True)) >= {first.folder, orphan.folder}
    assert len(block_folders(bucket.url())) == 1
    assert verify_store(bucket.url()).problems == ()
    with pytest.raises(StoreError, match="collected while it was written"):
        other.commit(orphan)


def test_a_clock_that_runs_ahead_collects_nothing(bucket, monkeypatch):
    writer, other = (StoreWriter.create(bucket.url(), IDENTITY) for _ in range(2))
    orphan = write_block(other, BLOCKS[1], S)
    other.storage.publish(orphan.folder, orphan.objects)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10 * DAY)
    assert writer.collect() == []


def test_two_plans_that_do_not_agree_never_stay_both(bucket):
    def plan(block: str) -> Plan:
        sample = PlannedSample(id="s", split="train", views=())
        return Plan(dataset=DatasetEntry(), blocks=(PlannedBlock(id=block, samples=(sample,)),))

    class Late(WritableRemoteStorage):
        """Whose first listing of plans comes before the other one's plan, and the second after it."""

        def create_exclusively(self, key, data):
            if key.startswith("plans/"):
                StoreWriter(self._url).add_plan(plan("a"))
            return super().create_exclusively(key, data)

    StoreWriter.create(bucket.url(), IDENTITY)
    with pytest.raises(StoreError, match="is planned in blocks"):
        StoreWriter(Late(bucket.url())).add_plan(plan("b"))
    assert [b.id for b in StoreWriter(bucket.url()).finalize().planned] == ["a"]


def test_it_does_not_settle_among_other_objects(bucket):
    WritableRemoteStorage(bucket.url()).replace("thesis.tex", b"...")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        StoreWriter.create(bucket.url(), IDENTITY)
    # a neighbour whose name begins alike is none of our business
    StoreWriter.create(bucket.url("store-2"), IDENTITY).add_plan(Plan(dataset=DATASET, blocks=()))
    StoreWriter.create(bucket.url("stor"), IDENTITY)
