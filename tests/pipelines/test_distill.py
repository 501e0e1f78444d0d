# SPDX-License-Identifier: Apache-2.0
"""D-DITR on real rooms: what is learned without labels, how it goes on, and how training starts from it."""

import hashlib
import json
import threading

import pytest
import torch

from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.errors import CheckpointError, ConfigError, IdentityMismatchError, TrainingError, WeightsError
from ditr_cache.pipelines.distill import Distill
from ditr_cache.pipelines.evaluate import Evaluate
from ditr_cache.pipelines.evaluate_distilled import EvaluateDistilled
from ditr_cache.pipelines.extract import Extract
from ditr_cache.pipelines.labelling import LabelOptions
from ditr_cache.pipelines.train import Train
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.dataset import FeatureStoreDataset
from ditr_cache.training.distill_config import DistillConfig
from ditr_cache.training.distilled import load_distilled
from ditr_cache.training.run_folder import RunFolder
from ditr_cache.training.sampler import Draw
from ditr_cache.training.tracking import Nobody


def _config(micro, *settings):
    return load_config(DistillConfig, [micro], settings)


def _distill(stores, run, micro, *settings, **options):
    stores = stores if isinstance(stores, list) else [stores]
    return Distill(stores, run, _config(micro, *settings), **options).run()


def _weights(run):
    return RunFolder(run).checkpoints.find("last").weights()


def _log(run):
    return [json.loads(line) for line in RunFolder(run).log.read_text().splitlines()]


def _plain(config, *settings):
    return load_config(TrainConfig, [config, {"model": {"injection": "none"}}], settings)


@pytest.fixture(scope="module")
def other_store(tmp_path_factory):
    """Other rooms, with features of the same ViT: do not write to it."""
    folder = tmp_path_factory.mktemp("other") / "store"
    settings = ["images.size=[56,70]", "run.threads=2", "run.batch_size=8"]
    config = load_config(ExtractConfig, [read_named_yaml("extract", "synthetic")], settings)
    Extract(open_dataset("synthetic:rooms=3,views=3,val=1,seed=9", "synthetic"), folder, config).run()
    return folder


@pytest.fixture(scope="module")
def done(rooms_store, micro, tmp_path_factory):
    """A finished run and its report: do not write to it."""
    run = tmp_path_factory.mktemp("distill") / "run"
    return run, _distill(rooms_store, run, micro, "run.epochs=6", "optim.lr=0.02")


@pytest.fixture(scope="module")
def both(rooms_store, other_store, micro, tmp_path_factory):
    """Two stores with norm layers and heads of their own."""
    run = tmp_path_factory.mktemp("both") / "run"
    settings = ["distill.names=[ours,theirs]", "distill.separate_heads=true", "run.epochs=1"]
    return run, _distill([rooms_store, other_store], run, micro, *settings)


def test_it_learns(done):
    _, report = done
    losses = [line["loss"] for line in _log(done[0]) if line["kind"] == "step"]
    assert losses[0] > 0.9
    assert sum(losses[-4:]) / 4 < losses[0] - 0.2
    evaluations = [line["scores"]["cosine"] for line in _log(done[0]) if line["kind"] == "evaluation"]
    assert evaluations[-1] == pytest.approx(report.cosine)
    assert evaluations[-1] > evaluations[0]
    assert (report.step, report.total, report.names, report.samples) == (24, 24, ("synthetic",), (3,))


def test_labels_are_not_looked_at(rooms_store, micro, tmp_path, monkeypatch):
    from ditr_cache.pipelines import distill
    from ditr_cache.store.reader import open_store

    tasks, of = [], distill.DistillTask.of
    monkeypatch.setattr(distill.DistillTask, "of", lambda *args: tasks.append(of(*args)) or tasks[-1])
    _distill(rooms_store, tmp_path / "run", micro, "run.epochs=1")
    (source,) = tasks[0].sources
    assert (source.train.label_set, source.val.label_set) == (None, None)
    store = open_store(rooms_store)
    config = _config(micro).data
    found = FeatureStoreDataset(store, [next(iter(store.samples))], config, "train", labels=None)
    assert found.label_set is None
    assert found[Draw(0, 0, found.sample_ids[0])].sample.segment is None


