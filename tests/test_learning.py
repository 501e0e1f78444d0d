# SPDX-License-Identifier: Apache-2.0
"""The learning benchmarks run: one seed of their smallest arms, on fewer rooms."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditr_cache.config import load_config, read_named_yaml
from ditr_cache.training.config import TrainConfig

LEARNING = Path(__file__).resolve().parents[1] / "benchmarks" / "learning"


def _run(script, folder, *arguments):
    """What a benchmark writes, as `one.json`."""
    where = ["--work", folder / "work", "--results", folder, "--name", "one"]
    done = subprocess.run(
        [sys.executable, LEARNING / script, *map(str, where), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "one.md").read_text("utf-8").count("|") > 10
    return json.loads((folder / "one.json").read_text("utf-8"))


ROOMS = ["--seeds", "0", "--rooms", "16", "--val", "4"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training(tmp_path):
    row = _run("run.py", tmp_path, *ROOMS, "--arms", "rgb", "-s", "data.loop=2")["arms"]["rgb"]["0"]
    # 160 steps on twelve rooms; floor and wall alone would be 2 of 14 classes
    assert row["miou"] > 0.35


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_distillation(tmp_path):
    row = _run("distilled.py", tmp_path, *ROOMS, "--arms", "d-ditr-010", "--unlabelled", "3", "-p", "run.epochs=20")[
        "arms"
    ]["d-ditr-010"]["0"]
    # without labels, then on one labelled room
    lines = (tmp_path / "work" / "one-pretrained" / "log.jsonl").read_text("utf-8").splitlines()
    cosines = [line["scores"]["cosine"] for line in map(json.loads, lines) if line["kind"] == "evaluation"]
    assert cosines[-1] > cosines[0] + 0.02
    # wall or floor alone would be 1 of 14 classes
    assert row["miou"] > 0.075
    trained = json.loads((tmp_path / "work" / "one-d-ditr-010-0" / "run.json").read_text("utf-8"))
    assert trained["init"]["step"] == 100  # 4 + 1 an epoch


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_several_stores(tmp_path):
    rooms = ["--seeds", "0", "--rooms", "8", "--val", "2"]
    few = ["--percent", "10", "-s", "run.epochs=5", "-p", "run.epochs=5"]
    found = _run("multistore.py", tmp_path, *rooms, "--arms", "both", *few)
    assert set(found["arms"]) == {"style a, 10 %, both", "style b, 10 %, both"}
    assert all(0 < arm["0"]["miou"] < 1 for arm in found["arms"].values())
    (cosines,) = found["cosines"].values()
    assert list(cosines) == ["20"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_cached_and_online_on_real_data(real_weights, tmp_path):
    arguments = ["--weights", str(real_weights), "--cases", "shelf", "--seeds", "0", "-s", "data.loop=10"]
    arms = _run("online.py", tmp_path, *arguments)["cases"]["shelf"]["arms"]
    assert list(arms) == ["cached-1", "cached-2", "cached-4", "online"]
    assert all(0.2 < arm["miou"]["mean"] < 1 for arm in arms.values())


def test_its_settings_are_valid():
    config = load_config(TrainConfig, [read_named_yaml("train", str(LEARNING / "rooms.yaml"))])
    assert config.data.grid_size == 0.05
