# SPDX-License-Identifier: Apache-2.0
"""Stage two on real rooms: what a run leaves behind, what it refuses, and that no ViT is involved."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

from ditr_cache.config import config_names, load_config, read_named_yaml
from ditr_cache.errors import (
    CheckpointError,
    ConfigError,
    IdentityMismatchError,
    IncompleteStoreError,
    StoreNotFoundError,
    TrainingError,
    WeightsError,
)
from ditr_cache.pipelines.train import Train
from ditr_cache.store.reader import open_store
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.run_folder import RunFolder
from ditr_cache.training.tracking import Nobody


def _config(micro, *settings):
    return load_config(TrainConfig, [micro], settings)


def _train(store, run, micro, *settings, **options):
    return Train(store, run, _config(micro, *settings), **options).run()


def _log(run):
    return [json.loads(line) for line in RunFolder(run).log.read_text().splitlines()]


@pytest.fixture(scope="module")
def done(rooms_store, micro, tmp_path_factory):
    """A finished run and its report: do not write to it."""
    run = tmp_path_factory.mktemp("train") / "run"
    return run, _train(rooms_store, run, micro)


def test_report(done, rooms_store):
    run, report = done
    assert (report.steps, report.step, report.total, report.epochs) == (8, 8, 8, 2)
    assert (report.samples, report.val_samples, report.label_set) == (3, 1, "segment")
    assert (report.run, report.device, report.processes) == (str(run), "cpu", 1)
    assert report.digest == open_store(rooms_store).digest
    assert not report.interrupted
    assert report.resumed_at is None
    assert report.last.points > 0
    assert 0 < report.step_s < report.seconds
    assert json.loads(json.dumps(report.to_dict()))["last"]["classes"][0]["name"] == "floor"


def test_run_folder(done, rooms_store, micro):
    run, report = done
    assert load_config(TrainConfig, [yaml.safe_load((run / "config.yaml").read_text())]) == _config(micro)
    entry = json.loads((run / "run.json").read_text())
    store = open_store(rooms_store)
    assert entry["store"]["identity"] == store.identity
    assert entry["store"]["digest"] == store.digest
    assert entry["classes"] == list(store.class_names["segment"])
    assert entry["starts"][0]["torch"] == torch.__version__
    assert json.loads((run / "samples.json").read_text()) == {s.id: s.coord_sha256 for s in store.samples.values()}
    last, best = (RunFolder(run).checkpoints.find(which) for which in ("last", "best"))
    assert (last.step, best.step) == (8, report.best_step)
    assert not any(name.startswith("module.") for name in last.weights())
    assert "seg_head.weight" in last.weights()


def test_log(done):
    lines = _log(done[0])
    steps = [line for line in lines if line["kind"] == "step"]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert [(line["step"], line["epoch"]) for line in evaluations] == [(4, 0), (8, 1)]
    assert steps[-1]["lr"] < steps[1]["lr"]
    assert all(0 < line["points"] <= 800 for line in steps)


def test_it_learns(rooms_store, micro, tmp_path):
    _train(rooms_store, tmp_path / "run", micro, "run.epochs=10", "run.eval_every=10", "optim.lr=0.01")
    losses = [line["loss"] for line in _log(tmp_path / "run") if line["kind"] == "step"]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_nothing_random_is_left_to_chance(done, rooms_store, micro, tmp_path):
    torch.rand(7)  # global state does not matter
    _train(rooms_store, tmp_path / "run", micro, "run.workers=1")
    assert [line["loss"] for line in _log(tmp_path / "run") if line["kind"] == "step"] == [
        line["loss"] for line in _log(done[0]) if line["kind"] == "step"
    ]
    other = _train(rooms_store, tmp_path / "other", micro, "run.seed=1")
    assert other.loss != done[1].loss


class StopAfter(Nobody):
    """Asks a run to stop when a step is done; remembers what it was told."""

    def __init__(self, step):
        self.at, self.run, self.notes = step, None, []

    def step(self, report):
        if report.step == self.at:
            self.run.request_stop()

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("step", [1, 4, 5])
def test_stopped_and_resumed_is_unbroken(step, done, rooms_store, micro, tmp_path):
    """Also where the stop comes between an epoch's last step and its evaluation."""
    ear = StopAfter(step)
    ear.run = Train(rooms_store, tmp_path / "run", _config(micro), tracker=ear)
    first = ear.run.run()
    assert first.interrupted
    assert first.step == step
    second = _train(rooms_store, tmp_path / "run", micro, resume=True)
    assert (second.resumed_at, second.step, second.interrupted) == (step, 8, False)
    _assert_same_run(tmp_path / "run", done[0])
    again = _train(rooms_store, tmp_path / "run", micro, resume=True)
    assert (again.steps, again.best_miou) == (0, done[1].best_miou)


