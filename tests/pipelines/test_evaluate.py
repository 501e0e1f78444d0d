# SPDX-License-Identifier: Apache-2.0
"""From a run and a store to scores and pictures."""

import json
import shutil

import pytest
import torch
import yaml
from PIL import Image

from ditr_cache.config import load_config
from ditr_cache.errors import CheckpointError, ConfigError, IdentityMismatchError, IncompleteStoreError
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.models.weights import initialise
from ditr_cache.pipelines.evaluate import Evaluate
from ditr_cache.pipelines.labelling import LabelOptions
from ditr_cache.pipelines.train import Train
from ditr_cache.store.reader import open_store
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.dataset import FeatureStoreDataset
from ditr_cache.training.inference import Clock, Network
from ditr_cache.training.metrics import VisibilityConfusion
from ditr_cache.training.protocol import PlainPass, TestProtocol
from ditr_cache.training.run_folder import RunFolder
from ditr_cache.training.sampler import Draw


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "store"
    tiny.extract(tiny.rooms(3), folder).run()
    return folder


@pytest.fixture(scope="module")
def run(store, small_network):
    folder = store.with_name("run")
    Train(store, folder, load_config(TrainConfig, [small_network])).run()
    return folder


def evaluate(run, store, pictures=None, **options):
    return Evaluate(run, store, LabelOptions(device="cpu", **options), pictures=pictures).run()


def by_hand(run, store, protocol):
    """The same from its parts."""
    config = load_config(TrainConfig, [RunFolder(run).config()])
    opened = open_store(store)
    model = Segmentor(config.model, config.data.channels, 2, 6)
    checkpoints = RunFolder(run).checkpoints
    initialise(model, checkpoints.find("best").folder / "model.safetensors")
    network = Network(model, config.data.features, "cpu", config.run.seed)
    label = PlainPass(network, config.data.val) if protocol == "plain" else TestProtocol(network, config.data.test)
    data = FeatureStoreDataset(opened, tuple(opened.samples), config.data, "eval", transforms=())
    confusion = VisibilityConfusion(2)
    for name in opened.samples:
        item = data[Draw(0, 0, name)]
        label_N = label(name, item.sample, item.features, None, Clock())
        points = opened.read(name, count=2, pick="strided", rule="last")
        confusion.update(label_N, points.points.segments["segment"], points.features.index >= 0)
    return confusion.scores(("floor", "wall"))


@pytest.mark.parametrize("protocol", ["plain", "test"])
def test_scores(run, store, protocol):
    report = evaluate(run, store, protocol=protocol)
    assert report.scores == by_hand(run, store, protocol)
    assert [c.name for c in report.scores.overall.classes] == ["floor", "wall"]
    assert (report.samples, report.points, report.unlabelled) == (3, 600, ())
    visible, invisible = report.scores.visible.points, report.scores.invisible.points
    assert 0 < visible < report.scores.overall.points == visible + invisible < 600
    assert 0 < report.visible < 600
    cost = report.cost
    if protocol == "plain":
        assert (cost.clouds, cost.copies, cost.fragments, cost.forwards, cost.images) == (3, 3, 3, 3, 6)
    else:
        assert (cost.clouds, cost.copies) == (3, 9)
        assert cost.forwards == cost.fragments > 9
        assert cost.images == 2 * cost.fragments
    assert report.seconds > cost.forward_s > 0
    assert json.loads(json.dumps(report.to_dict()))["scores"]["visible"]["points"] == visible


def test_plain_is_what_training_saw(run, store):
    lines = [json.loads(line) for line in RunFolder(run).log.read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "evaluation"][-1]
    scores = evaluate(run, store, checkpoint="last").scores.overall
    assert last["scores"]["miou"] == pytest.approx(scores.miou, abs=1e-12)
    assert last["scores"]["points"] == scores.points


def test_the_same_every_time(run, store):
    first, second = (evaluate(run, store, protocol="test") for _ in range(2))
    assert first.scores == second.scores


def test_several_fragments_in_a_pass(run, store):
    one, many = (evaluate(run, store, protocol="test", fragments_a_pass=n) for n in (1, 50))
    assert many.cost.fragments == one.cost.fragments
    assert many.cost.forwards == 9
    assert many.scores.overall.allacc == pytest.approx(one.scores.overall.allacc, abs=0.05)


