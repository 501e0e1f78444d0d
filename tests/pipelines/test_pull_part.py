# SPDX-License-Identifier: Apache-2.0
"""A part of a store is a store: it verifies, reads as the whole did, and says what it was taken from."""

from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from share_world import BLOCKS, INT8, SETTINGS, fast_folder, features_of, make, random_block, sound, version_of

from ditr_cache.errors import (
    ConfigError,
    CorruptStoreError,
    IdentityMismatchError,
    QuantisationError,
    SampleNotFoundError,
)
from ditr_cache.pipelines.pull import Pull
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.reader import open_store
from ditr_cache.store.subset import Selection
from ditr_cache.store.subset_write import TAKEN_FROM


@pytest.fixture
def tmp_path():
    with fast_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def source():
    """Do not write to it."""
    with fast_folder() as folder:
        yield make(folder / "source", planned=[*BLOCKS, random_block(9, "scène 9", samples=2, views=4, cls=True)])


@pytest.fixture(scope="module")
def source8():
    with fast_folder() as folder:
        yield make(folder / "source", settings=INT8, identity={"features": {"dtype": "int8", "points": True}})


def pulled(source, target, **wanted):
    report = Pull(source, target, Selection(**wanted)).run()
    sound(target)
    assert report.kept == ()
    return open_store(target)


def same_features(part, whole, samples=None):
    """What is there is what was there."""
    for sample in part.samples:
        mine, theirs = features_of(part, sample), features_of(whole, sample)
        for key, value in mine.items():
            np.testing.assert_array_equal(value, theirs[key])
    if samples is not None:
        assert list(part.samples) == samples


def test_whole_blocks_come_as_they_are(source, tmp_path):
    part, whole = pulled(source, tmp_path / "part", samples=("scène 0/*", "scène 2/*")), open_store(source)
    same_features(part, whole, ["scène 0/s0", "scène 0/s1", "scène 2/s0", "scène 2/s1"])
    for block, receipt in part.manifest.blocks.items():
        assert receipt == whole.manifest.blocks[block]
    assert part.manifest.planned == ()
    (taken,) = part.manifest.sources
    assert (taken.version, taken.digest) == (whole.version, whole.digest)
    assert (taken.samples, taken.views, taken.points, taken.dtype) == (("scène 0/*", "scène 2/*"), None, True, None)
    assert part.identity == whole.identity


def test_a_part_of_a_block_is_made_anew(source, tmp_path):
    part, whole = pulled(source, tmp_path / "part", samples=("*1/s1",)), open_store(source)
    same_features(part, whole, ["scène 1/s1"])
    (receipt,) = part.manifest.blocks.values()
    assert receipt.provenance[TAKEN_FROM] == whole.manifest.blocks["scène 1"].uuid
    mine, theirs = part.read("scène 1/s1", cls=True, seed=0), whole.read("scène 1/s1", cls=True, seed=0)
    for name in ("coord", "origin", "color", "normal", "strength", "instance"):
        np.testing.assert_array_equal(getattr(mine.points, name), getattr(theirs.points, name))
    for name, labels in theirs.points.segments.items():
        np.testing.assert_array_equal(mine.points.segments[name], labels)
    np.testing.assert_array_equal(mine.cls, theirs.cls)
    np.testing.assert_array_equal(mine.patch, theirs.patch)


