# SPDX-License-Identifier: Apache-2.0
"""Training on some scenes, or on the labels of some points: only that, noted down, and the same when it goes on."""

import json

import numpy as np
import pytest

from ditr_cache.config import load_config
from ditr_cache.errors import CheckpointError, ConfigError
from ditr_cache.pipelines.evaluate import Evaluate
from ditr_cache.pipelines.labelling import LabelOptions
from ditr_cache.pipelines.train import Train
from ditr_cache.store.reader import open_store
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.dataset import split_samples


def _train(store, run, micro, resume=False, **data):
    settings = {"data": {name: str(path) for name, path in data.items()}}
    return Train(store, run, load_config(TrainConfig, [micro, settings]), resume=resume).run()


@pytest.fixture(scope="module")
def samples(rooms_store):
    with open_store(rooms_store) as store:
        return {name: store.samples[name].points for name in split_samples(store, ["train"])}


@pytest.fixture
def scenes(samples, tmp_path):
    path = tmp_path / "scenes.txt"
    path.write_text("\n".join(list(samples)[:2]))
    return path


@pytest.fixture
def points(samples, tmp_path):
    """Twenty of every sample."""
    path = tmp_path / "points20.npz"
    np.savez(path, **{name: np.linspace(0, n - 1, 20).astype(int) for name, n in samples.items()})
    return path


def test_both_at_once(scenes, points, rooms_store, micro, tmp_path):
    report = _train(rooms_store, tmp_path / "run", micro, scenes=scenes, annotations=points)
    assert (report.samples, report.val_samples) == (2, 1)
    limits = json.loads((tmp_path / "run" / "run.json").read_text())["limits"]
    assert set(limits) == {"scenes", "annotations"}
    # all of the validation scene counts, with the files or without
    evaluated = Evaluate(tmp_path / "run", rooms_store, LabelOptions(device="cpu")).run().scores.overall.points
    scenes.unlink()
    points.unlink()
    assert Evaluate(tmp_path / "run", rooms_store, LabelOptions(device="cpu")).run().scores.overall.points == evaluated
    assert evaluated > 1000


def test_fewer_labels_give_another_network(points, rooms_store, micro, tmp_path):
    some, every = (
        _train(rooms_store, tmp_path / name, micro, **data)
        for name, data in (("some", {"annotations": points}), ("every", {}))
    )
    assert np.isfinite(some.loss)
    assert some.loss != every.loss


def test_the_files_must_not_change_meanwhile(scenes, points, samples, rooms_store, micro, tmp_path):
    files = {"scenes": scenes, "annotations": points}
    _train(rooms_store, tmp_path / "run", micro, **files)
    scenes.write_text(scenes.read_text() + "\n\n")
    assert _train(rooms_store, tmp_path / "run", micro, resume=True, **files).steps == 0
    np.savez(points, **{name: np.arange(5) for name in samples})
    with pytest.raises(CheckpointError, match=r"the file of data\.annotations no longer says what it said"):
        _train(rooms_store, tmp_path / "run", micro, resume=True, **files)
    scenes.write_text("\n".join(samples))
    with pytest.raises(CheckpointError, match=r"the file of data\.annotations and that of data\.scenes no longer"):
        _train(rooms_store, tmp_path / "run", micro, resume=True, **files)


def test_scenes_of_another_data_set(scenes, rooms_store, micro, tmp_path):
    scenes.write_text("scene0000_00\n")
    with pytest.raises(ConfigError, match="names scene0000_00, and no training sample is called so"):
        _train(rooms_store, tmp_path / "run", micro, scenes=scenes)
    assert not (tmp_path / "run" / "config.yaml").exists()