def _assert_same_run(run, reference):
    timeless = [
        [{k: v for k, v in line.items() if k not in ("data_s", "step_s", "seconds")} for line in _log(folder)]
        for folder in (run, reference)
    ]
    assert timeless[0] == timeless[1]
    for which in ("last", "best"):
        mine, other = (RunFolder(folder).checkpoints.find(which) for folder in (run, reference))
        assert mine.step == other.step
        for name, tensor in other.weights().items():
            assert torch.equal(mine.weights()[name], tensor), name
    states = [RunFolder(folder).checkpoints.find("last").state() for folder in (run, reference)]
    for mine, other in zip(*(s["optimizer"]["state"].values() for s in states), strict=True):
        assert all(torch.equal(mine[key], other[key]) for key in other)


def test_a_run_is_not_written_over(done, rooms_store, micro):
    with pytest.raises(TrainingError, match=r"there is a run in this folder\nGo on with it: --resume\. Or name a new"):
        _train(rooms_store, done[0], micro)


def test_other_folders_are_left_alone(rooms_store, micro, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(TrainingError, match=r"holds no run \(it holds cat\.jpg\)"):
        _train(rooms_store, tmp_path / "photos", micro, resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="this is a file"):
        _train(rooms_store, tmp_path / "file", micro)


def test_other_settings_are_refused_on_resume(done, rooms_store, micro):
    with pytest.raises(CheckpointError) as error:
        _train(rooms_store, done[0], micro, "optim.lr=0.1", "data.mix_prob=0", "run.workers=1", resume=True)
    assert "optim.lr: the run has 0.006, asked for 0.1" in error.value.what
    assert "data.mix_prob: the run has 0.5, asked for 0" in error.value.what
    assert "run.workers" not in error.value.what


def test_one_process_at_a_time(rooms_store, micro, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    code = f"""
import fcntl, sys
with open({str(folder.path / ".lock")!r}, "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(TrainingError, match="another process is training in this folder"):
            _train(rooms_store, folder.path, micro)
        other.communicate("")


def test_a_store_of_another_identity_is_refused(rooms_store, micro, tmp_path):
    expected = ["store.identity.backbone.dim=1024", "store.identity.images.size=[420,560]", "store.digest=abc"]
    with pytest.raises(IdentityMismatchError) as error:
        _train(rooms_store, tmp_path / "run", micro, *expected)
    assert "backbone.dim: the store has 192, asked for 1024" in error.value.what
    assert "images.size: the store has [56, 70], asked for [420, 560]" in error.value.what
    assert "content digest: the store has " in error.value.what
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_run_goes_on_with_its_own_store_only(done, micro, tiny, tmp_path):
    run = shutil.copytree(done[0], tmp_path / "run")
    tiny.extract(tiny.rooms(3), tmp_path / "store").run()
    with pytest.raises(IdentityMismatchError, match=r"backbone\.dim: the store has 6, asked for 192"):
        _train(tmp_path / "store", run, micro, resume=True)


def test_moved_points_are_refused(done, rooms_store, micro, tmp_path):
    run = shutil.copytree(done[0], tmp_path / "run")
    samples = json.loads((run / "samples.json").read_text())
    first, second, *_ = samples
    samples[first] = "0" * 64
    samples["gone"] = samples.pop(second)
    (run / "samples.json").write_text(json.dumps(samples))
    with pytest.raises(IdentityMismatchError) as error:
        _train(rooms_store, run, micro, resume=True)
    assert f"1 sample with other coordinates: {first}" in error.value.what
    assert "1 sample missing: gone" in error.value.what
    assert f"1 sample new: {second}" in error.value.what


def test_other_classes_are_refused(done, rooms_store, micro, tmp_path):
    run = shutil.copytree(done[0], tmp_path / "run")
    entry = json.loads((run / "run.json").read_text())
    entry["classes"][0] = "ceiling"
    (run / "run.json").write_text(json.dumps(entry))
    with pytest.raises(IdentityMismatchError, match="0: the store has floor, the run has ceiling"):
        _train(rooms_store, run, micro, resume=True)


def test_coordinates_can_be_asked_for(done, rooms_store, micro, tmp_path):
    digest = json.loads((done[0] / "run.json").read_text())["store"]["coordinates"]
    Train(rooms_store, tmp_path / "run", _config(micro, f"store.coordinates={digest}")).estimate()
    with pytest.raises(IdentityMismatchError, match="digest of the coordinates"):
        Train(rooms_store, tmp_path / "run", _config(micro, "store.coordinates=abc")).estimate()


def test_incomplete_stores_are_refused(tiny, small_network, tmp_path):
    store, run = tmp_path / "store", tmp_path / "run"
    tiny.extract(tiny.rooms(3), store, shard=(0, 2)).run()
    with pytest.raises(IncompleteStoreError, match=r"1 of 3 planned blocks are not there\n.*--allow-incomplete"):
        _train(store, run, small_network)
    assert _train(store, run, small_network, allow_incomplete=True).samples == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.label_set=segment200", "the store has no labels 'segment200'"),
        ("data.train_splits=[test]", "no samples in split 'test'"),
        ("data.features=[strength]", "the store has no strength"),
        ("run.batch_size=100", "an epoch has 9 draws"),
        ("loss.class_weights=[1,2]", "2 weights for 14 classes"),
        ("model.norm_conditions=[scannet]", "synthetic, has no norm layers"),
        ("data.val=[{kind: grid_sample, grid_size: 0.1}, {kind: normalize_color}]", "lose points"),
    ],
)
def test_settings_that_do_not_fit_the_store(setting, message, rooms_store, micro, tmp_path):
    with pytest.raises(ConfigError, match=message):
        _train(rooms_store, tmp_path / "run", micro, setting)


def test_no_store(micro, tmp_path):
    with pytest.raises(StoreNotFoundError):
        _train(tmp_path / "nowhere", tmp_path / "run", micro)


def test_without_validation_split(rooms_store, micro, tmp_path):
    ear = StopAfter(None)
    report = _train(rooms_store, tmp_path / "run", micro, "data.val_splits=[test]", tracker=ear)
    assert ear.notes == ["the store has no split test: nothing is evaluated"]
    assert (report.val_samples, report.best_miou, report.last) == (0, None, None)
    assert RunFolder(tmp_path / "run").checkpoints.find("last").step == 8


def test_weights_to_start_from(done, rooms_store, micro, tmp_path):
    file = RunFolder(done[0]).checkpoints.find("last").folder / "model.safetensors"
    report = _train(rooms_store, tmp_path / "run", micro, f"run.weights={file}", "run.epochs=1", "optim.lr=1e-9")
    assert report.last.miou == pytest.approx(done[1].last.miou, abs=0.02)
    with pytest.raises(WeightsError):
        _train(rooms_store, tmp_path / "other", micro, f"run.weights={file}", "model.injection=none")
    loose = ["model.injection=none", "run.strict_weights=false", "run.epochs=1"]
    assert _train(rooms_store, tmp_path / "loose", micro, f"run.weights={file}", *loose).steps == 4


def test_a_loss_that_is_not_finite_ends_the_run(rooms_store, micro, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is nan at step [0-9]+ or .*\nLower the learning rate"):
        _train(rooms_store, tmp_path / "run", micro, "optim.lr=1e30", "optim.block_lr_factor=1")


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_narrow_types(amp, rooms_store, micro, tmp_path):
    report = _train(
        rooms_store, tmp_path / "run", micro, f"run.amp={amp}", "run.deterministic=false", "optim.clip_grad=1"
    )
    losses = [line for line in _log(tmp_path / "run") if line["kind"] == "step"]
    assert report.step == 8
    # the first scale of float16 overflows, which is how a lower one is found
    assert [line["grad_norm"] is None for line in losses].count(True) == (report.skipped if amp == "fp16" else 0)
    assert (losses[0]["scale"] is None) == (amp == "bf16")


def test_estimate_writes_nothing(rooms_store, micro, tmp_path):
    estimate = Train(rooms_store, tmp_path / "run", _config(micro)).estimate()
    assert (estimate.samples, estimate.val_samples, estimate.steps_per_epoch, estimate.steps) == (3, 1, 4, 8)
    assert 0 < estimate.rows < estimate.points <= 800
    assert min(estimate.data_s, estimate.step_s, estimate.evaluation_s, estimate.seconds) > 0
    assert estimate.memory_bytes > 1e8
    assert not (tmp_path / "run").exists()


def test_no_vit_is_reachable(rooms_store, micro, tmp_path):
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(micro))
    code = f"""
import json, sys
from pathlib import Path
from ditr_cache.config import load_config, read_named_yaml
from ditr_cache.pipelines.train import Train
from ditr_cache.training.config import TrainConfig
config = load_config(TrainConfig, [read_named_yaml("train", {str(tmp_path / "micro.yaml")!r})], ["run.epochs=1"])
assert Train(Path({str(rooms_store)!r}), Path({str(tmp_path / "run")!r}), config).run().steps == 4
print(json.dumps([name for name in sys.modules if name.startswith(("transformers", "ditr_cache.backbones"))]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == []


@pytest.mark.parametrize("name", config_names("train"))
def test_installed_settings(name):
    config = load_config(TrainConfig, [read_named_yaml("train", name)])
    assert config.data.grid_size < 0.1
    others = {"tiny": "synthetic", "scannet200": "scannet", "scannet_minkunet": "scannet", "s3dis_finetune": "s3dis"}
    assert config.store.identity["dataset"]["name"] == others.get(name, name)


def test_official_fine_tuning():
    """Reference, 3.7: 300 passes; the head at 6e-3, the backbone at 6e-4, its blocks at 6e-5."""
    config = load_config(TrainConfig, [read_named_yaml("train", "s3dis_finetune")])
    o = config.optim
    rates = (o.lr, o.lr * o.backbone_lr_factor, o.lr * o.block_lr_factor)
    assert rates == pytest.approx((6e-3, 6e-4, 6e-5))
    assert config.run.epochs * config.data.loop == 300
    assert len(config.data.test.augmentations()) == 10
    assert config.model.injection == "none"


def test_official_numbers():
    """reference table of the recipes: learning rate, decay, warm-up, last rate, epochs, loop, grid, classes."""
    expected = {
        "scannet": (6e-3, 0.05, 0.05, 1000, 100, 8, 0.02, "segment20", 13),
        "scannet200": (6e-3, 0.05, 0.05, 1000, 100, 8, 0.02, "segment200", 13),
        "nuscenes": (2e-3, 0.005, 0.04, 100, 50, 1, 0.05, "segment", 10),
        "semantic_kitti": (2e-3, 0.005, 0.04, 100, 50, 1, 0.05, "segment", 4),
    }
    for name, numbers in expected.items():
        c = load_config(TrainConfig, [read_named_yaml("train", name)])
        o, d = c.optim, c.data
        found = (o.lr, o.weight_decay, o.pct_start, o.final_div_factor, c.run.epochs, d.loop, d.grid_size, d.label_set)
        assert (*found, len(d.test.augmentations())) == numbers, name
        assert (c.run.batch_size, d.mix_prob, o.block_lr_factor, o.div_factor) == (12, 0.8, 0.1, 10)
        assert c.model == TrainConfig().model


def test_class_weights_of_semantic_kitti():
    weights = load_config(TrainConfig, [read_named_yaml("train", "semantic_kitti")]).loss.class_weights
    assert weights == (
        *(3.1557, 8.7029, 7.8281, 6.1354, 6.3161, 7.9937, 8.9704, 10.1922, 1.6155, 4.2187),
        *(1.9385, 5.5455, 2.0198, 2.6261, 1.3212, 5.1102, 2.5492, 5.8585, 7.3929),
    )


TURN = {"kind": "random_rotate", "axis": "z", "angle": [-1, 1], "center": [0, 0, 0], "p": 0.5}
TILT = {"kind": "random_rotate", "angle": [-1 / 64, 1 / 64], "p": 0.5}
SCALE = {"kind": "random_scale", "scale": [0.9, 1.1], "anisotropic": False}
FLIP = {"kind": "random_flip", "p": 0.5}
JITTER = {"kind": "random_jitter", "sigma": 0.005, "clip": 0.02}
STRENGTH = {"kind": "scale_strength", "divisor": 255}
BOX = {"kind": "point_clip", "point_cloud_range": [-35.2, -35.2, -4, 35.2, 35.2, 2]}
SCANNET = [
    {"kind": "center_shift", "apply_z": True},
    {"kind": "random_dropout", "dropout_ratio": 0.2, "dropout_application_ratio": 0.2},
    TURN,
    {**TILT, "axis": "x"},
    {**TILT, "axis": "y"},
    SCALE,
    FLIP,
    JITTER,
    {"kind": "elastic_distortion", "distortion_params": [[0.2, 0.4], [0.8, 1.6]], "p": 0.95},
    {"kind": "chromatic_auto_contrast", "p": 0.2, "blend_factor": None},
    {"kind": "chromatic_translation", "p": 0.95, "ratio": 0.05},
    {"kind": "chromatic_jitter", "p": 0.95, "std": 0.05},
    {"kind": "grid_sample", "grid_size": 0.02, "keep": "random"},
    {"kind": "sphere_crop", "point_max": 102_400, "mode": "random"},
    {"kind": "center_shift", "apply_z": False},
    {"kind": "normalize_color"},
]
VOXELS = {"kind": "grid_sample", "grid_size": 0.05, "keep": "random"}


@pytest.mark.parametrize(
    ("name", "train", "thinned", "before"),
    [
        ("scannet", SCANNET, None, ["center_shift", "normalize_color"]),
        ("scannet200", SCANNET, None, ["center_shift", "normalize_color"]),
        ("nuscenes", [STRENGTH, TURN, SCALE, FLIP, JITTER, VOXELS], 0.025, ["scale_strength", "grid_sample"]),
        ("semantic_kitti", [TURN, BOX, SCALE, FLIP, JITTER, VOXELS], 0.01, ["point_clip", "grid_sample"]),
    ],
)
def test_official_transforms(name, train, thinned, before):
    data = load_config(TrainConfig, [read_named_yaml("train", name)]).data.model_dump(mode="json")
    assert len(data["train"]) == len(train)
    for found, wanted in zip(data["train"], train, strict=True):
        assert {key: found[key] for key in wanted} == wanted
    test = data["test"]
    assert [t["kind"] for t in test["before"]] == before
    assert thinned is None or test["before"][-1]["grid_size"] == thinned
    assert test["voxelize"] == [{"kind": "grid_sample", "grid_size": data["val"][1]["grid_size"], "keep": "all"}]
