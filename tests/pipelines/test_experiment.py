# SPDX-License-Identifier: Apache-2.0
"""Experiments: ordinary runs in folders, done once, and a table of them."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from store_builder import build_store

from ditr_cache.cli.experiment import NAMES
from ditr_cache.config import ExtractConfig, load_config, read_named_yaml
from ditr_cache.datasets import open_dataset
from ditr_cache.errors import CheckpointError, ConfigError
from ditr_cache.pipelines import experiment_plans
from ditr_cache.pipelines.experiment import Experiment
from ditr_cache.pipelines.experiment_picture import draw_rows
from ditr_cache.pipelines.experiment_plans import EXPERIMENTS, of_network
from ditr_cache.pipelines.experiment_settings import ExperimentSettings
from ditr_cache.pipelines.experiment_table import csv_table, markdown_table, rows_of
from ditr_cache.pipelines.extract import Extract
from ditr_cache.store.reader import open_store
from ditr_cache.training.run_folder import RunFolder

ONE = ["run.epochs=1", "data.loop=1"]


def make(name, stores, out, micro, **options):
    stores = stores if isinstance(stores, list) else [stores]
    return Experiment(name, stores, out, [micro], ONE, **{"seeds": [0], **options})


@pytest.fixture(scope="module")
def injection(rooms_store, micro, tmp_path_factory):
    """All arms of Table 5: do not write to it."""
    out = tmp_path_factory.mktemp("injection") / "out"
    return out, make("injection", rooms_store, out, micro).run()


def test_names_of_the_command():
    assert tuple(EXPERIMENTS) == NAMES


def test_all_injection_modes_run(injection):
    out, report = injection
    assert report.failures == {}
    names = ["none", "before", "between", "decoder", "decoder_last", "after", "cls"]
    assert [row.name for row in report.rows] == names
    assert report.notes == ()
    for row in report.rows:
        assert RunFolder(out / f"{row.name}-0").checkpoints.find("last") is not None
        assert 0 <= row.scores["miou"].mean <= 1
    settings = {row.name: RunFolder(out / f"{row.name}-0").config()["model"]["injection"] for row in report.rows}
    assert settings == {name: name for name in settings}


def test_a_store_without_class_tokens():
    without = SimpleNamespace(manifest=SimpleNamespace(blocks={"a": SimpleNamespace(arrays={"features": None})}))
    plan = EXPERIMENTS["injection"]([without])
    assert "cls" not in [arm.name for arm in plan.arms]
    assert plan.notes == ("class tokens are not in the store: extract it with a backbone that has one",)


def test_table_and_plot(injection):
    out, report = injection
    text = (out / "table.md").read_text()
    assert "| in the decoder (DITR) | 1 |" in text
    assert "| 41.2 | 83.1 |" in text
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert float(rows[3]["miou_mean"]) == pytest.approx(report.rows[3].scores["miou"].mean, abs=1e-6)
    assert rows[3]["paper: ScanNet200"] == "41.2"
    with Image.open(out / "plot.png") as picture:
        assert picture.width > 600
    assert json.loads((out / "results.json").read_text())["none"]["0"]["miou"] == report.rows[0].scores["miou"].mean


def test_what_is_done_is_not_done_again(injection, rooms_store, micro):
    out, report = injection
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/checkpoints/*")}
    again = make("injection", rooms_store, out, micro)
    assert all(run.done for run in again.runs())
    assert again.run().rows == report.rows
    assert {p: p.stat().st_mtime_ns for p in out.glob("*/checkpoints/*")} == before


def test_another_experiment_in_the_folder(injection, rooms_store, micro):
    with pytest.raises(ConfigError, match="another experiment"):
        make("visibility", rooms_store, injection[0], micro).run()
    other = [*ONE, "optim.lr=0.5"]
    with pytest.raises(ConfigError, match=r"optim.lr: the run has .*, asked for 0.5"):
        Experiment("injection", [rooms_store], injection[0], [micro], other, seeds=[0])
    # what does not decide what comes out may change
    Experiment("injection", [rooms_store], injection[0], [micro], [*ONE, "run.workers=1"], seeds=[0])


def test_a_folder_that_holds_something_else(rooms_store, micro, tmp_path):
    before = sorted(p.name for p in rooms_store.iterdir())
    with pytest.raises(ConfigError, match="not empty and holds no experiment"):
        make("visibility", rooms_store, rooms_store, micro)
    assert sorted(p.name for p in rooms_store.iterdir()) == before
    (tmp_path / "experiment.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not what an experiment writes"):
        make("visibility", rooms_store, tmp_path, micro)


def test_interrupted_and_gone_on(rooms_store, micro, tmp_path):
    experiment = make("visibility", rooms_store, tmp_path / "out", micro, seeds=[0, 1])
    experiment.request_stop()
    first = experiment.run()
    assert first.interrupted
    assert first.rows == ()
    again = make("visibility", rooms_store, tmp_path / "out", micro, seeds=[0, 1]).run()
    assert [(row.name, row.seeds) for row in again.rows] == [("ptv3", 2), ("ditr", 2)]
    assert again.rows[0].scores["miou"].low <= again.rows[0].scores["miou"].high


def test_an_arm_that_fails_costs_nothing_else(rooms_store, micro, tmp_path):
    begun = make("visibility", rooms_store, tmp_path / "out", micro)
    begun.request_stop()
    begun.run()
    (tmp_path / "out" / "ditr-0").mkdir()
    (tmp_path / "out" / "ditr-0" / "mine.txt").touch()
    report = make("visibility", rooms_store, tmp_path / "out", micro).run()
    assert [row.name for row in report.rows] == ["ptv3"]
    assert "not empty" in report.failures["ditr-0"]
    assert "- ditr-0 failed: " in (tmp_path / "out" / "table.md").read_text()


def test_damaged_results_are_named(rooms_store, micro, tmp_path):
    make("visibility", rooms_store, tmp_path / "out", micro).run()
    for name in ("ptv3-0/scores.json", "experiment.json"):
        (tmp_path / "out" / name).write_bytes(b"{")
        with pytest.raises(CheckpointError, match=f"{name}.*cannot be read"):
            make("visibility", rooms_store, tmp_path / "out", micro).run()


def test_data_efficiency(rooms_store, micro, tmp_path, monkeypatch):
    """Nested subsets, as many steps, and one distillation for all."""
    monkeypatch.setattr(experiment_plans, "FRACTIONS", (1, 5, 20, 67, 100))
    monkeypatch.setattr(experiment_plans, "_SCRATCH", {n: n for n in experiment_plans.FRACTIONS})
    monkeypatch.setattr(experiment_plans, "_DISTILLED", {n: n for n in experiment_plans.FRACTIONS})
    report = make("data-efficiency", rooms_store, tmp_path / "out", micro).run()
    assert report.failures == {}
    assert [row.label for row in report.rows if row.name.startswith("scratch")] == [
        "scratch, 20 % of the labelled samples (1 of 3)",
        "scratch, 67 % of the labelled samples (2 of 3)",
        "scratch, 100 % of the labelled samples",
    ]
    assert len(report.rows) == 6
    assert report.notes == ("left out, for another part is as many of the 3 samples: 1 %, 5 %",)
    out = tmp_path / "out"
    assert json.loads((out / "distilled-0" / "run.json").read_text())["kind"] == "distill"
    runs = {row.name: RunFolder(out / f"{row.name}-0") for row in report.rows}
    steps = {name: run.checkpoints.find("last").step for name, run in runs.items() if "067" not in name}
    assert len(set(steps.values())) == 1
    assert runs["d-ditr-020"].config()["init"]["distilled"] == str((out / "distilled-0").absolute())
    assert runs["scratch-020"].config()["init"]["distilled"] is None
    few = set((out / "samples-020-0.txt").read_text().split())
    assert few <= {info.id for info in open_store(rooms_store).samples.values() if info.split == "train"}
    assert len(few) == 1
    assert few < set((out / "samples-067-0.txt").read_text().split())


def test_data_efficiency_of_some_scenes(rooms_store, micro, tmp_path, monkeypatch):
    """Percent are of those, and of no others."""
    monkeypatch.setattr(experiment_plans, "FRACTIONS", (10,))
    ids = sorted(info.id for info in open_store(rooms_store).samples.values() if info.split == "train")
    (tmp_path / "scenes.txt").write_text("\n".join(ids[1:]))
    overrides = [*ONE, f"data.scenes={tmp_path / 'scenes.txt'}"]
    out = tmp_path / "out"
    report = Experiment("data-efficiency", [rooms_store], out, [micro], overrides, seeds=[0]).run()
    assert report.failures == {}
    (few,) = (out / "samples-010-0.txt").read_text().split()
    assert few in ids[1:]
    assert RunFolder(out / "scratch-010-0").config()["data"]["loop"] == 2
    assert RunFolder(out / "distilled-0").config()["data"]["scenes"] == str(tmp_path / "scenes.txt")


def test_settings_are_checked_before_anything_is_trained(rooms_store, micro, tmp_path):
    for name, text, words in (
        ("views", "nonsense.x=1", "nonsense"),
        ("visibility", "run.seed=3", "run.seed: visibility sets it itself"),
        ("data-efficiency", "model.injection=decoder", "model.injection: data-efficiency sets it itself"),
        ("data-efficiency", "init={distilled: somewhere}", "init.distilled: data-efficiency sets it itself"),
        ("data-efficiency", "run.weights=some.pth", "init.distilled and run.weights are both given"),
        ("visibility", "data.val_splits=[test]", "no samples in split 'test'"),
        ("visibility", "data.features=[strength]", "the store has no strength"),
    ):
        with pytest.raises(ConfigError, match=words):
            Experiment(name, [rooms_store], tmp_path / "out", [micro], [text])
    assert not (tmp_path / "out").exists()


def test_settings_of_labels_are_not_those_of_the_distillation(micro):
    settings = ExperimentSettings([micro, {"loss": {"lovasz": 0}}], ["loss={lovasz: 0.5}", "optim.lr=0.25"])
    assert settings.common.loss.lovasz == 0.5
    assert settings.distillation(3).optim.lr == 0.25
    assert settings.distillation(3).run.seed == 3


def test_a_table_comes_with_every_run(rooms_store, micro, tmp_path):
    experiment = make("visibility", rooms_store, tmp_path / "out", micro)
    seen, do = [], experiment._do

    def watch(planned):
        do(planned)
        seen.append((tmp_path / "out" / "table.md").exists())

    experiment._do = watch
    experiment.run()
    assert seen == [False, True]


def test_views_and_dtype(rooms_store, micro, tmp_path):
    views = make("views", rooms_store, tmp_path / "views", micro).run()
    assert [row.label for row in views.rows] == ["1 view", "2 views", "all (up to 3) views"]
    dtype = make("dtype", rooms_store, tmp_path / "dtype", micro).run()
    assert dtype.failures == {}
    assert [row.name for row in dtype.rows] == ["float16", "int8"]
    assert open_store(tmp_path / "dtype" / "int8.store").identity["features"]["dtype"] == "int8"


def test_backbones(rooms_store, micro, tmp_path):
    with pytest.raises(ConfigError, match="name several"):
        make("backbones", rooms_store, tmp_path / "out", micro)
    settings = ["images.size=[56,70]", "run.threads=2", "backbone.random_seed=0"]
    config = load_config(ExtractConfig, [read_named_yaml("extract", "synthetic")], settings)
    Extract(open_dataset("synthetic:rooms=4,views=3,val=1", "synthetic"), tmp_path / "random", config).run()
    report = make("backbones", [rooms_store, tmp_path / "random"], tmp_path / "out", micro).run()
    assert report.failures == {}
    assert [row.name for row in report.rows] == ["none", "store-1", "store-2"]
    # one ViT with and without its weights: the name does not tell them apart
    assert [row.label for row in report.rows[1:]] == [
        f"rooms-vit-tiny ({store})" for store in (rooms_store, tmp_path / "random")
    ]
    other = load_config(ExtractConfig, [read_named_yaml("extract", "synthetic")], settings[:2])
    Extract(open_dataset("synthetic:rooms=4,views=3,val=1,seed=8", "synthetic"), tmp_path / "other", other).run()
    with pytest.raises(ConfigError, match="not the samples and points"):
        make("backbones", [rooms_store, tmp_path / "other"], tmp_path / "out2", micro)


def test_labels_name_the_network():
    plan = EXPERIMENTS["visibility"](())
    assert [arm.label for arm in of_network(plan, "ptv3").arms] == ["PTv3", "DITR"]
    assert [arm.label for arm in of_network(plan, "minkunet").arms] == ["MinkUNet", "DITR"]


def test_refused(rooms_store, micro, tmp_path):
    with pytest.raises(ConfigError, match="no experiment 'nothing'"):
        make("nothing", rooms_store, tmp_path / "out", micro)
    with pytest.raises(ConfigError, match="on one store"):
        make("views", [rooms_store, rooms_store], tmp_path / "out", micro)
    build_store(tmp_path / "empty", [])
    for name in ("views", "dtype"):
        with pytest.raises(ConfigError, match="has no samples"):
            make(name, tmp_path / "empty", tmp_path / "out", micro)


def test_spreads():
    plan = EXPERIMENTS["visibility"](())
    scores = {"miou": 0.5, "visible": 0.6, "invisible": 0.4}
    single = {"ptv3": {"0": scores, "1": {key: value + 0.1 for key, value in scores.items()}}}
    (row,) = rows_of(plan, single)
    assert (row.seeds, row.scores["miou"].low, row.scores["miou"].high) == (2, 0.5, 0.6)
    assert row.scores["miou"].mean == pytest.approx(0.55)
    assert "55.0 (50.0-60.0)" in markdown_table(plan, [row])
    assert csv_table([row]).count("\n") == 2
    assert draw_rows("title", [row]).height > 100
