# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints come in and go out; what does not fit is listed; nothing in a file is ever run."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import WeightsError
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.models.weights import (
    Mismatch,
    export_official,
    fit,
    initialise,
    load_weights,
    save_official,
    save_weights,
)

NAMES = Path(__file__).resolve().parents[1] / "golden" / "state_dict_names.json"


class Backbone(nn.Module):
    def __init__(self, channels=6, width=4):
        super().__init__()
        self.embedding = nn.ModuleDict({"stem": nn.Linear(channels, width)})
        self.enc = nn.ModuleDict({"norm": nn.BatchNorm1d(width)})


class Net(nn.Module):
    """Named as a Segmentor; small."""

    def __init__(self, classes=3, channels=6, seed=0):
        super().__init__()
        self.backbone = Backbone(channels)
        self.seg_head = nn.Linear(4, classes)
        generator = torch.Generator().manual_seed(seed)
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def official(state, **extra):
    """A checkpoint as Pointcept's trainer leaves it: the best metric is a NumPy number."""
    return {
        "epoch": 7,
        "state_dict": OrderedDict((f"module.{n}", t) for n, t in state.items()),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "scheduler": {"last_epoch": 3, "_schedule_phases": [{"end_step": 4.0, "start_lr": "initial_lr"}]},
        "scaler": {},
        "best_metric_value": np.float64(0.7764),
        **extra,
    }


