# SPDX-License-Identifier: Apache-2.0
"""`ModelBench`: the networks see the same features, what is measured is what is said, and nothing else is loaded."""

import mmap
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.backbones.base import PatchMaps
from ditr_cache.config import load_config
from ditr_cache.errors import ConfigError
from ditr_cache.pipelines import bench_memory
from ditr_cache.pipelines.bench_arms import Arm, ArmSettings
from ditr_cache.pipelines.bench_memory import _measure, measure_memory
from ditr_cache.pipelines.bench_model import ModelBench, Quartiles
from ditr_cache.pipelines.bench_scenes import generated_scene, stored_scenes
from ditr_cache.pipelines.bench_vit import choose_vit
from ditr_cache.store.choose import Draw as Choice
from ditr_cache.store.choose import draw_views
from ditr_cache.store.reader import open_store
from ditr_cache.training.config import TrainConfig
from ditr_cache.types import FactoredFeatures


class Given:
    """A ViT that was told its features."""

    def __init__(self, rows_PD, views):
        self.rows, self.seen = rows_PD.unflatten(0, (views, -1)), 0

    def __call__(self, images):
        first, self.seen = self.seen, (self.seen + len(images)) % len(self.rows)
        return PatchMaps(self.rows[first : first + len(images)], None)


@pytest.fixture
def config(micro):
    return load_config(TrainConfig, [micro])


@pytest.fixture
def scene(config):
    return generated_scene(400, 2, 16, 14, config.data.channels)


def arm(name, config, scene, vit=None):
    return Arm(ArmSettings(name, config, scene.classes, scene.cached.rows.shape[1], "cpu"), vit)


@settings(max_examples=30, deadline=None)
@given(points=st.integers(5, 3000), views=st.integers(1, 3))
def test_a_hall_has_as_many_points_as_were_asked_for(points, views):
    scene = generated_scene(points, views, 4, 14, 6)
    voxel = scene.batch.grid_coord
    assert len(voxel) == len(scene.batch.feat) == len(scene.patch_N) == points
    assert len(voxel.unique(dim=0)) == points
    assert voxel.min() >= 0
    assert scene.patch_N.max() < views * 30 * 40
    assert [tuple(i.shape) for i in scene.images] == [(views, 3, 420, 560)]
    assert (scene.views, scene.batch.offset.tolist()) == (views, [points])
    # both ways see the same points, and tell the same ones apart
    index = scene.cached.index
    assert torch.equal(index >= 0, scene.patch_N >= 0)
    assert len({*zip(index.tolist(), scene.patch_N.tolist(), strict=True)}) == len(set(index.tolist()))
    assert int(index.max()) == len(scene.cached.rows) - 1


def test_a_tenth_of_a_hall_is_unseen():
    scene = generated_scene(20_000, 10, 4, 14, 6)
    assert abs((scene.patch_N < 0).double().mean() - 0.1) < 0.02
    assert 20 < 20_000 / len(scene.cached.rows) < 35


def test_the_online_lookup_finds_what_the_store_has(rooms_store, config):
    with open_store(rooms_store) as store:
        ids = list(store.samples)[:2]
        scenes = stored_scenes(store, ids, config, 14)
        for sample_id, scene in zip(ids, scenes, strict=True):
            count = config.data.views.evaluation_count
            read = store.read(sample_id, count=count, pick="strided", rule="last", seed=0)
            views = draw_views(range(3), count, "strided", Choice(0))
            (height, width), rows = store.grid(sample_id, 0), read.features.rows
            maps = np.zeros((len(views), height * width, rows.shape[1]), np.float16)
            seen = read.view >= 0
            place = np.searchsorted(views, read.view[seen]), read.patch[seen]
            maps[place] = rows[read.features.index[seen]]
            patch, index = scene.patch_N.numpy(), scene.cached.index.numpy()
            np.testing.assert_array_equal(patch >= 0, index >= 0)
            found = maps.reshape(-1, rows.shape[1])[patch[patch >= 0]]
            np.testing.assert_array_equal(found, scene.cached.rows.numpy()[index[index >= 0]])
            assert [tuple(i.shape) for i in scene.images] == [(len(views), 3, height * 14, width * 14)]
            assert scene.read_s > 0
            assert scene.classes == len(store.class_names["segment"])


