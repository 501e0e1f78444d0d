# SPDX-License-Identifier: Apache-2.0
"""`Probe`: finds what features say of labels, nothing where they say nothing, and refuses what makes no sense."""

import dataclasses
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_world import CLASSES, DIM, IDENTITY, make
from store_builder import tree_digest

from ditr_cache.errors import ConfigError, SampleError, StoreNotFoundError
from ditr_cache.pipelines.probe import Probe
from ditr_cache.pipelines.probe_methods import STEPS
from ditr_cache.pipelines.probe_picture import probe_picture
from ditr_cache.pipelines.probe_points import draw_points, evenly
from ditr_cache.pipelines.probe_sides import ProbeOptions
from ditr_cache.store.reader import open_store


class Counts:
    """Adds up what it is told."""

    def __init__(self):
        self.total = self.done = self.ended = 0

    def begin(self, images):
        self.total = images

    def advance(self, images):
        self.done += images

    def note(self, text):
        raise AssertionError(text)

    def end(self):
        self.ended += 1


def probe(store, progress=None, **options):
    return Probe(store, ProbeOptions(device="cpu", **options), progress=progress).run()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make(tmp_path_factory.mktemp("probe") / "store")


def plain(report):
    """Without the times, which differ."""
    values = report.to_dict()
    del values["seconds"]
    for method in values["methods"]:
        del method["seconds"]
    return values


def test_features_made_of_labels_are_perfect(store):
    progress, before = Counts(), tree_digest(store)
    report = probe(store, progress, count=2)
    assert [(m.input, m.method, m.channels) for m in report.methods] == [
        ("features", "linear", DIM),
        ("features", "neighbours", DIM),
        ("points", "linear", 6),
        ("points", "neighbours", 6),
        ("both", "linear", DIM + 6),
    ]
    features, points = (*report.methods[:2], report.methods[4]), report.methods[2:4]
    assert [m.scores.miou for m in features] == [pytest.approx(1)] * 3
    assert all(m.scores.allacc < 0.4 for m in points)
    assert (report.label_set, report.plain, report.untrained) == ("segment20", ("coord", "color"), ())
    assert [c.name for c in report.methods[0].scores.classes] == list("0123")
    assert (progress.total, progress.done, progress.ended) == (6 + STEPS, 6 + STEPS, 1)
    assert (report.random_weights, report.missing_blocks) == (False, 0)
    assert tree_digest(store) == before
    assert json.loads(json.dumps(report.to_dict()))["options"]["count"] == 2


def test_shuffled_labels_are_chance(tmp_path):
    report = probe(make(tmp_path / "store", points=1500, shuffled=True))
    n = report.val.drawn
    for method in report.methods:
        assert abs(method.scores.allacc - 1 / CLASSES) < 5 * (0.25 * 0.75 / n) ** 0.5


def test_only_seen_points_with_labels_are_drawn(store):
    opened = open_store(store)
    report = probe(store, count=2, rule="last")
    for split, drawn in (("train", report.train), ("val", report.val)):
        ids = [i.id for i in opened.samples.values() if i.split == split]
        reads = [opened.read(i, count=2, pick="strided", rule="last") for i in ids]
        fit = [(r.features.index >= 0) & (r.points.segments["segment20"] >= 0) for r in reads]
        assert drawn.drawn == sum(f.sum() for f in fit)
        assert drawn.seen == sum((r.features.index >= 0).sum() for r in reads)
        assert (drawn.samples, drawn.points) == (len(ids), 300 * len(ids))
    few = probe(store, points=50, samples=1)
    assert (few.train.samples, few.train.drawn, few.val.drawn) == (1, 50, 50)


def test_consistency(store, tmp_path):
    close = probe(make(tmp_path / "close", noise=0.0)).consistency
    assert close.same.mean == pytest.approx(1, abs=1e-3)
    assert close.same.p05 == pytest.approx(1, abs=1e-3)
    # a fourth of the pairs of two points is of one class
    assert close.random.mean < 0.6
    assert close.separation > 0.8
    far = probe(make(tmp_path / "far", noise=50.0)).consistency
    assert abs(far.separation - 0.5) < 0.06
    assert far.same.mean < close.same.mean
    # those of the validation side that two different draws of a view were made for
    assert 0 < close.same.pairs < 2 * 300


def test_one_view_has_nothing_to_be_consistent_with(tmp_path):
    report = probe(make(tmp_path / "store", views=1))
    assert report.consistency is None
    assert report.methods[0].scores.miou == pytest.approx(1)


def test_the_same_each_time_and_other_points_for_another_seed(store):
    a, b, c = (probe(store, points=100, seed=seed) for seed in (0, 0, 1))
    assert plain(a) == plain(b)
    assert a.consistency != c.consistency