@pytest.mark.parametrize("metric", [np.float64(0.5), np.float32(0.5), -float("inf"), 0])
def test_an_official_checkpoint_loads(tmp_path, metric):
    source, target = Net(seed=1), Net(seed=2)
    torch.save(official(source.state_dict(), best_metric_value=metric), tmp_path / "model_best.pth")
    report = initialise(target, tmp_path / "model_best.pth")
    assert report.ok
    assert report.fitting == len(source.state_dict())
    assert_same(source.state_dict(), target.state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_prefixes(tmp_path, prefix):
    source = Net(seed=1)
    state = source.backbone.state_dict() if prefix == "module.backbone." else source.state_dict()
    torch.save({prefix + n: t for n, t in state.items()}, tmp_path / "w.pth")
    loaded = load_weights(tmp_path / "w.pth")
    assert set(loaded) <= set(source.state_dict())
    backbone = Backbone()
    assert initialise(backbone, tmp_path / "w.pth").ok
    assert_same(backbone.state_dict(), source.backbone.state_dict())


def test_a_bare_backbone_goes_under_a_head(tmp_path):
    save_weights(Backbone().state_dict(), tmp_path / "w.safetensors")
    report = fit(Net(), load_weights(tmp_path / "w.safetensors"))
    assert report.missing == ("seg_head.weight", "seg_head.bias")
    assert (report.unexpected, report.mismatched) == ((), ())


@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_there_and_back(tmp_path, form):
    source, target = Net(seed=1), Net(seed=2)
    path = tmp_path / f"w.{form}"
    if form == "pth":
        export_official(source, path)
        names = torch.load(path, weights_only=True)["state_dict"]
        assert sorted(names) == sorted(f"module.{n}" for n in source.state_dict())
    else:
        save_weights(source.state_dict(), path)
    assert initialise(target, path).ok
    assert_same(source.state_dict(), target.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_backbone_alone_is_exported_with_its_prefix(tmp_path):
    export_official(Backbone(), tmp_path / "w.pth")
    assert all(n.startswith("module.backbone.") for n in torch.load(tmp_path / "w.pth")["state_dict"])


def test_minkunet_comes_back_under_a_head_and_has_no_official_layout(tmp_path):
    shape = {"stem_channels": 4, "enc_channels": (4,), "enc_depths": (1,), "dec_channels": (4,), "dec_depths": (1,)}
    config = ModelConfig(network="minkunet", minkunet=shape)
    source, target = (Segmentor(config, 3, 5, 6) for _ in range(2))
    save_weights(source.backbone.state_dict(), tmp_path / "w.safetensors")
    assert initialise(target, tmp_path / "w.safetensors", strict=False).missing == ("seg_head.weight", "seg_head.bias")
    assert_same(source.backbone.state_dict(), target.backbone.state_dict())
    for model in (source, source.backbone):
        with pytest.raises(WeightsError, match="weights of MinkUNet have no official layout"):
            export_official(model, tmp_path / "w.pth")


@pytest.mark.parametrize("injection", ["before", "between", "decoder", "after", "cls"])
def test_a_backbone_alone_comes_back_under_a_head_wherever_images_enter(tmp_path, injection):
    config = ModelConfig(
        stride=(2,), enc_depths=(1, 1), enc_channels=(8, 8), enc_num_head=(1, 1), enc_patch_size=(16, 16),
        dec_depths=(1,), dec_channels=(8,), dec_num_head=(1,), dec_patch_size=(16,), injection=injection,
    )  # fmt: skip
    model = Segmentor(config, 3, 5, 4)
    export_official(model.backbone, tmp_path / "w.pth")
    report = fit(model, load_weights(tmp_path / "w.pth"))
    assert report.missing == ("seg_head.weight", "seg_head.bias")
    assert (report.unexpected, report.mismatched) == ((), ())


def test_official_weights_fit_the_full_size_network(tmp_path):
    names = json.loads(NAMES.read_text())["ptv3_indoor"]
    head = {"module.seg_head.weight": torch.zeros(20, 64), "module.seg_head.bias": torch.zeros(20)}
    backbone = {f"module.backbone.{n}": torch.zeros(shape) for n, shape in names.items()}
    torch.save(official({}) | {"state_dict": backbone | head}, tmp_path / "model_best.pth")
    state = load_weights(tmp_path / "model_best.pth")
    assert len(state) == 486 + 2
    with torch.device("meta"):
        plain = Segmentor(ModelConfig(injection="none"), 6, 20)
        ditr = Segmentor(ModelConfig(), 6, 20, 1024)
    assert fit(plain, state).ok
    assert fit(plain.backbone, state).ok
    report = fit(ditr, state)
    assert len(report.missing) == 4 * 7
    assert all(".up.proj_image_feat." in name for name in report.missing)
    assert (report.unexpected, report.mismatched) == ((), ())


def test_what_does_not_fit_is_listed(tmp_path):
    source = Net(classes=5, channels=4)
    state = dict(source.state_dict()) | {"proj.weight": torch.zeros(2, 2)}
    del state["backbone.enc.norm.bias"]
    save_official(state, tmp_path / "w.pth")
    target = Net(seed=3)
    before = {n: t.clone() for n, t in target.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        initialise(target, tmp_path / "w.pth")
    for line in (
        "missing: backbone.enc.norm.bias",
        "unexpected: proj.weight",
        "shape: seg_head.weight is 5x4 in the file, 3x4 in the model",
        "shape: backbone.embedding.stem.weight is 4x4 in the file, 4x6 in the model",
    ):
        assert line in str(caught.value)
    assert_same(before, target.state_dict())

    report = initialise(target, tmp_path / "w.pth", strict=False)
    assert not report.ok
    assert report.mismatched[-1] == Mismatch("seg_head.bias", (3,), (5,))
    assert json.loads(json.dumps(report.to_dict()))["missing"] == ["backbone.enc.norm.bias"]
    after = target.state_dict()
    for name in ("seg_head.weight", "backbone.enc.norm.bias", "backbone.embedding.stem.weight"):
        assert torch.equal(after[name], before[name])
    assert torch.equal(after["backbone.enc.norm.weight"], source.state_dict()["backbone.enc.norm.weight"])


def test_weights_of_something_else_are_refused_even_in_part(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="do not fit"):
        initialise(Net(), tmp_path / "resnet.pth", strict=False)


def test_long_lists_are_cut(tmp_path):
    torch.save({f"w{i}": torch.zeros(1) for i in range(100)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"and \d+ more"):
        initialise(Net(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    "name",
    [
        "student.backbone.enc.enc0.weight",
        "module.student.backbone.embedding.stem.linear.weight",
        "teacher.backbone.mask_token",
        "backbone.embedding.stem.linear.weight",
        "enc.enc0.block0.ls1.gamma",
    ],
)
def test_pt_v3m2_is_named(tmp_path, name):
    torch.save({"state_dict": {name: torch.zeros(2)}}, tmp_path / "sonata.pth")
    with pytest.raises(WeightsError, match="Sonata"):
        load_weights(tmp_path / "sonata.pth")


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    ("value", "name"),
    [(Evil(), "exec"), (np.arange(3), "_reconstruct"), (np.int64(3), "NumPy"), (Path("a"), "pathlib")],
)
def test_objects_are_not_loaded(tmp_path, value, name):
    torch.save(official(Net().state_dict(), x=value), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"Python objects.*{name}"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
def test_damage(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError, match=name):
        load_weights(tmp_path / name)


@pytest.mark.parametrize("value", [{"state_dict": {"a": 1}}, {"epoch": 3}, [torch.zeros(1)], {1: torch.zeros(1)}, {}])
def test_no_state_dict(tmp_path, value):
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        load_weights(tmp_path / "w.pth")


def test_no_file(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        load_weights(tmp_path / "w.pth")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(Net(seed=1).state_dict(), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="meta"):
        save_weights({"a": torch.zeros(1, device="meta")}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