def test_cached_and_online_are_one_network(config, scene):
    """Given the features that the store has, the ViT's place in it changes nothing."""
    maps = torch.zeros(2 * 30 * 40, 16)
    seen = scene.patch_N >= 0
    maps[scene.patch_N[seen]] = scene.cached.rows.float()[scene.cached.index[seen].long()]
    cached, online = arm("cached", config, scene), arm("online", config, scene, Given(maps, 2))
    torch.testing.assert_close(cached.infer(scene), online.infer(scene), atol=2e-5, rtol=1e-4)
    before = {name: value.clone() for name, value in online.model.state_dict().items()}
    cached.train(scene)
    online.train(scene)
    assert any(not torch.equal(value, before[name]) for name, value in online.model.state_dict().items())
    assert len(online.vit_s) == 2
    assert cached.vit_s == []
    plain = arm("ptv3", config, scene)
    assert plain.parameters < cached.parameters == online.parameters
    assert plain.infer(scene).shape == (400, scene.classes)
    plain.train(scene)


def test_int8_rows_are_decoded(config, scene):
    rows = torch.randint(-128, 128, (len(scene.cached.rows), 16), dtype=torch.int8)
    affine, view = torch.ones(1, 2, 16), torch.zeros(len(rows), dtype=torch.int32)
    cached = replace(scene, cached=FactoredFeatures(rows, scene.cached.index, affine, view))
    other = arm("cached", config, scene)
    assert torch.isfinite(other.infer(cached)).all()
    other.train(cached)
    assert cached.bytes("cached") < scene.bytes("cached")


def test_report(rooms_store, config):
    class Counts:
        total = done = 0

        def begin(self, images):
            self.total = images

        def advance(self, images):
            self.done += images

        def end(self):
            pass

    progress = Counts()
    vit = choose_vit(None, None, open_store(rooms_store).identity["backbone"], "fp32", cuda=False)
    report = ModelBench(config, vit, rooms_store, samples=2, rounds=1, memory=False, progress=progress).run()
    assert (report.vit, report.vit_why, report.random_weights) == ("rooms-vit-tiny", "that of the store", False)
    assert (report.samples, report.views, report.dim) == (("room-a-0000-0000", "room-a-0000-0002"), 3, 192)
    assert report.images == ((56, 70),)
    assert list(report.networks) == ["ptv3", "cached", "online"]
    assert report.networks["ptv3"].training_ratio == Quartiles(1, 1, 1)
    for network in report.networks.values():
        assert 0 < network.training_s.q1 <= network.training_s.median <= network.training_s.q3
        assert network.memory is None
    assert report.networks["online"].vit_s > 0
    assert report.read_s > 0
    assert set(report.online_over_cached) == {"training", "inference"}
    # training and inference, three networks, both clouds twice: the first call of each is not measured
    assert progress.total == progress.done == 2 * 3 * 2 * 2
    assert (report.network, report.rounds) == ("ptv3", 2)
    assert report.to_dict()["paper"]["inference_ms"] == {"ptv3": 41, "online": 76}


def test_without_a_store(config):
    vit = choose_vit("rooms-vit-tiny", None, None, "fp32", cuda=False)
    report = ModelBench(config, vit, points=200, rounds=1, memory=False).run()
    assert (report.store, report.samples, report.points, report.read_s) == (None, (), 200, None)


def test_refused(rooms_store, config):
    vit = choose_vit("rooms-vit-tiny", None, None, "fp32", cuda=False)
    for injection in ("none", "cls"):
        other = config.model_copy(update={"model": config.model.model_copy(update={"injection": injection})})
        with pytest.raises(ConfigError, match="takes no patch features"):
            ModelBench(other, vit)
    with pytest.raises(ConfigError, match="have 192 channels, and those of dinov2-small have 384"):
        ModelBench(config, choose_vit("dinov2-small", None, None, "fp32", cuda=False), rooms_store, memory=False).run()


