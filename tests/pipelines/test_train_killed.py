# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments: a resumed run is an unbroken one, to the last digit."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from ditr_cache.config import load_config, read_named_yaml
from ditr_cache.pipelines.train import Train
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.run_folder import RunFolder

TIMES = ("data_s", "step_s", "seconds")


def _log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def _lines(run):
    """Complete lines of the log so far."""
    path = run / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _kill(store, run, options, at):
    """Train in a process of its own until the log has `at` lines more, and kill all of it a random moment later."""
    command = [sys.executable, "-m", "ditr_cache.cli", "train", str(store), str(run), "-q", "--resume"]
    before = _lines(run)
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        patience = time.monotonic() + 120
        while _lines(run) < before + at and process.poll() is None:
            assert time.monotonic() < patience
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.2))
        alive = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL) if alive else None
        assert alive or process.returncode == 0, process.stderr.read()
    return alive


def _assert_same(run, reference):
    mine, other = (
        [{k: v for k, v in line.items() if k not in TIMES} for line in _log(folder)] for folder in (run, reference)
    )
    assert mine == other
    for which in ("last", "best"):
        mine, other = (RunFolder(folder).checkpoints.find(which) for folder in (run, reference))
        assert mine.step == other.step
        theirs = other.weights()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.weights().items())
    mine, other = (RunFolder(folder).checkpoints.find("last").state() for folder in (run, reference))
    for name in ("step", "updates", "best", "losses"):
        assert mine[name] == other[name]
    for a, b in zip(mine["optimizer"]["state"].values(), other["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def _kills_and_compare(store, micro, settings, folder, kills):
    reference, run, file = folder / "reference", folder / "run", folder / "micro.yaml"
    file.write_text(yaml.safe_dump(micro))
    # as the command line does, which adds the settings of the store's data set
    config = load_config(TrainConfig, [read_named_yaml("train", "tiny"), micro], settings)
    Train(store, reference, config).run()
    options = ["-c", str(file), *(word for setting in settings for word in ("-s", setting))]
    killed = [_kill(store, run, options, at) for at in kills]
    report = Train(store, run, config, resume=True).run()
    assert any(killed)
    assert report.step == report.total
    assert json.loads((run / "run.json").read_text())["starts"][-1]["step"] == (report.resumed_at or 0)
    _assert_same(run, reference)


def test_killed_and_resumed_is_unbroken(rooms_store, micro, tmp_path):
    """Workers, Mix3D and everything random on."""
    _kills_and_compare(rooms_store, micro, ["run.workers=1", "run.epochs=3"], tmp_path, [random.randint(1, 4)])


@pytest.mark.slow
def test_killed_often(rooms_store, micro, tmp_path):
    settings = ["run.workers=2", "run.epochs=12", "run.checkpoint_every=2", "run.accumulation=2", "run.log_every=3"]
    _kills_and_compare(rooms_store, micro, settings, tmp_path, [random.randint(0, 5) for _ in range(8)])
