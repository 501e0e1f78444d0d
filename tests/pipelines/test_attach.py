# SPDX-License-Identifier: Apache-2.0
"""Features meet the points that they were made for, in the order in which they were made, or none."""

from dataclasses import replace

import numpy as np
import pytest
from share_world import IDENTITY, BlockSpec, fast_folder, features_of, make, random_block, sound, version_of
from store_builder import SampleSpec, random_view

from ditr_cache.datasets import open_dataset
from ditr_cache.errors import ConfigError, DatasetError
from ditr_cache.pipelines.attach import Attach
from ditr_cache.pipelines.attach_points import in_store_order
from ditr_cache.store.digests import coordinate_digests
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.reader import open_store
from ditr_cache.store.receipt import SampleEntry
from ditr_cache.types import PointCloud


@pytest.fixture(scope="module")
def rooms():
    return open_dataset("synthetic:rooms=2,views=2")


@pytest.fixture(scope="module")
def blocks(rooms):
    """The rooms with features out of the blue."""
    rng = np.random.default_rng(0)
    made = []
    for plan in rooms.plan():
        samples = []
        for sample in plan.samples:
            points = rooms.load(sample.id).points
            views = tuple(random_view(rng, name, 0, len(points), 8, False, 500) for name in sample.views)
            samples.append(SampleSpec(sample.id, sample.split, points, views))
        made.append(BlockSpec(plan.id, tuple(samples)))
    return made


@pytest.fixture(scope="module")
def world(rooms, blocks):
    """A store without points, and the same with them."""
    identity = {**IDENTITY, "dataset": {"name": "synthetic", "version": rooms.version}}
    with fast_folder() as folder:
        for points in (False, True):
            chosen = {**identity, "features": {"points": points}}
            make(folder / f"points-{points}", blocks, BlockSettings(8, "float16", points=points), identity=chosen)
        yield folder


@pytest.fixture
def tmp_path():
    with fast_folder() as folder:
        yield folder


def test_joined_it_is_the_store_that_was_made_with_points(world, tmp_path):
    store = world / "points-False"
    report = Attach(store, "synthetic:rooms=2,views=2", tmp_path / "out").run()
    sound(tmp_path / "out")
    whole, out = open_store(world / "points-True"), open_store(tmp_path / "out")
    assert out.digest == whole.digest == report.digest
    assert out.identity == whole.identity
    (taken,) = out.manifest.sources
    assert (taken.version, taken.attached) == (version_of(store), True)
    for sample in out.samples:
        mine, theirs = features_of(out, sample), features_of(whole, sample)
        assert all(np.array_equal(mine[key], theirs[key]) for key in theirs)
    again = Attach(store, "synthetic:rooms=2,views=2", tmp_path / "out").run()
    assert (again.objects, again.blocks_there) == (0, 2)


def test_a_store_that_has_its_points_needs_no_others(world, tmp_path):
    with pytest.raises(ConfigError, match="has its points already"):
        Attach(world / "points-True", "synthetic:rooms=2,views=2", tmp_path / "out").run()


def test_one_point_that_moved_is_one_too_many(world, blocks, tmp_path):
    def nudged(sample):
        coord = sample.points.coord.copy()
        coord[7, 1] = np.nextafter(coord[7, 1], np.float32(9))
        return replace(sample, points=replace(sample.points, coord=coord))

    moved = [blocks[0], replace(blocks[1], samples=tuple(map(nudged, blocks[1].samples)))]
    identity = open_store(world / "points-False").identity
    store = make(tmp_path / "store", moved, BlockSettings(8, "float16", points=False), identity=identity)
    with pytest.raises(DatasetError, match="room-a-0000-0001: its points are not those"):
        Attach(store, "synthetic:rooms=2,views=2", tmp_path / "out").run()
    assert not (tmp_path / "out" / "LATEST").exists()
    assert len(list((tmp_path / "out" / "receipts").iterdir())) < 2


def test_another_data_set_is_refused(tmp_path, world):
    store = make(tmp_path / "s", [random_block(0)], BlockSettings(8, "float16", points=False))
    with pytest.raises(DatasetError, match="this is synthetic, the store was made from random"):
        Attach(store, "synthetic:rooms=1,views=1", tmp_path / "out").run()


def test_a_sample_that_the_copy_lacks_is_named(world, tmp_path):
    with pytest.raises(DatasetError, match="room-a-0000-0001"):
        Attach(world / "points-False", "synthetic:rooms=1,views=2", tmp_path / "out").run()


# order


def cloud(n: int = 50, seed: int = 0) -> PointCloud:
    rng = np.random.default_rng(seed)
    return PointCloud(
        rng.normal(size=(n, 3)).astype(np.float32),
        np.array([1.0, 2.0, 3.0]),
        color=rng.integers(0, 256, (n, 3)).astype(np.uint8),
        segments={"segment": np.arange(n, dtype=np.int32)},
    )


def entry(points: PointCloud) -> SampleEntry:
    exact, order_free = coordinate_digests(points)
    return SampleEntry(
        id="s", split="train", points=len(points), views=(), coord_sha256=exact, coord_sha256_sorted=order_free
    )


def permuted(points: PointCloud, order: np.ndarray) -> PointCloud:
    return replace(
        points,
        coord=points.coord[order],
        color=points.color[order],
        segments={"segment": points.segments["segment"][order]},
    )


def test_the_same_points_are_taken_as_they_are():
    points = cloud()
    assert in_store_order(points, entry(points)) is points


@pytest.mark.parametrize("order", ["backwards", "sorted"])
def test_an_order_that_can_be_tried_is_undone(order):
    points = cloud()
    if order == "sorted":
        points = permuted(points, np.lexsort(points.coord.T[::-1]))
        copy = permuted(points, np.random.default_rng(1).permutation(50))
    else:
        copy = permuted(points, np.arange(50)[::-1])
    found = in_store_order(copy, entry(points))
    np.testing.assert_array_equal(found.coord, points.coord)
    np.testing.assert_array_equal(found.color, points.color)
    np.testing.assert_array_equal(found.segments["segment"], points.segments["segment"])


def test_an_order_that_nobody_knows_is_refused():
    points = cloud()
    with pytest.raises(DatasetError, match="the right ones in another order"):
        in_store_order(permuted(points, np.random.default_rng(1).permutation(50)), entry(points))


def test_twice_the_same_point_could_be_either():
    points = cloud()
    points.coord[1] = points.coord[0]
    copy = permuted(points, np.arange(50)[::-1])
    with pytest.raises(DatasetError, match="the right ones in another order"):
        in_store_order(copy, entry(points))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: replace(p, coord=np.nextafter(p.coord, np.float32(9))),
        lambda p: replace(p, origin=p.origin + 1),
        lambda p: permuted(p, np.arange(49)),
    ],
)
def test_other_points_are_refused(change):
    points = cloud()
    with pytest.raises(DatasetError, match="not those that the features were made for"):
        in_store_order(change(points), entry(points))