def test_memory_is_measured_in_another_process(config, scene):
    settings_ = ArmSettings("cached", config, scene.classes, 16, "cpu")
    peaks = measure_memory(settings_, scene, None)
    there = arm("cached", config, scene)
    assert peaks.training >= peaks.inference >= there.weight_bytes + scene.bytes("cached")
    assert peaks.training < 1 << 30


def test_memory_of_the_online_network(config, scene, tiny_vit):
    choice = choose_vit(None, tiny_vit, None, "fp32", cuda=False)
    scene = generated_scene(400, 2, 32, 14, config.data.channels)
    task = pickle.dumps((ArmSettings("online", config, scene.classes, 32, "cpu"), scene, choice.config, 1))
    threads = torch.get_num_threads()
    try:
        peaks = _measure(task)
    finally:
        torch.set_num_threads(threads)
    assert peaks.training > sum(p.nbytes for p in scene.images)


def test_the_mark_sees_what_was_given_back():
    low = bench_memory._reset_mark()
    size = 64 << 20
    # not from malloc, which keeps freed pages once an extraction in the same process has told it to
    with mmap.mmap(-1, size) as block:
        for _ in range(64):
            block.write(b"\1" * (size // 64))
    assert bench_memory._mark() - low > 0.9 * size
    bench_memory._reset_mark()
    assert bench_memory._mark() - low < 0.5 * size


def test_a_system_without_marks_has_the_usual_count(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_memory, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(bench_memory, "_RESET", tmp_path)
    assert bench_memory._reset_mark() == bench_memory._mark() > 1 << 20
    (tmp_path / "status").write_text("VmRSS:\t 12 kB\n")
    assert bench_memory._mark() > 1 << 20


class Exits:
    """Ends the process that unpickles it, as the system does where memory runs out."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_process_that_the_system_kills_has_no_number(scene):
    assert measure_memory(Exits(), scene, None) is None


def test_an_error_there_is_one_here(micro, scene):
    config = load_config(TrainConfig, [micro], ["loss.class_weights=[1,2]"])
    with pytest.raises(ConfigError, match="2 weights for 20 classes"):
        measure_memory(ArmSettings("ptv3", config, scene.classes, 16, "cpu"), scene, None)


def test_which_vit(tmp_path):
    def choose(stored, **options):
        found = choose_vit(options.pop("name", None), options.pop("weights", None), stored, "fp32", cuda=False)
        return found.name, found.why, found.config.layer, found.random_weights

    known = {"name": "dinov2-reg-base", "dim": 768, "patch_size": 14, "layer": 9, "norm": False, "registers": 4}
    assert choose(known) == ("dinov2-reg-base", "that of the store", 9, True)
    mine = known | {"name": "mine", "registers": 0}
    assert choose(mine) == ("dinov2-base", "stands in for mine, to its layer", 9, True)
    assert choose(known | {"name": "dinov3-base"})[:2] == ("dinov2-reg-base", "stands in for dinov3-base, to its layer")
    assert choose(known, name="rooms-vit-tiny") == ("rooms-vit-tiny", "asked for", None, False)
    assert choose(known, weights=tmp_path / "vit", name="x") == ("vit", "asked for", None, False)
    assert choose(None) == ("dinov2-reg-small", "default", None, True)
    assert choose_vit(None, None, None, "bf16", cuda=True).name == "dinov2-reg-large"
    with pytest.raises(ConfigError, match="no other has 500 channels and patches of 14"):
        choose(known | {"name": "mine", "dim": 500})


def test_training_and_help_never_load_it():
    """The contract on imports names what trains; this is the other side: naming the bench loads no ViT."""
    code = "import sys, ditr_cache.pipelines.bench_model; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "False\n"