def test_killed_and_resumed_it_is_the_unbroken_run(rooms_store, micro, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _distill(rooms_store, whole, micro)

    class Stop(Nobody):
        def __init__(self):
            self.pipeline = None

        def step(self, report):
            if report.step in (2, 5):
                self.pipeline.request_stop()

    steps = []
    for _ in range(3):
        stop = Stop()
        stop.pipeline = Distill([rooms_store], parts, _config(micro), resume=True, tracker=stop)
        steps.append(stop.pipeline.run().step)
    assert steps == [2, 5, 8]
    for name, tensor in _weights(whole).items():
        assert torch.equal(tensor, _weights(parts)[name]), name


def test_training_starts_from_it(done, rooms_store, micro, tmp_path):
    """All of the backbone, and a head of its own."""
    run, _ = done
    Train(rooms_store, tmp_path / "run", _plain(micro, f"init.distilled={run}", "optim.lr=1e-12")).run()
    before, after = _weights(run), _weights(tmp_path / "run")
    names = [n for n in before if n.startswith("backbone.") and before[n].is_floating_point() and "running" not in n]
    assert len(names) > 20
    assert all(n in after for n in names)
    for name in names:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    assert not any(n.startswith("proj.") for n in after)
    assert "seg_head.weight" in after


def test_a_network_that_diverges_stops(rooms_store, micro, tmp_path):
    with pytest.raises(TrainingError, match="the loss is nan"):
        _distill(rooms_store, tmp_path / "run", micro, "optim.lr=1e20", "run.log_every=1")


def test_what_is_shared_and_not_evaluated_is_said(rooms_store, other_store, micro, tmp_path):
    notes = []

    class Listener(Nobody):
        def note(self, text):
            notes.append(text)

    for names in ([], ["distill.names=[ours,theirs]"]):
        config = _config(micro, "data.val_splits=[nope]", *names)
        Distill([rooms_store, other_store], tmp_path / "run", config, tracker=Listener()).estimate()
    assert notes == [
        "several stores are called synthetic and share norm layers: name them apart with distill.names",
        "the stores have no split nope: nothing is evaluated",
        "the stores have no split nope: nothing is evaluated",
    ]


def test_a_run_keeps_what_it_started_from(done, rooms_store, micro, tmp_path):
    run, report = done
    Train(rooms_store, tmp_path / "run", _plain(micro, f"init.distilled={run}", "run.epochs=1")).run()
    kept = RunFolder(tmp_path / "run").run()["init"]
    weights = RunFolder(run).checkpoints.find("last").folder / "model.safetensors"
    assert kept["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (kept["run"], kept["step"]) == (str(run), 24)
    assert kept["stores"] == [{"name": "synthetic", "digest": report.digests[0]}]


def test_one_that_is_not_finished_is_said(done, rooms_store, micro, tmp_path):
    notes = []

    class Listener(Nobody):
        def step(self, report):
            if report.step == 3:
                pipeline.request_stop()

        def note(self, text):
            notes.append(text)

    listener, parts = Listener(), tmp_path / "parts"
    pipeline = Distill([rooms_store], parts, _config(micro), tracker=listener)
    assert pipeline.run().interrupted
    for start in (done[0], parts):
        config = _plain(micro, f"init.distilled={start}", "run.epochs=1")
        Train(rooms_store, tmp_path / f"from-{start.name}", config, tracker=listener).run()
    assert notes == [f"{parts} is not finished: training starts from its step 3 of 8"]
    kept = RunFolder(tmp_path / "from-parts").run()["init"]
    assert (kept["step"], kept["total"]) == (3, 8)


def test_estimate_writes_nothing(rooms_store, other_store, micro, tmp_path):
    config = _config(micro, "distill.names=[ours,theirs]", "run.epochs=3")
    found = Distill([rooms_store, other_store], tmp_path / "run", config).estimate()
    assert (found.names, found.samples, found.val_samples) == (("ours", "theirs"), (3, 2), (1, 1))
    done = Distill([rooms_store, other_store], tmp_path / "done", config).run()
    assert (found.steps, found.parameters, found.image_channels) == (done.total, done.parameters, done.image_channels)
    assert found.points > 0 < found.rows
    assert found.seconds > found.evaluation_s > 0
    assert not (tmp_path / "run").exists()


def test_it_starts_from_weights_in_a_file(done, rooms_store, micro, tmp_path):
    weights = RunFolder(done[0]).checkpoints.find("last").folder / "model.safetensors"
    _distill(rooms_store, tmp_path / "run", micro, f"run.weights={weights}", "optim.lr=1e-12", "run.epochs=1")
    before, after = _weights(done[0]), _weights(tmp_path / "run")
    torch.testing.assert_close(after["proj.0.weight"], before["proj.0.weight"], rtol=0, atol=1e-6)


def test_ditr_can_start_from_it_too(done, rooms_store, micro, tmp_path):
    """With images injected; the layers that do it are drawn."""
    config = load_config(TrainConfig, [micro], [f"init.distilled={done[0]}"])
    assert config.model.injection == "decoder"
    assert Train(rooms_store, tmp_path / "run", config).run().step == 8


def test_a_started_run_goes_on_without_the_distillation(done, rooms_store, micro, tmp_path):
    config = _plain(micro, f"init.distilled={done[0]}")
    stop = threading.Event()

    class Stop(Nobody):
        def step(self, report):
            stop.set()
            pipeline.request_stop()

    pipeline = Train(rooms_store, tmp_path / "run", config, tracker=Stop())
    assert pipeline.run().interrupted
    assert stop.is_set()
    assert Train(rooms_store, tmp_path / "run", config, resume=True).run().step == 8


def test_two_stores(both):
    run, report = both
    assert (report.names, report.samples) == (("ours", "theirs"), (3, 2))
    # nine draws and six, two a step
    assert report.total == 4 + 3
    weights = _weights(run)
    assert weights["proj.0.weight"].shape == weights["proj.1.weight"].shape
    first = {n: t for n, t in weights.items() if ".norm.0." in n and n.endswith("running_mean")}
    assert first
    assert any(not torch.equal(t, weights[n.replace(".norm.0.", ".norm.1.")]) for n, t in first.items())


def test_norm_layers_are_chosen_by_name(both, rooms_store, micro, tmp_path):
    run, _ = both
    with pytest.raises(ConfigError, match="no store of the distillation is called 'synthetic'"):
        Train(rooms_store, tmp_path / "unclear", _plain(micro, f"init.distilled={run}")).run()
    states = {name: load_distilled(run).model.plain_backbone(name) for name in ("ours", "theirs")}
    assert states["ours"].keys() == states["theirs"].keys()
    for name in states:
        into = tmp_path / name
        settings = [f"init.distilled={run}", f"init.norms={name}", "optim.lr=1e-12", "run.epochs=1"]
        Train(rooms_store, into, _plain(micro, *settings)).run()
        found = _weights(into)
        for key, tensor in states[name].items():
            if tensor.is_floating_point() and "running" not in key:
                torch.testing.assert_close(found[f"backbone.{key}"], tensor, rtol=0, atol=1e-6)


def test_norm_layers_that_are_not_there(done, rooms_store, micro, tmp_path):
    with pytest.raises(ConfigError, match="no store of the distillation is called 'nuscenes'"):
        Train(rooms_store, tmp_path / "run", _plain(micro, f"init.distilled={done[0]}", "init.norms=nuscenes")).run()
    with pytest.raises(ConfigError, match=r"init\.distilled is not given"):
        _plain(micro, "init.norms=synthetic")


def test_two_stores_of_one_name_share_all(rooms_store, other_store, micro, tmp_path):
    report = _distill([rooms_store, other_store], tmp_path / "run", micro, "run.epochs=1")
    assert report.names == ("synthetic", "synthetic")
    assert not any(".norm.1." in name and "running" in name for name in _weights(tmp_path / "run"))


def test_weights_of_stores(rooms_store, other_store, micro, tmp_path):
    report = _distill([rooms_store, other_store], tmp_path / "run", micro, "run.epochs=1", "distill.weights=[1,2]")
    assert report.total == 4 + 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["distill.names=[a,b]"], "2 names for 1 stores"),
        (["distill.weights=[1,2]"], "2 weights for 1 stores"),
        (["data.train_splits=[nowhere]"], "no samples in split 'nowhere'"),
    ],
)
def test_settings_that_do_not_fit(rooms_store, micro, tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words):
        _distill(rooms_store, tmp_path / "run", micro, *settings)


