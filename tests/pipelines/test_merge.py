# SPDX-License-Identifier: Apache-2.0
"""Shards become one store, or it is said why they cannot."""

from dataclasses import replace

import pytest
from share_world import BLOCKS, IDENTITY, fast_folder, make, random_block, sound, version_of

from ditr_cache.errors import IdentityMismatchError, StoreError
from ditr_cache.pipelines.diff import Diff
from ditr_cache.pipelines.merge import Merge
from ditr_cache.pipelines.pull import Pull
from ditr_cache.store.manifest import DatasetEntry, Plan
from ditr_cache.store.reader import open_store
from ditr_cache.store.subset import Selection
from ditr_cache.store.writer import StoreWriter


@pytest.fixture
def tmp_path():
    with fast_folder() as folder:
        yield folder


def test_shards_become_the_store_that_one_run_would_have_made(tmp_path):
    whole = make(tmp_path / "whole")
    shards = [make(tmp_path / f"shard {i}", [block], planned=BLOCKS) for i, block in enumerate(BLOCKS)]
    report = Merge(shards, tmp_path / "out").run()
    assert (report.blocks, report.missing, report.blocks_copied, report.kept) == (3, 0, 3, ())
    assert report.digest == open_store(whole).digest
    sound(tmp_path / "out")
    assert Diff(whole, tmp_path / "out").run().equal
    again = Merge(shards, tmp_path / "out").run()
    assert (again.manifest, again.objects, again.blocks_there) == (report.manifest, 0, 3)


def test_what_no_shard_has_stays_planned(tmp_path):
    shards = [make(tmp_path / f"shard {i}", [BLOCKS[i]], planned=BLOCKS) for i in range(2)]
    report = Merge(shards, tmp_path / "out").run()
    assert (report.blocks, report.missing) == (2, 1)
    add = make(tmp_path / "late", [BLOCKS[2]])
    report = Merge([*shards, add], tmp_path / "out").run()
    assert (report.blocks, report.missing, report.blocks_copied) == (3, 0, 1)
    sound(tmp_path / "out")


def test_blocks_that_several_have_are_taken_once(tmp_path):
    a, b = make(tmp_path / "a", BLOCKS[:2]), make(tmp_path / "b", BLOCKS[1:])
    report = Merge([a, b], tmp_path / "out").run()
    assert (report.blocks_copied, report.kept) == (3, ())
    mine = open_store(tmp_path / "out").manifest.blocks[BLOCKS[1].id]
    assert mine == open_store(a).manifest.blocks[BLOCKS[1].id]
    sound(tmp_path / "out")


def test_different_settings_are_listed(tmp_path):
    a = make(tmp_path / "a", BLOCKS[:1])
    b = make(tmp_path / "b", BLOCKS[1:], identity={**IDENTITY, "images": {**IDENTITY["images"], "size": [1, 2]}})
    with pytest.raises(IdentityMismatchError) as error:
        Merge([a, b], tmp_path / "out").run()
    assert "images.size: the store has [30, 40], the other [1, 2]" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_one_sample_with_two_contents_is_refused_by_name(tmp_path):
    a = make(tmp_path / "a", BLOCKS[:1])
    b = make(tmp_path / "b", [random_block(77, BLOCKS[0].id, samples=2, cls=True)])
    with pytest.raises(StoreError, match="sample scène 0/s0 is in block scène 0 of both, with different contents"):
        Merge([a, b], tmp_path / "out").run()


def test_parts_of_one_block_are_no_shards(tmp_path):
    whole = make(tmp_path / "whole", BLOCKS[:1])
    for name in ("s0", "s1"):
        Pull(whole, tmp_path / name, Selection(samples=(f"*{name}",))).run()
    with pytest.raises(StoreError, match="sample scène 0/s1 is in block scène 0 of both"):
        Merge([tmp_path / "s0", tmp_path / "s1"], tmp_path / "out").run()


def test_a_sample_in_two_blocks_is_refused_by_name(tmp_path):
    a, b = make(tmp_path / "a", BLOCKS[:1]), make(tmp_path / "b", [replace(BLOCKS[0], id="another")])
    with pytest.raises(StoreError, match="sample scène 0/s0 is in blocks scène 0 and another"):
        Merge([a, b], tmp_path / "out").run()
    assert not (tmp_path / "out").exists()


def test_labels_must_mean_the_same(tmp_path):
    a, b = make(tmp_path / "a", BLOCKS[:1]), StoreWriter.create(tmp_path / "b", IDENTITY).location
    StoreWriter(b).add_plan(Plan(dataset=DatasetEntry(class_names={"segment": ("wall", "floor")}), blocks=()))
    StoreWriter(b).finalize()
    with pytest.raises(StoreError, match="class_names of 'segment' are not those of"):
        Merge([a, b], tmp_path / "out").run()


def test_what_parts_were_taken_from_is_remembered(tmp_path):
    whole = make(tmp_path / "whole")
    for i in range(2):
        Pull(whole, tmp_path / str(i), Selection(samples=(f"scène {i}/*",))).run()
    Merge([tmp_path / "0", tmp_path / "1"], tmp_path / "out").run()
    assert {s.version for s in open_store(tmp_path / "out").manifest.sources} == {version_of(whole)}
    assert len(open_store(tmp_path / "out").manifest.sources) == 2
