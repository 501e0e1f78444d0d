# SPDX-License-Identifier: Apache-2.0
"""Regressed against cached features: the number of the training's own evaluation, and pictures that show both."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.datasets.ply import read_vertices
from ditr_cache.errors import CheckpointError, ConfigError
from ditr_cache.pipelines.components import Components
from ditr_cache.pipelines.distill import Distill
from ditr_cache.pipelines.evaluate_distilled import EvaluateDistilled, is_distilled
from ditr_cache.pipelines.extract import Extract
from ditr_cache.pipelines.labelling import LabelOptions
from ditr_cache.training.distill_config import DistillConfig

OPTIONS = LabelOptions(device="cpu", checkpoint="last")


@pytest.fixture(scope="module")
def done(rooms_store, micro, tmp_path_factory):
    run = tmp_path_factory.mktemp("evaluated") / "run"
    return run, Distill([rooms_store], run, load_config(DistillConfig, [micro])).run()


def test_it_is_the_cosine_of_the_last_evaluation(done, rooms_store):
    run, report = done
    assert is_distilled(run)
    found = EvaluateDistilled(run, rooms_store, OPTIONS).run()
    assert found.cosine == pytest.approx(report.cosine, abs=1e-6)
    assert [sample.id for sample in found.samples] == ["room-a-0000-0003"]
    assert 0 < found.samples[0].visible < found.samples[0].voxels
    assert json.loads(json.dumps(found.to_dict()))["pictures"] is None


def test_pictures(done, rooms_store, tmp_path):
    found = EvaluateDistilled(done[0], rooms_store, OPTIONS, pictures=tmp_path / "out").run()
    name = found.samples[0].id
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"{name}-cached.ply",
        f"{name}-predicted.ply",
        f"{name}.png",
    ]
    with Image.open(tmp_path / "out" / f"{name}.png") as picture:
        assert picture.size == (3 * 650 + 10, 34 + 26 + 480 + 10)
        # something is drawn in every panel
        pixels = np.asarray(picture)
    assert all((pixels[60:540, 10 + 650 * i : 640 + 650 * i] < 245).any(-1).mean() > 0.05 for i in range(3))
    cached, predicted = (read_vertices(tmp_path / "out" / f"{name}-{kind}.ply") for kind in ("cached", "predicted"))
    assert len(cached) == len(predicted) == found.samples[0].voxels
    np.testing.assert_array_equal(cached["x"], predicted["x"])
    unseen = (cached["red"] == 205) & (cached["green"] == 205) & (cached["blue"] == 210)
    assert unseen.sum() == pytest.approx(found.samples[0].voxels - found.samples[0].visible, abs=3)


def test_features_that_were_made_otherwise(done, rooms_store, tmp_path):
    assert EvaluateDistilled(done[0], rooms_store, OPTIONS).run().differences == ()
    config = load_config(ExtractConfig, [read_named_yaml("extract", "synthetic")], ["images.size=[28,42]"])
    Extract(open_dataset("synthetic:rooms=2,views=2,val=1", "synthetic"), tmp_path / "store", config).run()
    found = EvaluateDistilled(done[0], tmp_path / "store", OPTIONS).run()
    assert found.differences == ("images.size: the store has [28, 42], asked for [56, 70]",)


def test_refused(done, rooms_store, tmp_path):
    with pytest.raises(ConfigError, match="no classes to sum up"):
        EvaluateDistilled(done[0], rooms_store, LabelOptions(protocol="test"))
    with pytest.raises(ConfigError, match="no sample matches"):
        EvaluateDistilled(done[0], rooms_store, LabelOptions(samples="nothing"))
    with pytest.raises(CheckpointError):
        EvaluateDistilled(tmp_path, rooms_store)
    assert not is_distilled(tmp_path)


def test_same_axes_for_both():
    """A rotation of brightness aside, what is equal in one set is equal in the other."""
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).numpy()
    colour = Components(rows)
    whole = colour.together([rows[:50], rows[50:]])
    np.testing.assert_array_equal(whole, colour(rows))
    np.testing.assert_array_equal(colour.together([0.1 * (rows - rows.mean(0)) + rows.mean(0)]), whole)