@pytest.mark.parametrize(
    "settings", [["model.injection=decoder"], ["model.norm_conditions=[a]"], ["data.annotations=points.npz"]]
)
def test_impossible_settings(micro, settings):
    with pytest.raises(ConfigError):
        _config(micro, *settings)


def test_features_of_another_network(rooms_store, micro, tiny, tiny_vit, tmp_path):
    capture = tiny.write_capture(tmp_path / "capture", scenes=2, views=3, points=200)
    settings = [f"backbone.weights={tiny_vit}", "images.size=[28,42]", "visibility.depth_margin=null"]
    Extract(open_dataset(capture), tmp_path / "store", load_config(ExtractConfig, [], settings)).run()
    with pytest.raises(IdentityMismatchError, match="features are of another network"):
        _distill([rooms_store, tmp_path / "store"], tmp_path / "run", micro, "data.features=[coord]")
    with pytest.raises(IdentityMismatchError, match="not the features that were regressed"):
        EvaluateDistilled(_one(rooms_store, tmp_path, micro), tmp_path / "store", LabelOptions(splits=("train",)))
    # each with a regression of its own width
    settings = ["data.features=[coord]", "distill.separate_heads=true", "distill.names=[a,b]", "run.epochs=1"]
    report = _distill([rooms_store, tmp_path / "store"], tmp_path / "both", micro, *settings)
    assert report.image_channels == (192, 32)
    weights = _weights(tmp_path / "both")
    assert [len(weights[f"proj.{i}.weight"]) for i in range(2)] == [192, 32]
    assert load_distilled(tmp_path / "both").names == ("a", "b")


