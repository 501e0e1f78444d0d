# SPDX-License-Identifier: Apache-2.0
"""What is read is what was written, and drawn as the documentation says."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from store_builder import (
    DATASET,
    IDENTITY,
    PROVENANCE,
    BlockSpec,
    SampleSpec,
    build_store,
    fast_folder,
    oracle_index,
    random_block,
    random_points,
    random_view,
)

from ditr_cache.errors import ConfigError, SampleNotFoundError, StoreNotFoundError
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.reader import FeatureStore, open_store
from ditr_cache.store.verify import verify_store
from ditr_cache.types import PointFeatures

BLOCKS = st.builds(
    random_block,
    seed=st.integers(0, 2**32 - 1),
    samples=st.integers(1, 3),
    points=st.sampled_from([1, 2, (1, 60), 300]),
    views=st.integers(0, 4),
    variants=st.sampled_from([(0,), (0, 1), (0, 2, 3)]),
    cls=st.just(True),
)


def expected_rows(sample: SampleSpec, views: list[tuple[int, int]], settings_: BlockSettings) -> np.ndarray:
    """`[P, D]` stored rows of the drawn views, as the writer narrowed them."""
    parts = [sample.view(*v).encode(settings_).rows for v in views]
    return np.concatenate([np.zeros((0, settings_.dim), parts[0].dtype if parts else settings_.dtype), *parts])


def check_read(sample: SampleSpec, got: PointFeatures, views: list[tuple[int, int]], rule: str, s: BlockSettings):
    """Compare a read of `views` (base, variant), in that order, with the slow oracle."""
    index = oracle_index(sample, views, rule)
    offsets = np.cumsum([0, *(len(sample.view(*v).rows) for v in views)])
    seen = index[:, 0] >= 0
    want = np.where(seen, offsets[index[:, 0]] + index[:, 1], -1)
    np.testing.assert_array_equal(got.features.index, want)
    assert got.features.index.dtype == np.int32
    rows = expected_rows(sample, views, s)
    assert got.features.rows.dtype == np.dtype(s.dtype)
    np.testing.assert_array_equal(got.features.rows, rows)
    base = np.array([b for b, _ in views], int)
    np.testing.assert_array_equal(got.view[seen], base[index[seen, 0]])
    patch = [sample.view(*views[v]).row_patch[r] for v, r in index[seen]]
    np.testing.assert_array_equal(got.patch[seen], np.array(patch, int))
    assert (got.view[~seen] == -1).all()
    assert (got.patch[~seen] == -1).all()
    check_dense(sample, got, views, index, s)


def check_dense(sample: SampleSpec, got: PointFeatures, views: list[tuple[int, int]], index: np.ndarray, s):
    dense = np.zeros((len(sample.points), s.dim), np.float16)
    for point, (position, row) in enumerate(index):
        if position >= 0:
            encoded = sample.view(*views[position]).encode(s)
            value = encoded.rows[row]
            if s.dtype == "int8":
                offset, step = encoded.affine
                value = offset + step * (value.astype(np.float32) + np.float32(128))
                assert value.dtype == np.float32
            dense[point] = value.astype(np.float16)
    np.testing.assert_array_equal(got.features.dense(), dense)
    decoded = got.features.dequantise()
    on_torch = got.features.to("cpu")
    assert on_torch.rows.dtype == (torch.int8 if s.dtype == "int8" else torch.float16)
    np.testing.assert_array_equal(on_torch.dequantise().rows.numpy(), decoded.rows)
    np.testing.assert_array_equal(on_torch.index.numpy(), got.features.index)


def check_points(sample: SampleSpec, got: PointFeatures, stored: bool):
    if not stored:
        assert got.points is None
        return
    assert got.points is not None
    for name in ("coord", "origin", "color", "normal", "strength", "instance"):
        a, b = getattr(got.points, name), getattr(sample.points, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert got.points.segments.keys() == sample.points.segments.keys()
    for name, labels in sample.points.segments.items():
        np.testing.assert_array_equal(got.points.segments[name], labels)


@settings(deadline=None, max_examples=30)
@given(
    block=BLOCKS,
    dtype=st.sampled_from(["float16", "int8"]),
    codec=st.sampled_from(["none", "zstd"]),
    points=st.booleans(),
    align=st.booleans(),
    rule=st.sampled_from(["last", "first"]),
)
def test_what_is_read_is_what_was_written(block, dtype, codec, points, align, rule):
    s = BlockSettings(8, dtype, codec, points=points, class_token=True, align_views=align)
    with fast_folder() as folder:
        build_store(folder / "s", [block], s)
        assert verify_store(folder / "s").problems == ()
        check_store(folder / "s", block, s, rule)


def check_store(path: Path, block: BlockSpec, s: BlockSettings, rule: str) -> None:
    with open_store(path) as store:
        assert list(store.samples) == [sample.id for sample in block.samples]
        for sample in block.samples:
            info = store.samples[sample.id]
            assert (info.points, info.view_names, info.split) == (len(sample.points), sample.names, sample.split)
            variants = sorted({v.variant for v in sample.views})
            assert list(store.variants(sample.id)) == variants
            for variant in variants or [0]:
                everything = [(b, variant) for b in range(len(sample.names))]
                got = store.read(sample.id, variant=variant, rule=rule)
                check_read(sample, got, everything, rule, s)
                check_points(sample, got, s.points)
                backwards = everything[::-1]
                got = store.read(sample.id, [b for b, _ in backwards], variant=variant, rule=rule)
                check_read(sample, got, backwards, rule, s)
        check_camera_tables(store, block)


def check_camera_tables(store: FeatureStore, block: BlockSpec):
    receipt = store.manifest.blocks[block.id]
    reader = store.block(receipt)
    views = [v for sample in block.samples for v in sample.views]
    for table, of in (
        ("intrinsics", lambda v: v.camera.intrinsics),
        ("world_to_camera", lambda v: v.camera.world_to_camera),
        ("distortion", lambda v: v.camera.distortion),
        ("image_size", lambda v: (v.camera.height, v.camera.width)),
        ("grid", lambda v: v.grid),
        ("cls", lambda v: v.cls.astype(np.float16)),
        ("view_variant", lambda v: v.variant),
    ):
        stored = reader.array(table).read_all()
        np.testing.assert_array_equal(stored, np.array([of(v) for v in views]).reshape(stored.shape))


@pytest.fixture(scope="module")
def block() -> BlockSpec:
    return random_block(3, samples=2, points=200, views=7, variants=(0, 1, 2))


@pytest.fixture(scope="module")
def store(block, module_path) -> FeatureStore:
    build_store(module_path / "s", [block])
    return open_store(module_path / "s")


S = BlockSettings(8, "float16")


def drawn(got: PointFeatures) -> list[int]:
    """Base views in the order in which their rows come."""
    order = np.argsort(got.features.index[got.view >= 0], kind="stable")
    return list(dict.fromkeys(got.view[got.view >= 0][order].tolist()))


def test_a_draw_of_views_is_without_replacement_and_reproducible(store, block):
    sample = block.samples[0]
    orders = set()
    for seed in range(20):
        first, second = (store.read(sample.id, count=3, seed=seed, rule="last") for _ in range(2))
        np.testing.assert_array_equal(first.features.index, second.features.index)
        views = drawn(first)
        assert len(views) <= 3
        orders.add(tuple(views))
    assert len(orders) > 10


def test_a_drawn_order_decides_what_last_means(store, block):
    sample = block.samples[0]
    for seed in range(10):
        got = store.read(sample.id, count=4, seed=seed, rule="last")
        again = store.read(sample.id, views=range(7), count=4, seed=seed, rule="last")
        np.testing.assert_array_equal(got.view, again.view)
        for rule in ("last", "first"):
            views = _views_of(store, sample.id, seed, 4)
            check_read(sample, store.read(sample.id, count=4, seed=seed, rule=rule), [(v, 0) for v in views], rule, S)


def _views_of(store: FeatureStore, sample_id: str, seed: int, count: int) -> list[int]:
    from ditr_cache.store.choose import Draw, draw_views

    return draw_views(range(len(store.samples[sample_id].view_names)), count, "random", Draw(seed))


@pytest.mark.parametrize("count", [7, 8, 1000])
def test_a_count_above_what_there_is_takes_all(store, block, count):
    sample = block.samples[0]
    got = store.read(sample.id, count=count, seed=1, rule="last")
    assert len(got.features.rows) == sum(len(v.rows) for v in sample.views if v.variant == 0)
    strided = store.read(sample.id, count=count, pick="strided", rule="last")
    check_read(sample, strided, [(v, 0) for v in range(7)], "last", S)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_strided_takes_every_so_many_th(store, block, count):
    step = 7 // count
    views = list(range(0, 7, step))[:count]
    sample = block.samples[1]
    got = store.read(sample.id, count=count, pick="strided", rule="first")
    check_read(sample, got, [(v, 0) for v in views], "first", S)
    picked = store.read(sample.id, views=[6, 5, 4, 3, 2, 1, 0], count=count, pick="strided", rule="first")
    check_read(sample, picked, [(6 - v, 0) for v in views], "first", S)


def test_random_serves_every_seen_point_by_one_of_its_views(store, block):
    sample = block.samples[0]
    seen_by = [
        {v for v in range(7) if point in sample.view(v).hit_point.tolist()} for point in range(len(sample.points))
    ]
    found = [set() for _ in seen_by]
    for seed in range(60):
        got = store.read(sample.id, rule="random", seed=seed)
        for point, view in enumerate(got.view.tolist()):
            assert view in seen_by[point] if seen_by[point] else view == -1
            if view >= 0:
                found[point].add(view)
                spec = sample.view(view)
                row = spec.hit_row[spec.hit_point == point][0]
                np.testing.assert_array_equal(
                    got.features.rows[got.features.index[point]], spec.rows[row].astype(np.float16)
                )
                assert got.patch[point] == spec.row_patch[row]
    assert found == seen_by


def test_variant_random_draws_for_each_view(store, block):
    sample = block.samples[0]
    seen = set()
    for seed in range(20):
        got = store.read(sample.id, rule="last", variant="random", seed=seed)
        for view in drawn(got):
            row = got.features.rows[got.features.index[got.view == view]][0]
            # random_view scales the rows of variant v by 1 + v: 1 to 3, 2 to 6, 3 to 9
            seen.add(round(float(row.min()) / 2))
    assert len(seen) > 1


def test_without_a_seed_draws_differ(store, block):
    sample = block.samples[0].id
    reads = [store.read(sample).features.index.tobytes() for _ in range(4)]
    assert len(set(reads)) > 1


def test_class_tokens_come_in_the_order_of_the_draw_and_only_when_asked_for(tmp_path):
    block = random_block(5, points=30, views=6, variants=(0, 1), cls=True)
    build_store(tmp_path / "s", [block], BlockSettings(8, "float16", class_token=True))
    store, sample = open_store(tmp_path / "s"), block.samples[0]
    assert store.read(sample.id).cls is None
    for seed in range(5):
        got = store.read(sample.id, count=4, seed=seed, variant=1, cls=True)
        expected = [sample.view(v, 1).cls.astype(np.float16) for v in _views_of(store, sample.id, seed, 4)]
        np.testing.assert_array_equal(got.cls, expected)
        assert got.cls.dtype == np.float16
    assert store.read(sample.id, views=[], cls=True).cls.shape == (0, 8)


def test_a_store_without_class_tokens_says_so(store, block):
    with pytest.raises(ConfigError, match=r"no class tokens[^?]*\n.*backbone"):
        store.read(block.samples[0].id, cls=True)


def test_no_views_at_all_is_a_read_of_nothing(store, block):
    got = store.read(block.samples[0].id, views=[])
    assert got.features.rows.shape == (0, 8)
    assert (got.features.index == -1).all()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_views_without_rows_are_legal(tmp_path, dtype):
    rng = np.random.default_rng(0)
    views = tuple(random_view(rng, f"v{i}", 0, 5, 8, False, hits=0 if i != 1 else 3) for i in range(3))
    sample = SampleSpec("s", "train", random_points(rng, 5), views)
    s = BlockSettings(8, dtype)
    build_store(tmp_path / "s", [BlockSpec("b", (sample,)), random_block(1, "none", views=2, points=1)], s)
    assert verify_store(tmp_path / "s").problems == ()
    check_read(sample, open_store(tmp_path / "s").read("s", rule="last"), [(0, 0), (1, 0), (2, 0)], "last", s)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": [7]}, "view 7 of 7"),
        ({"views": [-1]}, "view -1 of 7"),
        ({"count": 0}, "count is 0"),
        ({"pick": "best"}, "pick is 'best'"),
        ({"rule": "mean"}, "rule is 'mean'"),
        ({"variant": 5}, "variant 5"),
        ({"variant": "all"}, "variant 'all'"),
    ],
)
def test_wrong_options_are_named(store, block, options, message):
    with pytest.raises(ConfigError, match=message):
        store.read(block.samples[0].id, **options)


def test_an_unknown_sample_is_named_with_some_that_exist(store):
    with pytest.raises(SampleNotFoundError, match=r"'nope'[^?]*b0/s0") as caught:
        store.read("nope")
    assert isinstance(caught.value, KeyError)


def test_what_the_store_says_of_itself(store, block):
    assert store.identity == IDENTITY
    assert store.provenance == {"b0": {**PROVENANCE, "int8_cosine_error_p99": None}}
    assert store.class_names == DATASET.class_names
    assert len(store.digest) == len(store.version) == 64


def test_a_store_travels_to_another_process(store, block):
    copy = pickle.loads(pickle.dumps(store))
    a, b = (s.read(block.samples[0].id, seed=3) for s in (store, copy))
    np.testing.assert_array_equal(a.features.index, b.features.index)
    assert copy.version == store.version


def test_file_urls_are_folders_and_unknown_kinds_are_refused(store):
    assert open_store(f"file://{store.root}").digest == store.digest
    with pytest.raises(ConfigError, match="nonsense://"):
        open_store("nonsense://bucket/store")


def test_a_version_can_be_pinned(store):
    assert open_store(f"{store.root}@sha256:{store.version}").version == store.version
    with pytest.raises(StoreNotFoundError, match="no version 0000"):
        open_store(f"{store.root}@sha256:{'0' * 64}")
    with pytest.raises(ConfigError, match="64 digits"):
        open_store(f"{store.root}@sha256:abc")


def test_no_store_is_said_so(tmp_path):
    with pytest.raises(StoreNotFoundError, match="no store here"):
        open_store(tmp_path)
    with pytest.raises(StoreNotFoundError, match="no store here"):
        open_store(tmp_path / "absent")
    build_store(tmp_path / "s", [random_block(0)], finalize=False)
    with pytest.raises(StoreNotFoundError, match="ditr-cache finalize"):
        open_store(Path(tmp_path / "s"))
