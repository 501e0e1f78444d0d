# SPDX-License-Identifier: Apache-2.0
"""MinkUNet in place of Point Transformer V3: it learns, goes on, and is evaluated like it."""

import json
import shutil

import pytest
import torch
import yaml

from ditr_cache.config import load_config
from ditr_cache.errors import CheckpointError
from ditr_cache.pipelines.evaluate import Evaluate
from ditr_cache.pipelines.labelling import LabelOptions
from ditr_cache.pipelines.train import Train
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.run_folder import RunFolder
from ditr_cache.training.tracking import Nobody

MINKUNET = {
    "network": "minkunet",
    "sparse_conv": "torch",
    "minkunet": {
        "stem_channels": 8,
        "stem_kernel": 3,
        "enc_channels": [8, 16],
        "enc_depths": [1, 1],
        "dec_channels": [16, 16],
        "dec_depths": [1, 1],
    },
}


def _train(store, run, micro, *settings, tracker=None, **options):
    config = load_config(TrainConfig, [micro, {"model": MINKUNET}], settings)
    return Train(store, run, config, tracker=tracker, **options)


def _losses(run):
    lines = [json.loads(line) for line in RunFolder(run).log.read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


@pytest.fixture(scope="module")
def done(rooms_store, micro, tmp_path_factory):
    """A finished run: do not write to it."""
    run = tmp_path_factory.mktemp("minkunet") / "run"
    _train(rooms_store, run, micro).run()
    return run


@pytest.mark.parametrize("injection", ["decoder", "none"])
def test_it_learns(injection, rooms_store, micro, tmp_path):
    settings = ["run.epochs=10", "run.eval_every=10", "optim.lr=0.01", f"model.injection={injection}"]
    _train(rooms_store, tmp_path / "run", micro, *settings).run()
    losses = _losses(tmp_path / "run")
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


class StopAfter(Nobody):
    """Asks a run to stop when a step is done."""

    def __init__(self, step):
        self.at, self.run = step, None

    def step(self, report):
        if report.step == self.at:
            self.run.request_stop()


def test_stopped_and_resumed_is_unbroken(done, rooms_store, micro, tmp_path):
    ear = StopAfter(5)
    ear.run = _train(rooms_store, tmp_path / "run", micro, tracker=ear)
    assert ear.run.run().interrupted
    second = _train(rooms_store, tmp_path / "run", micro, resume=True).run()
    assert (second.resumed_at, second.step) == (5, 8)
    assert _losses(tmp_path / "run") == _losses(done)
    mine, other = (RunFolder(folder).checkpoints.find("last").weights() for folder in (tmp_path / "run", done))
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.parametrize("protocol", ["plain", "test"])
def test_it_is_evaluated(protocol, done, rooms_store, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(done, run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"]["network"] == "minkunet"
    voxelize = [{"kind": "grid_sample", "grid_size": 0.1, "keep": "all"}]
    settings["data"]["test"] |= {"rotations": [0, 1], "scales": [1], "flip": "none", "voxelize": voxelize}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    report = Evaluate(run, rooms_store, LabelOptions(device="cpu", protocol=protocol)).run()
    assert report.scores.overall.points > 0


def test_another_network_is_refused_on_resume(done, rooms_store, micro):
    with pytest.raises(CheckpointError, match=r'model\.network: the run has "minkunet", asked for "ptv3"'):
        _train(rooms_store, done, micro, "model.network=ptv3", resume=True).run()


def test_runs_from_before_there_was_a_choice(rooms_store, micro, tmp_path):
    """Their settings do not name a network: it is Point Transformer V3."""
    config = load_config(TrainConfig, [micro])
    Train(rooms_store, tmp_path / "run", config).run()
    path = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    for section, names in (("model", ("network", "minkunet")), ("data", ("scenes", "annotations"))):
        for name in names:
            del settings[section][name]
    path.write_text(yaml.safe_dump(settings))
    entry = json.loads((tmp_path / "run" / "run.json").read_text())
    del entry["limits"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(entry))
    assert Train(rooms_store, tmp_path / "run", config, resume=True).run().step == 8
    assert Evaluate(tmp_path / "run", rooms_store, LabelOptions(device="cpu")).run()