@pytest.mark.parametrize("views", [1, 2, 3, 4, 9])
def test_views_are_spread_as_the_official_evaluation_does(source, tmp_path, views):
    part, whole = pulled(source, tmp_path / "part", views=views), open_store(source)
    same_features(part, whole)
    for sample in whole.samples:
        names = whole.samples[sample].view_names
        assert part.samples[sample].view_names == names[:: max(1, len(names) // views)][:views]
        assert part.variants(sample) == (0, 1)
    assert bool(part.manifest.sources) == (views < 4)
    assert (part.version == whole.version) == (views >= 4)


def test_what_is_planned_is_cut_alike(source, tmp_path):
    part = pulled(source, tmp_path / "part", samples=("*s0",), views=2)
    (block,) = part.manifest.planned
    assert [(sample.id, len(sample.views)) for sample in block.samples] == [("scène 9/s0", 2)]


def test_points_stay_behind(source, tmp_path):
    part, whole = pulled(source, tmp_path / "part", points=False), open_store(source)
    same_features(part, whole, list(whole.samples))
    assert part.identity["features"] == {"points": False}
    assert all(part.read(sample).points is None for sample in part.samples)
    assert not list((tmp_path / "part").glob("blocks/*/coord"))
    for sample in part.samples:
        assert part.samples[sample].coord_sha256 == whole.samples[sample].coord_sha256


def test_int8_on_the_way(source, tmp_path):
    part, whole = pulled(source, tmp_path / "part", dtype="int8"), open_store(source)
    assert part.identity["features"] == {"dtype": "int8"}
    for sample in whole.samples:
        for key, value in features_of(part, sample).items():
            # half a step of the largest range of a channel in a view
            np.testing.assert_allclose(value, features_of(whole, sample)[key], atol=2 * 2 / 255)
    for receipt in part.manifest.blocks.values():
        assert receipt.arrays["features"].dtype == "int8"
        assert 0 < receipt.int8_cosine_error_p99 < 1e-4


def test_int8_that_loses_too_much_is_refused(tmp_path):
    block = random_block(1, points=60, views=2)
    rng = np.random.default_rng(0)

    def spoil(view):
        rows = rng.normal(size=view.rows.shape).astype(np.float32)
        rows[:, 0] = rng.uniform(-2000, 2000, len(rows))
        return replace(view, rows=rows)

    samples = tuple(replace(s, views=tuple(map(spoil, s.views))) for s in block.samples)
    source = make(tmp_path / "source", [replace(block, samples=samples)], BlockSettings(8, "float16"))
    with pytest.raises(QuantisationError, match=r"int8 loses too much: cosine error p99 is .*\n.*float16 \(f16\)"):
        Pull(source, tmp_path / "part", Selection(dtype="int8")).run()
    assert not (tmp_path / "part" / "LATEST").exists()
    assert list((tmp_path / "part" / "blocks").iterdir()) == []


def test_int8_stores_are_cut_without_loss(source8, tmp_path):
    part, whole = pulled(source8, tmp_path / "part", views=2, samples=("*s1",)), open_store(source8)
    same_features(part, whole)
    for block, receipt in part.manifest.blocks.items():
        assert receipt.int8_cosine_error_p99 == whole.manifest.blocks[block].int8_cosine_error_p99
        assert receipt.arrays["features"].codec == "zstd"


def test_int8_of_an_int8_store_is_that_store(source8, tmp_path):
    assert pulled(source8, tmp_path / "part", dtype="int8").version == version_of(source8)


def test_parts_add_up(source, tmp_path):
    whole, path = open_store(source), tmp_path / "part"
    pulled(source, path, samples=("*0/s0",))
    pulled(source, path, samples=("*1/*",), views=2)
    again = pulled(source, path, samples=("*1/s0",), views=3)
    assert again.samples["scène 1/s0"].view_names == ("view 0", "view 1", "view 2")
    assert again.samples["scène 1/s1"].view_names == ("view 0", "view 2")
    same_features(again, whole)
    # what is there is not brought again
    report = Pull(source, path, Selection(samples=("*0/s0",))).run()
    assert (report.objects, report.blocks_there) == (0, 1)
    everything = pulled(source, path)
    same_features(everything, whole, list(whole.samples))
    assert everything.digest == whole.digest
    assert len(everything.manifest.sources) == 3


def test_the_same_parts_in_another_order_are_the_same(source, tmp_path):
    digests = set()
    for n, order in enumerate(([("*s0",), ("*0/*",)], [("*0/*",), ("*s0",)], [("*s0", "*0/*")])):
        for samples in order:
            part = pulled(source, tmp_path / str(n), samples=samples)
        digests.add(part.digest)
    assert len(digests) == 1


def test_a_part_of_a_part_remembers_both(source, tmp_path):
    first = pulled(source, tmp_path / "first", samples=("*0/*", "*1/*"))
    second = pulled(tmp_path / "first", tmp_path / "second", views=1)
    assert {s.version for s in second.manifest.sources} == {version_of(source), first.version}
    same_features(second, open_store(source))


def test_parts_of_other_settings_do_not_mix(source, tmp_path):
    pulled(source, tmp_path / "part", samples=("*0/*",))
    with pytest.raises(IdentityMismatchError, match="features: the store has null, asked for"):
        Pull(source, tmp_path / "part", Selection(points=False)).run()


def test_a_block_that_has_been_done_again_is_not_mixed_with_its_old_self(tmp_path):
    source = make(tmp_path / "a", BLOCKS[:1])
    other = make(tmp_path / "b", BLOCKS[:1])
    pulled(source, tmp_path / "part", samples=("*s0",))
    report = Pull(other, tmp_path / "part", Selection(samples=("*s1",))).run()
    assert [kept.block for kept in report.kept] == [BLOCKS[0].id]
    assert list(open_store(tmp_path / "part").samples) == ["scène 0/s0"]


@pytest.mark.parametrize(
    ("wanted", "error", "match"),
    [
        (
            {"samples": ("*0/s0", "nothing*")},
            SampleNotFoundError,
            "no sample fits 'nothing\\*'\nThe store has 8: ",
        ),
        ({"views": 0}, ConfigError, "at least 1"),
    ],
)
def test_wishes_that_cannot_be_met(source, tmp_path, wanted, error, match):
    with pytest.raises(error, match=match):
        Pull(source, tmp_path / "part", Selection(**wanted)).run()
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("views", [3, 10, 11, 12])
def test_many_views_start_on_chunks_and_few_do_not(tmp_path, views, align):
    """As extraction does it: layout follows from what is wanted, not from how the source was laid out."""
    block = random_block(3, samples=1, points=40, views=12)
    source = make(tmp_path / "source", [block], BlockSettings(8, "float16", align_views=align))
    part = pulled(source, tmp_path / "part", views=views)
    same_features(part, open_store(source))
    (receipt,) = part.manifest.blocks.values()
    starts = part.block(receipt).view_rows[:, 0] % 128
    assert (starts == 0).all() == (views > 10 if views < 12 else align)


@settings(max_examples=25, deadline=None)
@given(
    patterns=st.lists(st.sampled_from(["*", "*s0", "*s1", "scène 0/*", "*1/s?", "*[02]/s1"]), max_size=3),
    views=st.none() | st.integers(1, 5),
    points=st.booleans(),
    dtype=st.none() | st.just("int8"),
)
def test_any_part_is_sound(source, patterns, views, points, dtype):
    with fast_folder() as folder:
        part = pulled(source, folder / "part", samples=tuple(patterns), views=views, points=points, dtype=dtype)
        if dtype is None:
            same_features(part, open_store(source))
        wanted = Selection(samples=tuple(patterns))
        assert list(part.samples) == [s for s in open_store(source).samples if wanted.matches(s)]


# sources that are damaged in a way that no checksum of theirs tells


def forge(store: Path, name: str) -> None:
    """Change the first element of an array, and the crc32c behind its chunk with it."""
    for path in store.glob(f"blocks/*/{name}/c/**/0"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            rows = {"features": 128, "row_patch": 16384, "color": 16384, "coord": 16384}.get(name)
            width = {"features": 16, "row_patch": 2, "color": 3, "coord": 12}.get(name, 0)
            body = rows * width if rows else len(data) - 4
            data[0] ^= 1
            data[body : body + 4] = google_crc32c.value(bytes(data[:body])).to_bytes(4, "little")
            path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("features", "other content"),
        ("row_patch", "other content"),
        ("color", "color is not what the manifest says"),
        ("coord", "coord is not what the manifest says"),
        ("view_sha256", "view_sha256 is not what"),
        ("grid", "grid is not what"),
        ("intrinsics", "intrinsics is not what"),
        ("cls", "cls is not what"),
    ],
)
def test_forged_bytes_are_found_in_a_part_too(tmp_path, name, match):
    source = make(tmp_path / "source", BLOCKS[:1], SETTINGS)
    forge(source, name)
    with pytest.raises(CorruptStoreError, match=match):
        Pull(source, tmp_path / "part", Selection(samples=("*s0",))).run()
    assert not (tmp_path / "part" / "LATEST").exists()
    assert list((tmp_path / "part" / "blocks").iterdir()) == []
