# SPDX-License-Identifier: Apache-2.0
"""Labels as files: whole or not there, never mixed, and never made twice."""

import json
import os
import shutil

import numpy as np
import pytest

from ditr_cache.config import load_config
from ditr_cache.errors import ConfigError
from ditr_cache.pipelines.evaluate import Evaluate
from ditr_cache.pipelines.labelling import Labeller, LabelOptions
from ditr_cache.pipelines.predict import ABOUT, Predict
from ditr_cache.pipelines.train import Train
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.reader import open_store
from ditr_cache.training.config import TrainConfig

OPTIONS = LabelOptions(device="cpu")


@pytest.fixture(scope="module")
def store(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "store"
    rooms = tiny.Rooms({"a": [tiny.room("08/000001"), tiny.room("Größe 2")], "b": [tiny.room("r")]})
    tiny.extract(rooms, folder).run()
    return folder


@pytest.fixture(scope="module")
def run(store, small_network):
    folder = store.with_name("run")
    Train(store, folder, load_config(TrainConfig, [small_network])).run()
    return folder


@pytest.fixture(scope="module")
def truth(run, store):
    return {done.id: done.label for done in Labeller(run, store, OPTIONS)}


def names(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def test_a_file_for_every_sample(run, store, truth, tmp_path):
    report = Predict(run, store, tmp_path / "out", options=OPTIONS).run()
    assert names(tmp_path / "out") == ["08%2F000001.npy", "Gr%C3%B6%C3%9Fe%202.npy", ABOUT, "r.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "08%2F000001.npy"), truth["08/000001"])
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "r.npy"), truth["r"])
    assert (report.samples, report.written, report.skipped, report.points) == (3, 3, 0, 600)
    assert json.loads(json.dumps(report.to_dict()))["cost"]["forwards"] == 3


def test_labels_are_those_that_are_evaluated(run, store, truth):
    scores = Evaluate(run, store, OPTIONS).run().scores.overall
    right = labelled = 0
    for name, label in truth.items():
        segment = open_store(store).read(name).points.segments["segment"]
        right += int((label == segment)[segment >= 0].sum())
        labelled += int((segment >= 0).sum())
    assert scores.allacc == pytest.approx(right / labelled)


@pytest.mark.parametrize(("form", "dtype", "ids"), [("label", "<u4", [7, 8]), ("lidarseg", "u1", [7, 8])])
def test_raw_ids_are_those_of_the_store(run, store, truth, tmp_path, form, dtype, ids):
    Predict(run, store, tmp_path, form, OPTIONS).run()
    path = next(p for p in tmp_path.iterdir() if p.name.startswith("r") and "%" not in p.name)
    np.testing.assert_array_equal(np.fromfile(path, dtype), np.array(ids)[truth["r"]])


class Full(OSError):
    pass


def test_an_interrupted_run_goes_on(run, store, truth, tmp_path, monkeypatch):
    original, done = Filesystem.rename, []

    def rename(self, source, target):
        if len(done) == 2:
            raise Full("no space left")
        done.append(target.name)
        original(self, source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Filesystem, "rename", rename)
        with pytest.raises(Full):
            Predict(run, store, tmp_path, options=OPTIONS).run()
    assert len(names(tmp_path)) == 2
    first = next(p for p in tmp_path.glob("*.npy"))
    os.utime(first, (1, 1))
    report = Predict(run, store, tmp_path, options=OPTIONS).run()
    assert (report.written, report.skipped) == (2, 1)
    assert first.stat().st_mtime == 1
    assert len(list(tmp_path.iterdir())) == 4
    np.testing.assert_array_equal(np.load(tmp_path / "r.npy"), truth["r"])


def test_finished_work_is_not_done_again(run, store, tmp_path):
    Predict(run, store, tmp_path, options=OPTIONS).run()
    again = Predict(run, store, tmp_path, options=OPTIONS).run()
    assert (again.written, again.skipped, again.cost.forwards) == (0, 3, 0)
    anew = Predict(run, store, tmp_path, options=OPTIONS, overwrite=True).run()
    assert (anew.written, anew.skipped) == (3, 0)


def test_some_samples_may_come_first(run, store, tmp_path):
    assert Predict(run, store, tmp_path, options=LabelOptions(device="cpu", samples="r")).run().written == 1
    assert Predict(run, store, tmp_path, options=OPTIONS).run().written == 2


def test_predictions_never_mix(run, store, tmp_path):
    Predict(run, store, tmp_path, options=OPTIONS).run()
    before = (tmp_path / "r.npy").read_bytes()
    for options, form in ((LabelOptions(device="cpu", protocol="test"), "npy"), (OPTIONS, "ply")):
        with pytest.raises(ConfigError, match="other predictions") as caught:
            Predict(run, store, tmp_path, form, options).run()
        assert ("protocol" if form == "npy" else "format") in str(caught.value)
    assert (tmp_path / "r.npy").read_bytes() == before
    assert len(names(tmp_path)) == 4
    # overwriting one of three would leave two of another kind
    some = LabelOptions(device="cpu", protocol="test", samples="r")
    with pytest.raises(ConfigError, match="would be left among these"):
        Predict(run, store, tmp_path, "npy", some, overwrite=True).run()
    test = LabelOptions(device="cpu", protocol="test")
    assert Predict(run, store, tmp_path, "npy", test, overwrite=True).run().written == 3
    assert json.loads((tmp_path / ABOUT).read_text())["protocol"] == "test"


def test_a_damaged_note_is_no_agreement(run, store, tmp_path):
    (tmp_path / ABOUT).write_text("[]")
    with pytest.raises(ConfigError, match="cannot be read"):
        Predict(run, store, tmp_path, options=OPTIONS).run()


def test_a_store_without_labels_will_do(run, tiny, tmp_path):
    rooms = tiny.Rooms({"b": [tiny.room("new")]})
    rooms.blocks["b"]["new"].points.segments.clear()
    tiny.extract(rooms, tmp_path / "store").run()
    report = Predict(run, tmp_path / "store", tmp_path / "out", "ply", OPTIONS).run()
    assert report.written == 1
    evaluated = Evaluate(run, tmp_path / "store", OPTIONS, pictures=tmp_path / "seen").run()
    assert evaluated.unlabelled == ("new",)
    assert (tmp_path / "seen" / "new.png").exists()


def test_classes_that_are_not_the_stores_are_refused_before_anything_is_labelled(run, store, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    document = json.loads((tmp_path / "run" / "run.json").read_text())
    document["classes"].append("ceiling")
    (tmp_path / "run" / "run.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="2: the store has none, the run has ceiling"):
        Predict(tmp_path / "run", store, tmp_path / "out", "label", OPTIONS)
    assert not (tmp_path / "out").exists()