def test_int8_features_are_decoded(store, tmp_path):
    a, b = probe(store), probe(make(tmp_path / "int8", dtype="int8"))
    assert b.dtype == "int8"
    assert b.methods[0].scores.miou == pytest.approx(1)
    assert b.consistency.same.mean == pytest.approx(a.consistency.same.mean, abs=1e-3)


def test_views_can_be_compared_alone(tmp_path):
    for name, options in (("bare", {"stored": False}), ("plain", {"labelled": False}), ("labels", {"val": 0})):
        report = probe(make(tmp_path / name, **options), consistency_only=True, samples=3)
        assert (report.methods, report.train, report.val.samples) == ((), None, 3)
        assert report.consistency.separation > 0.8
        assert report.to_dict()["label_set"] is None


def test_classes_without_training_points_are_named(store):
    report = probe(store, points=4, samples=4, seed=3)
    told = {c.name for c in report.methods[0].scores.classes if c.points}
    assert set(report.untrained) <= told
    assert report.methods[0].scores.miou < 1 or report.untrained == ()


def test_refused(store, tmp_path):
    with pytest.raises(StoreNotFoundError):
        probe(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no samples in split 'test'") as error:
        probe(store, val=("test",))
    assert "Splits of the store: train (4), val (2). Name them with --train and --val" in error.value.hint
    with pytest.raises(ConfigError, match="4 samples are on both sides, s0 among them"):
        probe(store, val=("train",))
    with pytest.raises(ConfigError, match="no labels 'segment200'"):
        probe(store, label_set="segment200")
    with pytest.raises(ConfigError, match="no labels") as error:
        probe(make(tmp_path / "unlabelled", labelled=False))
    assert "--consistency-only" in error.value.hint
    with pytest.raises(ConfigError, match="no points, and so no labels") as error:
        probe(make(tmp_path / "bare", stored=False))
    assert "attach" in error.value.hint
    with pytest.raises(ConfigError, match="has no samples"):
        probe(make(tmp_path / "empty", train=0, val=0), consistency_only=True)
    with pytest.raises(ConfigError, match="no point of split train has a label"):
        probe(make(tmp_path / "blind", views=0))


def test_labels_that_are_no_classes(store, monkeypatch):
    names = {"segment20": ("a", "b")}
    monkeypatch.setattr("ditr_cache.store.reader.FeatureStore.class_names", property(lambda self: names))
    with pytest.raises(SampleError, match="label 3, which is no class"):
        probe(store)


def test_an_unfinished_store_is_probed_as_far_as_it_is(store, tmp_path):
    from ditr_cache.store.writer import StoreWriter

    folder = shutil.copytree(store, tmp_path / "part")
    next(folder.glob("receipts/b5.*")).unlink()
    StoreWriter(folder).finalize()
    report = probe(folder)
    assert (report.missing_blocks, report.val.samples) == (1, 1)


def test_picture(store):
    report = probe(store)
    image = np.asarray(probe_picture(report))
    assert image.shape[2] == 3
    colours = {tuple(c) for c in image.reshape(-1, 3)}
    assert {(8, 48, 107), (66, 146, 198), (127, 59, 8), (224, 150, 66)} <= colours
    alone = dataclasses.replace(report, methods=report.methods[:2])
    assert np.asarray(probe_picture(alone)).shape[0] < image.shape[0]


def test_random_weights_are_marked(tmp_path):
    identity = IDENTITY | {"backbone": {"name": "noise", "random_seed": 7}}
    assert probe(make(tmp_path / "store", identity=identity)).random_weights


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    count=st.integers(0, 90),
    balanced=st.booleans(),
    seed=st.integers(0, 99),
)
def test_draws(labels, count, balanced, seed):
    label_N = np.array(labels, np.int32)
    point_M = np.arange(0, len(labels), 1 + seed % 3)
    found = draw_points(point_M, label_N if balanced else None, count, np.random.default_rng(seed))
    assert all(a < b for a, b in pairwise(found.tolist()))
    assert set(found.tolist()) <= set(point_M.tolist())
    assert len(found) == min(count, len(point_M))
    if balanced and len(found) < len(point_M):
        have, got = (np.bincount(label_N[p], minlength=6) for p in (point_M, found))
        short = got < have
        # whoever did not give all it had gave as much as any other, give or take one
        assert got.max() - got[short].min() <= 1


@given(n=st.integers(1, 50), most=st.one_of(st.none(), st.integers(1, 60)))
def test_evenly(n, most):
    ids = [str(i) for i in range(n)]
    some = [int(i) for i in evenly(ids, most)]
    assert len(some) == (n if most is None else min(n, most))
    assert some[0] == 0
    gaps = {b - a for a, b in pairwise(some)}
    assert not gaps or max(gaps) - min(gaps) <= 1
