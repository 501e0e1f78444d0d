# SPDX-License-Identifier: Apache-2.0
"""What differs is named; how stores came about is no difference."""

import pytest
from share_world import BLOCKS, IDENTITY, SETTINGS, fast_folder, make, random_block

from ditr_cache.errors import StoreNotFoundError
from ditr_cache.pipelines.diff import Diff
from ditr_cache.store.encode import BlockSettings


@pytest.fixture
def tmp_path():
    with fast_folder() as folder:
        yield folder


def test_stores_of_equal_content_are_equal(tmp_path):
    report = Diff(make(tmp_path / "a"), make(tmp_path / "b")).run()
    assert report.equal
    assert report.manifests[0] != report.manifests[1]
    assert report.digests[0] == report.digests[1]


def test_settings(tmp_path):
    report = Diff(make(tmp_path / "a", []), make(tmp_path / "b", [], identity={**IDENTITY, "x": 1})).run()
    assert (report.equal, report.identity) == (False, ("x: A has null, B has 1",))


def test_blocks_and_samples(tmp_path):
    report = Diff(make(tmp_path / "a", BLOCKS[:2]), make(tmp_path / "b", BLOCKS[1:])).run()
    assert not report.equal
    assert (report.blocks_only_in_a, report.blocks_only_in_b) == (("scène 0",), ("scène 2",))
    assert report.samples_only_in_a == ("scène 0/s0", "scène 0/s1")
    assert report.samples_only_in_b == ("scène 2/s0", "scène 2/s1")
    assert report.blocks_that_differ == {}


def test_contents(tmp_path):
    a = make(tmp_path / "a", [random_block(1, "b0", cls=True)])
    b = make(tmp_path / "b", [random_block(1, "b0", cls=True, views=2)])
    (changed,) = Diff(a, b).run().blocks_that_differ.values()
    assert {"view_sha256", "samples"} <= set(changed)
    c = make(tmp_path / "c", [random_block(1, "b0")], BlockSettings(8, "float16"))
    assert Diff(a, c).run().blocks_that_differ["b0"][0] == "cls"
    assert SETTINGS.class_token


def test_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError):
        Diff(make(tmp_path / "a", []), tmp_path / "b").run()
