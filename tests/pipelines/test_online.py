# SPDX-License-Identifier: Apache-2.0
"""The ViT in every step sees what extraction saw: with the same variants it gives the store's own features."""

import numpy as np
import pytest

from ditr_cache.config import ExtractConfig, ImagesConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.errors import ConfigError, IdentityMismatchError
from ditr_cache.pipelines import online
from ditr_cache.pipelines.experiment import Experiment
from ditr_cache.pipelines.extract import Extract
from ditr_cache.pipelines.online import OnlineDataset, OnlineTrain, backbone_of
from ditr_cache.store.reader import open_store
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.dataset import FeatureStoreDataset
from ditr_cache.training.sampler import Draw

SOURCE = "synthetic:rooms=4,views=3,val=1"


@pytest.fixture(scope="module")
def flipped_store(tmp_path_factory):
    """The rooms of `rooms_store` with mirrored and jittered images beside the plain ones: do not write to it."""
    folder = tmp_path_factory.mktemp("flipped") / "store"
    settings = ["images.size=[56,70]", "run.threads=2", "variants.flip=true", "variants.jitter=1"]
    config = load_config(ExtractConfig, [read_named_yaml("extract", "synthetic")], settings)
    Extract(open_dataset(SOURCE, "synthetic"), folder, config).run()
    return folder


@pytest.fixture(scope="module")
def parts(flipped_store):
    store = open_store(flipped_store)
    return store, backbone_of(store.identity, None, "cpu"), open_dataset(SOURCE, "synthetic")


def dataset(parts, micro, settings=()):
    store, backbone, source = parts
    data = load_config(TrainConfig, [micro], settings).data
    cached = FeatureStoreDataset(store, [next(iter(store.samples))], data, "train")
    return cached, OnlineDataset(cached, source, backbone, ImagesConfig(size=(56, 70), filter="bilinear-antialias"))


@pytest.mark.parametrize("variant", [0, 1, 2, 3])
def test_same_variants_same_features(parts, micro, monkeypatch, variant):
    cached, anew = dataset(parts, micro, [f"data.views.variants={variant}", "data.views.rule=last"])
    plain, seen = dataset(parts, micro, ["data.views.rule=last"])
    key = Draw(0, 0, cached.sample_ids[0])
    monkeypatch.setattr(online, "draw_variant", lambda _: variant)
    wanted, found = cached.read(key), seen.read(key)
    visible = wanted.features.index >= 0
    np.testing.assert_array_equal(found.features.index >= 0, visible)
    assert visible.sum() > 100
    np.testing.assert_allclose(found.features.dense(), wanted.features.dense(), atol=2e-3)
    assert (variant == 0) == np.allclose(plain.read(key).features.dense(), wanted.features.dense(), atol=2e-3)
    assert anew.sample_ids == cached.sample_ids


def test_every_visit_is_drawn_anew_and_the_same_again(parts, micro):
    _, seen = dataset(parts, micro)
    name = seen.sample_ids[0]
    first, second = (seen.read(Draw(epoch, 0, name)).features for epoch in range(2))
    again = seen.read(Draw(0, 0, name)).features
    np.testing.assert_array_equal(first.rows, again.rows)
    assert first.rows.shape != second.rows.shape or not np.array_equal(first.rows, second.rows)


def test_refused(parts, rooms_store, micro, tmp_path):
    store, backbone, source = parts
    for settings, words in ((["model.injection=none"], "needs no ViT"), (["run.workers=2"], "no others prepare data")):
        with pytest.raises(ConfigError, match=words):
            OnlineTrain(source, backbone, rooms_store, tmp_path / "run", load_config(TrainConfig, [micro], settings))
    changed = {**store.identity, "backbone": {**store.identity["backbone"], "weights_sha256": "0" * 64}}
    with pytest.raises(IdentityMismatchError, match="not the ViT that made the store"):
        backbone_of(changed, None, "cpu")


def test_experiment(rooms_store, flipped_store, micro, tmp_path):
    settings = ["run.epochs=1", "data.loop=1"]
    stores, source = [rooms_store, flipped_store], open_dataset(SOURCE, "synthetic")
    report = Experiment("online", stores, tmp_path / "out", [micro], settings, seeds=[0], source=source).run()
    assert report.failures == {}
    assert [row.label for row in report.rows] == [
        "cached, plain images",
        "cached, 4 variants (mirrored and jittered)",
        "ViT in every step, mirrored and jittered anew",
    ]
    with pytest.raises(ConfigError, match="needs the images"):
        Experiment("online", stores, tmp_path / "other", [micro], settings)
    for other in ("synthetic:rooms=3,views=3,val=1", "synthetic:rooms=4,views=2,val=1"):
        images = open_dataset(other, "synthetic")
        with pytest.raises(ConfigError, match=r"no images of|lacks images of"):
            Experiment("online", stores, tmp_path / "other", [micro], settings, source=images)
    elsewhere = open_dataset("synthetic:rooms=4,views=4,val=1", "synthetic")
    with pytest.raises(ConfigError, match="its camera is another one"):
        Experiment("online", stores, tmp_path / "other", [micro], settings, source=elsewhere)
    with pytest.raises(ConfigError, match="no image variants"):
        Experiment("online", stores[::-1], tmp_path / "other", [micro], settings, source=source)
    smaller = load_config(
        ExtractConfig, [read_named_yaml("extract", "synthetic")], ["images.size=[28,42]", "variants.flip=true"]
    )
    Extract(source, tmp_path / "smaller", smaller).run()
    with pytest.raises(IdentityMismatchError, match=r"images.size: the store has \[28, 42\]"):
        Experiment("online", [rooms_store, tmp_path / "smaller"], tmp_path / "other", [micro], settings, source=source)
    with pytest.raises(ConfigError, match="runs no ViT"):
        Experiment("dtype", [rooms_store], tmp_path / "other", [micro], settings, weights=tmp_path)
    with pytest.raises(ConfigError, match="needs no images"):
        Experiment("dtype", [rooms_store], tmp_path / "other", [micro], settings, source=source)
