# SPDX-License-Identifier: Apache-2.0
"""A copy of a store is that store, whatever was there before and however often it was begun."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from share_world import BLOCKS, DATASET, IDENTITY, add_block, fast_folder, make, random_block, sound, version_of

from ditr_cache.config import canonical_json
from ditr_cache.errors import (
    CorruptStoreError,
    IdentityMismatchError,
    MetadataError,
    StoreError,
    StoreNotFoundError,
)
from ditr_cache.pipelines.pull import Pull
from ditr_cache.pipelines.push import Push
from ditr_cache.store.manifest import Manifest, Plan
from ditr_cache.store.reader import open_store
from ditr_cache.store.transfer import Transfer


@pytest.fixture
def tmp_path():
    with fast_folder() as folder:
        yield folder


@pytest.fixture
def source(tmp_path) -> Path:
    return make(tmp_path / "source")


def copied(source: Path, target: Path, **options):
    report = Push(source, target, **options).run()
    assert report.manifest == version_of(source)
    assert report.digest == open_store(source).digest
    assert version_of(target) == version_of(source)
    assert (report.kept, report.differs) == ((), ())
    sound(target)
    return report


def test_a_copy_has_the_version_of_its_source_and_travels_once(source, tmp_path):
    size = sum(receipt.size for receipt in open_store(source).manifest.blocks.values())
    first = copied(source, tmp_path / "copy")
    assert (first.bytes_copied, first.bytes_skipped, first.blocks_copied, first.blocks_there) == (size, 0, 3, 0)
    assert first.objects == sum(len(r.objects) for r in open_store(source).manifest.blocks.values())
    again = copied(source, tmp_path / "copy")
    assert (again.bytes_copied, again.bytes_skipped, again.blocks_copied, again.blocks_there) == (0, size, 0, 3)
    assert again.objects == 0


def test_every_object_is_the_same(source, tmp_path):
    copied(source, tmp_path / "copy")
    for path in (p for p in source.glob("[bmr]*/**/*") if p.is_file()):
        assert (tmp_path / "copy" / path.relative_to(source)).read_bytes() == path.read_bytes()


def test_what_is_planned_and_missing_is_so_in_the_copy(tmp_path):
    source = make(tmp_path / "source", BLOCKS[:2], planned=BLOCKS)
    report = copied(source, tmp_path / "copy")
    assert (report.blocks, report.missing) == (2, 1)


def test_blocks_that_were_done_again_come_with_their_history(source, tmp_path):
    copied(source, tmp_path / "before")
    for generation in range(1, 12):
        add_block(source, random_block(90 + generation, BLOCKS[1].id, cls=True), generation)
    copied(source, tmp_path / "after")
    assert len(open_store(tmp_path / "after").manifest.superseded) == 11
    # and one that has the old generation gets the new one
    report = copied(source, tmp_path / "before")
    assert (report.blocks_copied, report.blocks_there) == (1, 2)


def test_a_store_that_grew_is_copied_in_part(tmp_path):
    source = make(tmp_path / "source", BLOCKS[:2])
    before = copied(source, tmp_path / "copy")
    add_block(source, BLOCKS[2])
    after = copied(source, tmp_path / "copy")
    assert (after.blocks_copied, after.bytes_skipped) == (1, before.bytes_copied)


def test_blocks_from_elsewhere_stay_and_are_named(source, tmp_path):
    other = make(tmp_path / "other", [random_block(7, BLOCKS[0].id, samples=2, cls=True)])
    mine = open_store(other).manifest.blocks[BLOCKS[0].id]
    report = Push(source, other).run()
    assert [(kept.block, kept.reason) for kept in report.kept] == [(BLOCKS[0].id, "the store has it from elsewhere")]
    assert report.blocks_copied == 2
    assert "blocks" in report.differs
    assert open_store(other).manifest.blocks[BLOCKS[0].id] == mine
    sound(other)


def test_equal_content_from_elsewhere_is_called_so(source, tmp_path):
    other = make(tmp_path / "other", BLOCKS[:1])
    (kept,) = Push(source, other).run().kept
    assert kept.reason == "the store has it from elsewhere, with equal content"
    assert open_store(other).digest == open_store(source).digest


def test_another_store_is_not_mixed_in(source, tmp_path):
    identity = {**IDENTITY, "images": {"size": [1, 2]}}
    other = make(tmp_path / "other", BLOCKS[:1], identity=identity)
    before = version_of(other)
    with pytest.raises(IdentityMismatchError, match=r"images.size: the store has \[1, 2\], asked for \[30, 40\]"):
        Push(source, other).run()
    assert version_of(other) == before
    sound(other)


def test_a_version_can_be_pinned(source, tmp_path):
    before = version_of(source)
    add_block(source, random_block(8, "more", cls=True))
    report = Pull(f"{source}@sha256:{before}", tmp_path / "old").run()
    assert report.manifest == before == version_of(tmp_path / "old")
    with pytest.raises(StoreNotFoundError, match="no version 000000000000"):
        Pull(f"{source}@sha256:{'0' * 64}", tmp_path / "none").run()
    assert not (tmp_path / "none").exists()


def a_file(store: Path, name: str = "features/c/0/0", block: int = 1) -> Path:
    return sorted(store.glob(f"blocks/*/{name}"))[block]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["features/c/0/0", "zarr.json", "cls/zarr.json", "grid/c/0/0"])
@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda p: p.write_bytes(p.read_bytes()[:-1])])
def test_damage_of_the_source_goes_no_further(source, tmp_path, name, damage):
    damaged = a_file(source, name)
    damage(damaged)
    target = tmp_path / "copy"
    with pytest.raises(CorruptStoreError, match=r"\(3 times\)") as error:
        Push(source, target).run()
    assert str(damaged) in str(error.value)
    assert not (target / damaged.relative_to(source)).exists()
    assert list(target.rglob(".*.tmp")) == []
    assert not (target / "LATEST").exists()
    with pytest.raises(StoreNotFoundError):
        open_store(target)


def test_a_damaged_source_replaces_nothing_that_readers_see(source, tmp_path):
    copied(source, tmp_path / "copy")
    before = version_of(tmp_path / "copy")
    add_block(source, random_block(8, "zzz", cls=True))
    flip(a_file(source, block=3))
    with pytest.raises(CorruptStoreError):
        Push(source, tmp_path / "copy").run()
    assert version_of(tmp_path / "copy") == before
    with open_store(tmp_path / "copy") as store:
        for sample in store.samples:
            store.read(sample)


def test_what_a_killed_run_left_is_hashed_before_a_receipt_vouches_for_it(source, tmp_path):
    target = tmp_path / "copy"
    copied(source, target)
    (target / "LATEST").unlink()
    for receipt in (target / "receipts").iterdir():
        receipt.unlink()
    flip(a_file(target))
    a_file(target, block=2).unlink()
    a_file(target, block=0).with_name(".0.abc.tmp").write_bytes(b"half")
    a_file(target, block=2 - 1).with_name(".0.abc.tmp").write_bytes(b"half")
    report = Push(source, target).run()
    assert report.objects == 2
    assert report.manifest == version_of(source)


def test_finished_blocks_are_looked_at_too(source, tmp_path):
    target = tmp_path / "copy"
    copied(source, target)
    gone, damaged = a_file(target, block=0), a_file(target, block=1)
    size = gone.stat().st_size
    gone.unlink()
    assert copied(source, target).bytes_copied == size
    flip(damaged)
    # of the right size: only reading it finds out
    assert Push(source, target).run().objects == 0
    assert copied(source, target, rehash=True).objects == 1


def test_two_at_once_are_one_too_many(source, tmp_path):
    with (
        Transfer(tmp_path / "copy", IDENTITY),
        pytest.raises(StoreError, match="another push, pull or merge is writing here"),
    ):
        Push(source, tmp_path / "copy").run()
    copied(source, tmp_path / "copy")


def test_an_unfinished_copy_that_somebody_finalises_shows_as_incomplete(source, tmp_path):
    manifest = open_store(source).manifest
    with Transfer(tmp_path / "copy", IDENTITY) as transfer:
        blocks = tuple(block.plan for block in BLOCKS)
        transfer.add_plan(Plan(dataset=DATASET, blocks=blocks))
        transfer.copy(open_store(source)._storage, next(iter(manifest.blocks.values())))
        transfer.run()
        half, _ = transfer.finish()
    assert (len(half.blocks), len(half.planned)) == (1, 2)
    copied(source, tmp_path / "copy")


def test_extracted_stores_say_nothing_of_sources(source):
    data = (source / f"manifest-{version_of(source)}.json").read_bytes()
    assert "sources" not in json.loads(data)
    assert Manifest.model_validate_json(data).to_bytes() == data
    plan = next((source / "plans").iterdir()).read_bytes()
    assert "sources" not in json.loads(plan)


def publish(store: Path, change) -> None:
    manifest = json.loads((store / (store / "LATEST").read_text().strip()).read_bytes())
    change(manifest)
    data = canonical_json(manifest).encode()
    name = f"manifest-{hashlib.sha256(data).hexdigest()}.json"
    (store / name).write_bytes(data)
    (store / "LATEST").write_text(f"{name}\n")


def test_a_manifest_that_lies_about_its_content_is_refused(source, tmp_path):
    publish(source, lambda manifest: manifest.update(digest="0" * 64))
    with pytest.raises(MetadataError, match="content digest"):
        Push(source, tmp_path / "copy").run()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "name", ["../../secret.0", "/etc/passwd.0", "a/b.0", "x.-1", "x", ".x.0", "x.0.json/..", "x.00", "x.1e3"]
)
def test_names_of_old_receipts_lead_nowhere_else(source, tmp_path, name):
    publish(source, lambda manifest: manifest["superseded"].update({name: "0" * 64}))
    with pytest.raises(MetadataError, match="superseded"):
        Push(source, tmp_path / "copy").run()
    assert not (tmp_path / "copy").exists()


def test_an_old_receipt_that_is_another_one_is_refused(source, tmp_path):
    add_block(source, random_block(91, BLOCKS[1].id, cls=True), 1)
    (old,) = (source / "receipts").glob("*1.0.json")
    shutil.copyfile(next((source / "receipts").glob("*2.0.json")), old)
    with pytest.raises(CorruptStoreError, match="sha256 is not that of the manifest"):
        Push(source, tmp_path / "copy").run()


def test_links_in_the_source_are_not_followed(source, tmp_path):
    path = a_file(source)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(MetadataError, match="symbolic link"):
        Push(source, tmp_path / "copy").run()


def test_links_in_the_target_are_replaced_and_not_written_through(source, tmp_path):
    target, secret = tmp_path / "copy", tmp_path / "secret"
    secret.write_text("mine")
    path = target / a_file(source).relative_to(source)
    path.parent.mkdir(parents=True)
    path.symlink_to(secret)
    (target / "zarr.json").write_bytes((source / "zarr.json").read_bytes())
    copied(source, target)
    assert secret.read_text() == "mine"
    assert not path.is_symlink()


@pytest.mark.parametrize("name", ["f16", "int8"])
def test_golden_stores_are_copied_as_they_are(tmp_path, name):
    copied(Path(__file__).parents[1] / "golden" / f"store-v1-{name}", tmp_path / name)
