# SPDX-License-Identifier: Apache-2.0
"""The learning benchmark runs: one seed of its smallest arm, on fewer rooms."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditr_cache.config import load_config, read_named_yaml
from ditr_cache.training.config import TrainConfig

LEARNING = Path(__file__).resolve().parents[1] / "benchmarks" / "learning"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_seed_of_the_smallest_arm(tmp_path):
    arguments = ["--arms", "rgb", "--seeds", "0", "--rooms", "16", "--val", "4", "--work", tmp_path / "work"]
    arguments += ["--results", tmp_path, "--name", "one", "-s", "data.loop=2"]
    done = subprocess.run(
        [sys.executable, LEARNING / "run.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads((tmp_path / "one.json").read_text("utf-8"))["arms"]["rgb"]["0"]
    # 160 steps on twelve rooms; floor and wall alone would be 2 of 14 classes
    assert row["miou"] > 0.35
    assert (tmp_path / "one.md").read_text("utf-8").count("|") > 10


def test_its_settings_are_valid():
    config = load_config(TrainConfig, [read_named_yaml("train", str(LEARNING / "rooms.yaml"))])
    assert config.data.grid_size == 0.05
