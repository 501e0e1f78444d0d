# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from ditr_cache.errors import CorruptStoreError, MetadataError, StoreNotFoundError
from ditr_cache.pipelines.inspect import Info
from ditr_cache.store.reader import open_store
from ditr_cache.store.writer import StoreWriter


@pytest.fixture
def store(tiny, tmp_path):
    tiny.extract(tiny.rooms(3), tmp_path / "store").run()
    return tmp_path / "store"


def test_totals_are_those_of_the_store(store, tiny):
    report, opened = Info(store).run(), open_store(store)
    assert (report.digest, report.manifest, report.identity) == (opened.digest, opened.version, opened.identity)
    assert {s.id: s for s in report.samples} == dict(opened.samples)
    assert (report.blocks, report.missing, report.failed, report.not_finalised) == (3, (), {}, 0)
    assert report.splits["train"].points == report.points == 600
    assert report.views == 9
    assert report.views_per_point == pytest.approx(report.hits / 600, abs=1e-3)
    assert report.points_seen == sum((opened.read(s).features.index >= 0).sum() for s in opened.samples)


def test_bytes_are_those_on_disk(store):
    report = Info(store).run()
    assert report.bytes == sum(f.stat().st_size for f in (store / "blocks").rglob("*") if f.is_file())
    groups = sum(f.stat().st_size for f in store.glob("blocks/*/zarr.json"))
    assert sum(a.bytes for a in report.arrays) + groups == report.bytes
    assert [a.bytes for a in report.arrays] == sorted((a.bytes for a in report.arrays), reverse=True)
    assert {a.name: a.dtype for a in report.arrays}["features"] == "float16"


def test_missing_and_failed_blocks(tiny, tmp_path):
    tiny.extract(tiny.rooms(3), tmp_path, shard=(1, 3)).run()
    writer = StoreWriter(tmp_path)
    writer.fail("r0", "first")
    writer.fail("r1", "has a receipt, so this is old")
    report = Info(tmp_path).run()
    assert (report.blocks, report.missing, report.failed) == (1, ("r0", "r2"), {"r0": "first"})


def test_frames_left_out_have_their_reason(tiny, tmp_path):
    dataset = tiny.rooms(2)
    dataset.failures["r1"] = [OSError("gone")] * 20
    tiny.extract(dataset, tmp_path).run()
    report = Info(tmp_path).run()
    assert "gone" in report.failed["r1"]


def test_before_the_first_finalisation(store):
    digest = open_store(store).digest
    (store / "LATEST").unlink()
    report = Info(store).run()
    assert (report.digest, report.manifest, report.blocks, report.not_finalised) == (digest, None, 3, 3)


def test_blocks_that_readers_do_not_see_yet(tiny, tmp_path):
    tiny.extract(tiny.rooms(2), tmp_path, shard=(0, 2)).run()
    latest = (tmp_path / "LATEST").read_bytes()
    tiny.extract(tiny.rooms(2), tmp_path, shard=(1, 2)).run()
    tiny.extract(tiny.rooms(2), tmp_path, shard=(0, 2), redo=True).run()
    assert Info(tmp_path).run().not_finalised == 0
    (tmp_path / "LATEST").write_bytes(latest)
    report = Info(tmp_path).run()
    assert (report.blocks, report.not_finalised) == (1, 2)


def test_plain_values(store):
    report = Info(store).run()
    assert json.loads(json.dumps(report.to_dict()))["samples"][0]["id"] == "r0"
    assert report.to_dict(samples=False)["samples"] == 3


def test_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError, match="extract"):
        Info(tmp_path)


def test_damage(store):
    (manifest,) = store.glob("manifest-*.json")
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(CorruptStoreError):
        Info(store).run()
    next(store.glob("plans/*.json")).write_text("{}")
    (store / "LATEST").unlink()
    with pytest.raises(MetadataError):
        Info(store).run()