def _one(store, folder, micro):
    _distill(store, folder / "one", micro, "data.features=[coord]", "run.epochs=1")
    return folder / "one"


def test_other_runs_are_refused(done, rooms_store, micro, tmp_path):
    run, _ = done
    with pytest.raises(CheckpointError, match="a run of `distill`, not of `train`"):
        Train(rooms_store, run, _plain(micro), resume=True).run()
    with pytest.raises(CheckpointError, match="a run of `distill`, not of `train`"):
        Evaluate(run, rooms_store)
    Train(rooms_store, tmp_path / "train", _plain(micro, "run.epochs=1")).run()
    with pytest.raises(CheckpointError, match="no run here"):
        load_distilled(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="a run of `train`, not of `distill`"):
        load_distilled(tmp_path / "train")


def test_a_network_of_another_kind_does_not_start_from_it(done, rooms_store, micro, tmp_path):
    config = _plain(micro, f"init.distilled={done[0]}", "model.network=minkunet")
    with pytest.raises(WeightsError, match="the distilled network is a ptv3, the settings are of a minkunet"):
        Train(rooms_store, tmp_path / "run", config).run()


def test_another_network_does_not_start_from_it(done, rooms_store, micro, tmp_path):
    with pytest.raises(WeightsError, match="the distilled network is another one"):
        Train(
            rooms_store,
            tmp_path / "run",
            _plain(micro, f"init.distilled={done[0]}", "model.dec_channels=[32]", "model.dec_num_head=[2]"),
        ).run()
    with pytest.raises(ConfigError, match="the distilled network is shown color, normal"):
        Train(rooms_store, tmp_path / "run2", _plain(micro, f"init.distilled={done[0]}", "data.features=[color]")).run()


def test_a_store_that_has_changed_is_not_gone_on_with(done, other_store, micro):
    with pytest.raises((IdentityMismatchError, CheckpointError)):
        _distill(other_store, done[0], micro, "run.epochs=6", "optim.lr=0.02", resume=True)
