# SPDX-License-Identifier: Apache-2.0
"""Identity, plans, failures, generations, collecting: what a writer promises beside surviving crashes."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from store_builder import DATASET, IDENTITY, NoSync, build_store, random_block, random_points, random_view, write_block

from ditr_cache.errors import (
    FrameError,
    IdentityMismatchError,
    MetadataError,
    QuantisationError,
    SampleError,
    StoreError,
    StoreNotFoundError,
)
from ditr_cache.store.encode import BlockSettings, encode_view
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.identity import identity_difference, read_identity
from ditr_cache.store.layout import block_file_name
from ditr_cache.store.manifest import DatasetEntry, Plan, PlannedBlock, PlannedSample
from ditr_cache.store.reader import open_store
from ditr_cache.store.verify import verify_store
from ditr_cache.store.writer import StoreWriter
from ditr_cache.types import PointCloud

S = BlockSettings(8, "float16", points=False)
BLOCKS = [random_block(i, f"b{i}", points=9, views=1) for i in range(3)]
DAY = 24 * 3600


@pytest.fixture
def writer(tmp_path) -> StoreWriter:
    """A store with the first of three planned blocks."""
    writer = StoreWriter.create(tmp_path / "s", IDENTITY, NoSync())
    writer.add_plan(Plan(dataset=DATASET, blocks=tuple(b.plan for b in BLOCKS)))
    assert writer.commit(write_block(writer, BLOCKS[0], S))
    return writer


def age(path: Path, seconds: float) -> None:
    """Make a tree look as if nobody had touched it for so long."""
    then = time.time() - seconds
    for entry in (path, *path.rglob("*")):
        os.utime(entry, (then, then))


def block_folders(writer: StoreWriter) -> set[str]:
    return {p.name for p in (writer.location / "blocks").iterdir()}


def test_another_identity_is_refused_with_every_difference(writer):
    other = {**IDENTITY, "images": {"mean": [0.5, 0.25, 0.25], "size": [30, 40], "filter": "bicubic"}}
    other["backbone"] = {"name": "dinov2"}
    with pytest.raises(IdentityMismatchError) as caught:
        StoreWriter.create(writer.location, other)
    message = str(caught.value)
    assert 'backbone.name: the store has "noise", asked for "dinov2"' in message
    assert "backbone.random_seed: the store has 0, asked for null" in message
    assert 'images.filter: the store has null, asked for "bicubic"' in message
    assert "images.mean: the store has [0.5, 0.25, 0.125], asked for [0.5, 0.25, 0.25]" in message
    assert "images.size" not in message
    assert isinstance(caught.value, ValueError)
    assert len(identity_difference(IDENTITY, other)) == 4


def test_the_same_identity_opens_the_store(writer):
    again = StoreWriter.create(writer.location, dict(reversed(IDENTITY.items())))
    assert again.identity == IDENTITY == read_identity(writer.location)
    assert again.committed() == {"b0"}


def test_a_store_does_not_settle_among_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        StoreWriter.create(tmp_path, IDENTITY)
    with pytest.raises(StoreError, match="a store is a folder"):
        StoreWriter.create(tmp_path / "thesis.tex", IDENTITY)
    with pytest.raises(StoreNotFoundError):
        StoreWriter(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    "root", ["{}", "[]", '{"attributes": {"ditr_cache": {"format_version": 2, "identity": {}}}}', "nonsense"]
)
def test_another_zarr_group_is_no_store(tmp_path, root):
    (tmp_path / "zarr.json").write_text(root)
    with pytest.raises(MetadataError):
        StoreWriter.create(tmp_path, IDENTITY)


def test_planned_blocks_that_are_missing_are_listed(writer):
    manifest = writer.finalize()
    assert [b.id for b in manifest.planned] == ["b1", "b2"]
    assert manifest.planned[0].samples[0].views == ("view 0",)
    assert "2 planned and missing" in (writer.location / "STORE_CARD.md").read_text()
    for block in BLOCKS[1:]:
        writer.commit(write_block(writer, block, S))
    assert writer.finalize().planned == ()
    assert "Incomplete" not in (writer.location / "STORE_CARD.md").read_text()


def test_plans_of_several_runs_add_up(writer):
    more = Plan(dataset=DATASET, blocks=(random_block(9, "b9").plan,))
    for _ in range(2):
        writer.add_plan(more)
    assert len(list((writer.location / "plans").iterdir())) == 2
    assert [b.id for b in writer.finalize().planned] == ["b1", "b2", "b9"]


def test_who_commits_second_loses_and_cleans_up(writer):
    theirs = block_folders(writer)
    assert not writer.commit(write_block(writer, BLOCKS[0], S))
    assert block_folders(writer) == theirs
    assert writer.has_receipt("b0")
    assert not writer.has_receipt("b0", 1)


class LostReply(NoSync):
    """link(2) succeeds, and says that it did not, as NFS may."""

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        raise FileExistsError(target)


def test_a_lost_reply_is_no_defeat(tmp_path):
    writer = StoreWriter.create(tmp_path / "s", IDENTITY, LostReply())
    assert writer.commit(write_block(writer, BLOCKS[0], S))
    writer.finalize()
    assert verify_store(tmp_path / "s").problems == ()


class NoReceipts(NoSync):
    """Fails when a receipt is made, before or after the link."""

    def __init__(self, after: bool) -> None:
        self.after = after

    def link(self, source: Path, target: Path) -> None:
        if target.parent.name != "receipts":
            super().link(source, target)
            return
        if self.after:
            super().link(source, target)
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("after", [False, True])
def test_a_block_whose_receipt_cannot_be_written_does_not_stay(tmp_path, after):
    writer = StoreWriter.create(tmp_path / "s", IDENTITY, NoReceipts(after))
    receipt = write_block(writer, BLOCKS[0], S)
    with pytest.raises(OSError, match="No space"):
        writer.commit(receipt)
    assert writer.has_receipt("b0") == after
    # a receipt that stands refers to its block, whatever was said of it
    assert len(block_folders(writer)) == after


class FullDisk(NoSync):
    """Has room for so many files."""

    def __init__(self, files: int) -> None:
        self.files = files

    def open_new(self, path):
        self.files -= 1
        if self.files < 0:
            raise OSError(28, "No space left on device")
        return super().open_new(path)


@pytest.mark.parametrize("files", range(5))
def test_a_block_that_cannot_even_begin_leaves_nothing(tmp_path, files):
    StoreWriter.create(tmp_path / "s", IDENTITY, NoSync())
    writer = StoreWriter(tmp_path / "s", FullDisk(files))
    if files < 4:
        with pytest.raises(OSError, match="No space"):
            writer.start_block("b", S)
    else:
        writer.abandon(writer.start_block("b", S))
    assert block_folders(writer) == set()


def test_failures_are_recorded_and_end_with_success(writer):
    writer.fail("b1", "first reason")
    age(writer.location / "failures", 10)
    writer.fail("b1", "second reason")
    writer.fail("b2", "wände fehlen")
    writer.fail("b0", "somebody else did it")
    assert writer.failures() == {"b1": "second reason", "b2": "wände fehlen"}
    writer.commit(write_block(writer, BLOCKS[1], S))
    assert writer.failures() == {"b2": "wände fehlen"}
    writer.finalize()
    assert [p.name[:3] for p in (writer.location / "failures").iterdir()] == ["b2-"]
    assert verify_store(writer.location).problems == ()


def test_a_damaged_failure_record_is_named(writer):
    (writer.location / "failures" / f"b1-{'0' * 32}.json").write_text("{}")
    with pytest.raises(MetadataError, match="not a failure record"):
        writer.failures()


def test_a_newer_generation_holds(writer):
    other = random_block(7, "b0", points=9, views=1)
    first = writer.receipt("b0")
    assert writer.commit(write_block(writer, other, S, generation=1))
    manifest = writer.finalize()
    assert manifest.blocks["b0"].generation == 1 == writer.receipt("b0").generation
    assert list(manifest.superseded) == ["b0.0"]
    with open_store(writer.location) as store:
        rows = store.read("b0/s0", rule="last").features.rows
    np.testing.assert_array_equal(rows, other.samples[0].views[0].rows.astype(np.float16))
    # readers may have the old one open: it stays until it is asked for
    assert (writer.location / first.folder).is_dir()
    assert writer.collect(now=True)
    assert not (writer.location / first.folder).exists()
    assert sorted(p.name for p in (writer.location / "receipts").iterdir()) == ["b0.0.json", "b0.1.json"]
    assert verify_store(writer.location).problems == ()


def test_an_orphan_waits_a_day_unless_its_block_is_done(writer):
    elsewhere = StoreWriter(writer.location, NoSync())
    young, old, beaten = (elsewhere.location / write_block(elsewhere, BLOCKS[i], S).folder for i in (1, 2, 0))
    age(old, DAY + 60)
    writer.finalize()
    assert young.is_dir()
    assert not old.exists()
    assert not beaten.exists()
    # one recent write anywhere inside shows that its writer lives
    age(young, DAY + 60)
    os.utime(young / "features" / "c" / "0" / "0")
    writer.finalize()
    assert young.is_dir()
    assert writer.collect(now=True) == [str(young.relative_to(writer.location))]
    assert not young.exists()


def test_finalising_beside_those_who_do_blocks_again(writer):
    """What they write looks like what was beaten."""
    elsewhere = StoreWriter(writer.location, NoSync())
    again = elsewhere.location / write_block(elsewhere, BLOCKS[0], S).folder
    writer.finalize(collect=False)
    assert again.is_dir()
    writer.finalize()
    assert not again.exists()


@pytest.mark.parametrize("name", ["blocks", "receipts", ".lock"])
def test_folders_that_are_links_are_refused(writer, tmp_path, name):
    outside = tmp_path / "precious"
    (writer.location / name).rename(outside)
    (writer.location / name).symlink_to(outside)
    (outside if outside.is_dir() else tmp_path).joinpath(f"models-{'a' * 32}").mkdir()
    before = sorted(outside.rglob("*"))
    for act in (writer.finalize, lambda: writer.collect(now=True)):
        with pytest.raises(StoreError, match="is a link out of the store"):
            act()
    with pytest.raises(StoreError, match="is a link out of the store"):
        StoreWriter.create(writer.location, IDENTITY, NoSync())
    assert sorted(outside.rglob("*")) == before


def test_a_damaged_receipt_says_what_to_do(writer):
    (writer.location / "receipts" / "b0.0.json").write_bytes(b"{")
    with pytest.raises(MetadataError, match=r"b0.0.json: .*\n.*remove the file and give the extract command again"):
        writer.finalize()
    (writer.location / "receipts" / "b0.0.json").unlink()
    assert {block.id for block in writer.finalize().planned} == {"b0", "b1", "b2"}


def test_labels_of_a_store_mean_the_same_in_all_plans(writer):
    def plan(**dataset):
        return Plan(dataset=DatasetEntry(**dataset), blocks=())

    writer.add_plan(plan(class_names={"rooms": ("wall", "floor")}, label_maps={"rooms": {"7": 0}}))
    writer.add_plan(plan(class_names={"other": ("a",)}))
    for wrong in ({"class_names": {"rooms": ("floor", "wall")}}, {"label_maps": {"rooms": {"8": 0}}}):
        with pytest.raises(StoreError, match="the classes of rooms are others"):
            writer.add_plan(plan(**wrong))


def test_a_block_of_ones_own_is_never_collected(writer):
    out = writer.start_block("b1", S)
    age(out.folder, 2 * DAY)
    writer.finalize()
    writer.collect(now=True)
    assert out.folder.is_dir()
    writer.abandon(out)
    assert not out.folder.exists()


def test_old_manifests_and_temporary_files_go_in_time(writer):
    writer.finalize()
    first = next(writer.location.glob("manifest-*"))
    for name in (".LATEST.x.tmp", "plans/.p.x.tmp", "receipts/.b0.1.json.x.tmp", "receipts/.b1.0.json.x.tmp"):
        (writer.location / name).write_bytes(b"half")
    writer.commit(write_block(writer, BLOCKS[1], S))
    (writer.location / "receipts" / ".b2.0.json.x.tmp").write_bytes(b"half")
    writer.finalize()
    assert first.exists()
    # only the one of a block that nobody has committed may belong to a live writer
    assert [p.name for p in writer.location.rglob(".*.tmp")] == [".b2.0.json.x.tmp"]
    age(first, DAY + 60)
    age(writer.location / "receipts", DAY + 60)
    writer.collect()
    assert not first.exists()
    assert list(writer.location.rglob(".*.tmp")) == []


def test_a_live_failure_record_of_a_block_with_a_similar_name_is_left_alone(writer):
    live = writer.location / "failures" / f".b0.1-{'0' * 32}.json.x.tmp"
    live.write_bytes(b"half")
    writer.finalize()
    assert live.exists()


def test_collecting_follows_no_links(writer, tmp_path):
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_text("keep me")
    link = writer.location / "blocks" / f"b1-{'0' * 32}"
    link.symlink_to(outside)
    inside = writer.location / "blocks" / f"b2-{'0' * 32}"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    writer.collect(now=True)
    assert not link.is_symlink()
    assert not inside.exists()
    assert (outside / "file").read_text() == "keep me"


def test_a_receipt_under_another_name_is_refused(writer):
    receipt = writer.location / "receipts" / "b0.0.json"
    (writer.location / "receipts" / "b1.0.json").write_bytes(receipt.read_bytes())
    with pytest.raises(MetadataError, match="for block b0"):
        writer.finalize()


def test_a_sample_in_two_blocks_is_an_error_of_ours(writer):
    twin = random_block(0, "b0", points=9, views=1)
    writer.commit(write_block(writer, type(twin)("b7", twin.samples), S))
    with pytest.raises(MetadataError, match="b0/s0 is in two blocks"):
        writer.finalize()


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ("scene0000_00", "scene0000_00"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("/absolute", "%2Fabsolute"),
        ("drive~1 ä", "drive%7E1%20%C3%A4"),
        ("null\0", "null%00"),
    ],
)
def test_block_ids_become_harmless_file_names(tmp_path, block, name):
    assert block_file_name(block) == name
    spec = random_block(0, block, points=5, views=1)
    build_store(tmp_path / "s", [spec], S)
    (folder,) = os.listdir(tmp_path / "s" / "blocks")
    assert folder[:-33] == name
    assert sorted(os.listdir(tmp_path)) == ["s"]
    assert verify_store(tmp_path / "s").problems == ()
    assert len(open_store(tmp_path / "s").read(f"{block}/s0").features.index) == 5


@pytest.mark.parametrize("block", ["", "\ud800"])
def test_block_ids_that_cannot_be_file_names_are_refused(block):
    with pytest.raises(MetadataError):
        block_file_name(block)


def test_long_block_ids_are_shortened():
    names = [block_file_name(block) for block in ("x" * 100, "x" * 101, "x" * 102, "ä" * 20)]
    assert names[0] == "x" * 100
    assert [len(name) for name in names] == [100] * 4
    assert names[1] == "x" * 67 + "-" + hashlib.sha256(b"x" * 101).hexdigest()[:32]
    assert len(set(names)) == 4


def test_int8_that_loses_too_much_names_float16(tmp_path):
    writer = StoreWriter.create(tmp_path / "s", IDENTITY, NoSync())
    rng = np.random.default_rng(0)
    view = random_view(rng, "v", 0, 50, 8, False, hits=50)
    view.rows[:, 1:] = 0.01 * rng.normal(size=view.rows[:, 1:].shape)
    view.rows[:, 0] = 0
    view.rows[0] = 500
    out = writer.start_block("b", BlockSettings(8, "int8"))
    out.add_sample("s", "train", random_points(rng, 50))
    out.add_view(view.encode(BlockSettings(8, "int8")))
    with pytest.raises(QuantisationError, match=r"store\.dtype=f16"):
        out.finish(0, {}, {})
    writer.abandon(out)


@pytest.mark.parametrize(
    ("row", "cls", "message"),
    [(np.nan, 0, "not finite"), (np.inf, 0, "not finite"), (1e5, 0, "65,504"), (1, np.nan, "class"), (1, 1e5, "class")],
)
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_what_float16_cannot_hold_fails_the_frame(row, cls, message, dtype):
    view = random_view(np.random.default_rng(0), "v", 0, 9, 8, True, hits=9)
    rows = view.rows.copy()
    rows[1, 3] = row
    with pytest.raises(FrameError, match=message):
        encode_view(
            "v",
            0,
            view.camera,
            view.grid,
            torch.from_numpy(rows),
            torch.full((8,), float(cls)),
            (view.row_patch, view.hit_point, view.hit_row),
            BlockSettings(8, dtype, class_token=True),
        )


def test_samples_of_a_block_have_the_same_attributes(tmp_path):
    writer = StoreWriter.create(tmp_path / "s", IDENTITY, NoSync())
    out = writer.start_block("b", BlockSettings(8, "float16"))
    points = random_points(np.random.default_rng(0), 5)
    out.add_sample("s0", "train", points)
    with pytest.raises(SampleError, match="other attributes"):
        out.add_sample("s1", "train", PointCloud(points.coord))
    out.add_sample("s2", "train", points)
    assert [s.id for s in out.finish(0, {}, {}).samples] == ["s0", "s2"]


def test_the_real_file_system_makes_the_same_store(tmp_path):
    for name, fs in (("a", NoSync()), ("b", Filesystem())):
        build_store(tmp_path / name, BLOCKS, S, fs=fs)
    assert open_store(tmp_path / "a").digest == open_store(tmp_path / "b").digest


def test_a_sample_belongs_to_one_block(tmp_path):
    """Found when it is planned, not when hours of work are finalised."""
    writer = StoreWriter.create(tmp_path / "s", {"dataset": {"name": "x"}})

    def plan(*blocks: tuple[str, str]) -> Plan:
        return Plan(
            dataset=DatasetEntry(),
            blocks=tuple(
                PlannedBlock(id=block, samples=(PlannedSample(id=sample, split="train", views=()),))
                for block, sample in blocks
            ),
        )

    writer.add_plan(plan(("a", "1"), ("b", "2")))
    writer.add_plan(plan(("a", "1"), ("c", "3")))
    for wrong in (plan(("d", "2")), plan(("e", "4"), ("f", "4"))):
        with pytest.raises(StoreError, match="is planned in blocks"):
            writer.add_plan(wrong)
    assert {b.id for b in writer.finalize().planned} == {"a", "b", "c"}
