# SPDX-License-Identifier: Apache-2.0
"""What leaves the data set is what the store says, for any draw; and which view serves a point is left to chance."""

import math
import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest
from data_world import blocks, config, dataset, make_store, spec_without

from ditr_cache.errors import ConfigError, SampleError
from ditr_cache.store.choose import Draw as Choice
from ditr_cache.store.choose import draw_views
from ditr_cache.training.data_config import ViewsConfig
from ditr_cache.training.dataset import FeatureStoreDataset, split_samples
from ditr_cache.training.sampler import Draw
from ditr_cache.training.seeding import seed_for


@pytest.fixture(scope="module")
def specs():
    return blocks(2, variants=(0, 1), cls=True)


@pytest.fixture(scope="module", params=["float16", "int8"])
def store(request, specs, tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("stores") / request.param, specs, request.param, class_token=True)


def row_of(spec, view, point, variant=0):
    """The feature as written, float32; None if the view does not see the point."""
    seen = spec.view(view, variant)
    at = np.flatnonzero(seen.hit_point == point)
    return seen.rows[seen.hit_row[at[0]]] if len(at) else None


@pytest.mark.parametrize("rule", ["last", "random"])
def test_every_point_has_the_feature_of_a_drawn_view_that_sees_it(store, specs, rule):
    spec = specs[1].samples[0]
    views = ViewsConfig(count=3, rule=rule)
    data = dataset(store, settings=config(views=views), cls=True)
    for epoch in range(4):
        key = Draw(epoch, 9, spec.id)
        sample, features, cls = data[key]
        drawn = draw_views(range(8), 3, "random", Choice(seed_for(0, "views", epoch, 9, spec.id)))
        np.testing.assert_array_equal(cls, [spec.view(v).cls.astype(np.float16) for v in drawn])
        np.testing.assert_array_equal(features.index, sample.index)
        rows = features.dequantise().rows
        for point, index in zip(sample.point.tolist(), sample.index.tolist(), strict=True):
            seen = [f for v in drawn if (f := row_of(spec, v, point)) is not None]
            if rule == "last":
                seen = seen[-1:]
            if index < 0:
                assert seen == []
            else:
                assert any(np.abs(rows[index] - f).max() < 0.01 for f in seen)
        np.testing.assert_array_equal(sample.segment, spec.points.segments["segment20"][sample.point])


def test_evaluation_takes_strided_views_later_over_earlier_and_ignores_the_seed(store, specs):
    spec = specs[0].samples[0]
    first, second = (dataset(store, "eval", seed)[Draw(seed, 0, spec.id)] for seed in (0, 5))
    np.testing.assert_array_equal(first.sample.index, second.sample.index)
    np.testing.assert_array_equal(first.sample.coord, second.sample.coord)
    raw = dataset(store, "eval", transforms=())[Draw(0, 0, spec.id)]
    np.testing.assert_array_equal(raw.sample.coord, spec.points.coord)
    rows = raw.features.dequantise().rows
    for point, index in enumerate(raw.sample.index.tolist()):
        seen = [f for v in (0, 2, 4, 6) if (f := row_of(spec, v, point)) is not None]
        assert (index < 0) == (not seen)
        if seen:
            np.testing.assert_allclose(rows[index], seen[-1], atol=0.01)


def test_validation_can_go_back_to_every_stored_point(store, specs):
    spec = specs[0].samples[0]
    sample, _, _ = dataset(store, "eval")[Draw(0, 0, spec.id)]
    assert len(sample.inverse) == 400
    assert (sample.inverse >= 0).all()
    np.testing.assert_array_equal(sample.full_segment, spec.points.segments["segment20"])
    assert len(sample) < 400


def test_variants_are_drawn_in_training_only(store, specs):
    # random_view scales the rows of variant 1 by 2: they are above 2, those of variant 0 between 1 and 3
    spec = specs[0].samples[0]
    only = dataset(store, settings=config(views=ViewsConfig(count=None, variants=1)))[Draw(0, 0, spec.id)]
    assert only.features.dequantise().rows.min() > 1.98
    both = dataset(store, settings=config(views=ViewsConfig(count=None, variants="random")))[Draw(0, 0, spec.id)]
    lowest = [both.features.dequantise().rows.min(1) < 1.9]
    assert 0 < np.mean(lowest) < 1
    plain = dataset(store, "eval", settings=config(views=ViewsConfig(variants=1)))[Draw(0, 0, spec.id)]
    assert plain.features.dequantise().rows.min() < 1.9


def test_items_depend_on_seed_and_key_alone(store):
    data = dataset(store)
    keys = [Draw(e, p, s) for e in (0, 1) for p in (0, 1) for s in store.samples]
    found = {key: data[key] for key in keys}
    copy = pickle.loads(pickle.dumps(data))
    for key in reversed(keys):
        again = copy[key]
        np.testing.assert_array_equal(again.sample.coord, found[key].sample.coord)
        np.testing.assert_array_equal(again.sample.index, found[key].sample.index)
        np.testing.assert_array_equal(again.features.rows, found[key].features.rows)
    assert len({item.sample.coord.tobytes() for item in found.values()}) == len(keys)
    assert dataset(store, seed=1)[keys[0]].sample.coord.tobytes() != found[keys[0]].sample.coord.tobytes()