def test_nothing_is_read_twice(run, store, monkeypatch):
    from ditr_cache.store.block_reader import BlockReader

    reads, original = [], BlockReader.read_rows
    monkeypatch.setattr(BlockReader, "read_rows", lambda self, *a, **k: reads.append(1) or original(self, *a, **k))
    report = evaluate(run, store, protocol="test")
    assert report.cost.fragments > 9
    assert len(reads) == 3


def test_some_samples(run, store):
    report = evaluate(run, store, samples="r[12]")
    assert report.samples == 2
    with pytest.raises(ConfigError, match="none of the 3 samples matches"):
        evaluate(run, store, samples="kitchen*")
    with pytest.raises(ConfigError, match="no samples in split 'test'"):
        evaluate(run, store, splits=("test",))


def test_pictures(run, store, tmp_path):
    evaluate(run, store, tmp_path / "seen")
    assert sorted(p.name for p in (tmp_path / "seen").iterdir()) == ["confusion.png", "r0.png", "r1.png", "r2.png"]
    for path in (tmp_path / "seen").iterdir():
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_samples_without_labels_are_named(run, tiny, tmp_path):
    rooms = tiny.rooms(3)
    rooms.blocks["r1"]["r1"].points.segments["segment"][:] = -1
    tiny.extract(rooms, tmp_path / "store").run()
    report = evaluate(run, tmp_path / "store")
    assert report.unlabelled == ("r1",)
    assert report.samples == 3


def test_another_store_is_refused(run, tiny, tmp_path):
    tiny.extract(tiny.rooms(2), tmp_path / "a", "visibility.max_depth=2").run()
    with pytest.raises(IdentityMismatchError, match=r"visibility\.max_depth"):
        evaluate(run, tmp_path / "a")
    other = tiny.rooms(3)
    other.blocks["r1"]["r1"].points.coord[0] += 0.25
    tiny.extract(other, tmp_path / "b").run()
    with pytest.raises(IdentityMismatchError, match="1 sample with other coordinates: r1"):
        evaluate(run, tmp_path / "b")


def test_other_classes_are_refused(run, store, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    began = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**began, "classes": ["wall", "floor"]}))
    with pytest.raises(IdentityMismatchError, match="0: the store has floor, the run has wall"):
        evaluate(other, store)


def test_a_test_protocol_on_other_voxels_is_refused(run, store, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    settings = yaml.safe_load((other / "config.yaml").read_text())
    del settings["data"]["test"]
    (other / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(
        ConfigError, match=r"test protocol has voxels of 0\.02 m, and the network was trained on 0\.2 m"
    ):
        evaluate(other, store, protocol="test")
    assert evaluate(other, store).samples == 3


def test_new_samples_are_welcome(run, tiny, tmp_path):
    tiny.extract(tiny.Rooms({"new": [tiny.room("new")]}), tmp_path / "store").run()
    assert evaluate(run, tmp_path / "store").samples == 1


def test_an_incomplete_store_must_be_allowed(run, tiny, tmp_path):
    tiny.extract(tiny.rooms(3), tmp_path / "store", shard=(0, 3)).run()
    with pytest.raises(IncompleteStoreError):
        evaluate(run, tmp_path / "store")
    assert evaluate(run, tmp_path / "store", allow_incomplete=True).samples == 1


def test_no_run_and_no_checkpoint(run, store, tmp_path):
    with pytest.raises(CheckpointError, match="no run here"):
        evaluate(tmp_path, store)
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match="nothing has been saved"):
        evaluate(tmp_path / "run", store)


def test_a_network_without_images_is_still_told_what_is_visible(store, small_network, tmp_path):
    config = load_config(TrainConfig, [small_network], ["model.injection=none"])
    Train(store, tmp_path / "run", config).run()
    report = evaluate(tmp_path / "run", store)
    assert 0 < report.scores.visible.points < report.scores.overall.points
    assert report.cost.images == 0


def test_torch_keeps_its_own_random_state(run, store):
    before = torch.get_rng_state()
    evaluate(run, store, protocol="test")
    assert torch.equal(before, torch.get_rng_state())