def test_a_network_without_images_sees_the_same_points(store):
    key = Draw(1, 2, next(iter(store.samples)))
    with_images, without = dataset(store)[key], dataset(store, images=False)[key]
    np.testing.assert_array_equal(with_images.sample.coord, without.sample.coord)
    np.testing.assert_array_equal(with_images.sample.color, without.sample.color)
    assert len(without.features.rows) == 0
    assert (without.sample.index == -1).all()


@pytest.fixture(scope="module")
def seen_store(tmp_path_factory):
    """One tiny sample whose eight views see a good part of its points."""
    specs = blocks(1, points=24)
    return make_store(tmp_path_factory.mktemp("seen") / "s", specs), specs[0].samples[0]


def chosen_ranks(store, spec, rule, draws):
    """For every point and number k of drawn views that see it: how often each of them, by ascending number, served."""
    seen = {v: set(spec.view(v).hit_point.tolist()) for v in range(8)}
    data = FeatureStoreDataset(store, (spec.id,), config(views=ViewsConfig(count=5, rule=rule)), "train", transforms=())
    counts = defaultdict(Counter)
    for epoch in range(draws):
        key = Draw(epoch, 0, spec.id)
        index = data[key].sample.index
        drawn = draw_views(range(8), 5, "random", Choice(seed_for(0, "views", epoch, 0, spec.id)))
        starts = np.cumsum([0, *(len(spec.view(v).rows) for v in drawn)])
        which = np.searchsorted(starts, index, "right") - 1
        for point in range(24):
            seeing = sorted(v for v in drawn if point in seen[v])
            if not seeing:
                assert index[point] == -1
                continue
            counts[point, len(seeing)][seeing.index(drawn[which[point]])] += 1
    return counts


def chi_square(counts):
    """The statistic per (point, k), and what it stays below with a probability of 1 - 1e-9 (Laurent and Massart)."""
    for (_, k), ranks in counts.items():
        total = sum(ranks.values())
        if k > 1 and total >= 200:
            t = math.log(1e9)
            limit = (k - 1) + 2 * math.sqrt((k - 1) * t) + 2 * t
            yield sum((ranks[i] - total / k) ** 2 / (total / k) for i in range(k)), limit


@pytest.mark.parametrize("draws", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", ["last", "random"])
def test_the_view_of_a_point_is_uniform_over_the_drawn_views_that_see_it(seen_store, rule, draws):
    """At most 24 x 4 statistics, each above its limit with 1e-9: fails by chance with less than 1e-7."""
    found = list(chi_square(chosen_ranks(*seen_store, rule, draws)))
    assert len(found) > 20
    assert max(statistic - limit for statistic, limit in found) < 0
    # and they are not suspiciously small: something was drawn
    assert np.mean([statistic for statistic, _ in found]) > 0.3


def test_the_chi_square_finds_an_order_that_is_not_random(seen_store):
    store, spec = seen_store
    counts = chosen_ranks(store, spec, "last", 600)
    biased = {
        key: Counter({0: c[0] + c[1] // 2, 1: c[1] - c[1] // 2} | {i: c[i] for i in range(2, key[1])})
        for key, c in counts.items()
    }
    assert max(s - limit for s, limit in chi_square(biased)) > 0


def test_splits(store):
    assert split_samples(store, ["train"]) == ("b0/s0", "b1/s0")
    with pytest.raises(ConfigError, match=r"'val'.*\n.*train \(2\)"):
        split_samples(store, ["train", "val"])


def test_stores_that_lack_something_say_what_they_have(tmp_path):
    bare = make_store(tmp_path / "bare", [spec_without(b, "color", "segments") for b in blocks(1)])
    with pytest.raises(ConfigError, match=r"no color\n.*normal, coord, strength"):
        dataset(bare, labels=False, settings=config(label_set=None))
    plain = config(features=("coord", "strength"), label_set=None)
    with pytest.raises(ConfigError, match="has no labels"):
        dataset(bare, settings=plain)
    assert dataset(bare, labels=False, settings=plain)[Draw(0, 0, "b0/s0")].sample.segment is None
    nothing = make_store(tmp_path / "nothing", blocks(1), points=False)
    with pytest.raises(ConfigError, match=r"no points[^?]*attach STORE SOURCE OUT"):
        dataset(nothing)


@pytest.mark.parametrize(("name", "label"), [("segment", 2), ("segment", -2), ("segment20", -2)])
def test_labels_that_are_no_classes_are_named(tmp_path, name, label):
    """`segment` has two classes; those of `segment20` have no names, so any number may be one."""
    specs = blocks(1)
    specs[0].samples[0].points.segments[name][7] = label
    data = dataset(make_store(tmp_path / "s", specs), settings=config(label_set=name), transforms=())
    with pytest.raises(SampleError, match=rf"^b0/s0: {name} has label {label}; .*, and -1 is none"):
        data[Draw(0, 0, "b0/s0")]


def test_label_sets_are_chosen_or_named(store):
    with pytest.raises(ConfigError, match=r"several[^?]*segment, segment20"):
        dataset(store, settings=config(label_set=None))
    with pytest.raises(ConfigError, match=r"'segment200'[^?]*segment, segment20"):
        dataset(store, settings=config(label_set="segment200"))
    labels = dataset(store, settings=config(label_set="segment"), transforms=())[Draw(0, 0, "b0/s0")].sample.segment
    assert set(labels.tolist()) == {-1, 0, 1}
