# SPDX-License-Identifier: Apache-2.0
"""Command lines run in this process, and a small real store to run them on."""

import contextlib
import io
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ditr_cache.cli.main import main

ROOMS = ("synthetic:rooms=1,views=2", "-s", "images.size=[56,70]", "-s", "run.threads=2")

MODEL = {
    "stride": [2],
    "enc_depths": [1, 1],
    "enc_channels": [8, 16],
    "enc_num_head": [1, 2],
    "enc_patch_size": [64, 64],
    "dec_depths": [1],
    "dec_channels": [16],
    "dec_num_head": [2],
    "dec_patch_size": [64],
}
GRID = {"kind": "grid_sample", "grid_size": 0.2}


@dataclass(frozen=True, slots=True)
class Result:
    """What a command line did."""

    code: int
    out: str
    err: str


def run_main(*args: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit_:
            main([str(arg) for arg in args])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Result(int(exit_.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Runs a command line; no terminal, 80 columns, no job array."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("SLURM_ARRAY_TASK_ID", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return run_main


@pytest.fixture(scope="session")
def rooms():
    """Arguments of `extract` for a very small data set, without the store."""
    return ROOMS


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished store: do not write to it."""
    folder = tmp_path_factory.mktemp("finished") / "rooms"
    done = run_main("extract", *ROOMS[:1], folder, *ROOMS[1:])
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def interrupt():
    """Runs a command line in a process of its own until it has logged its first step, then asks it to stop."""

    def run_until_logged(command: list[str], log: Path) -> Result:
        with subprocess.Popen(
            [sys.executable, "-m", "ditr_cache.cli", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            patience = time.monotonic() + 120
            while not (log.exists() and log.stat().st_size):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < patience
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        return Result(process.returncode, out, err)

    return run_until_logged


@pytest.fixture
def store(finished, tmp_path):
    """A copy of the finished store."""
    return shutil.copytree(finished, tmp_path / "rooms")


@pytest.fixture(scope="session")
def trained(finished):
    """A run of a small network on the finished store: do not write to it."""
    # here, because most commands are tested without torch
    from ditr_cache.config import load_config
    from ditr_cache.pipelines.train import Train
    from ditr_cache.training.config import TrainConfig

    before = [{"kind": "center_shift"}, {"kind": "normalize_color"}]
    layer = {
        "model": {**MODEL, "sparse_conv": "torch"},
        "data": {
            "val_splits": ["train"],
            "train": [*before, GRID],
            "val": [*before, {**GRID, "keep": "first"}],
            "test": {
                "before": [*before, {**GRID, "grid_size": 0.15, "keep": "first"}],
                "rotations": [0.5],
                "scales": [1.0],
                "voxelize": [{**GRID, "keep": "all"}],
            },
        },
        "run": {"epochs": 1, "batch_size": 1, "workers": 0, "device": "cpu", "amp": "off"},
    }
    folder = finished.with_name("run")
    Train(finished, folder, load_config(TrainConfig, [layer])).run()
    return folder


@pytest.fixture(scope="session")
def micro(tmp_path_factory):
    """Arguments that make the demonstration's settings much smaller: three steps, no validation split in the store."""
    file = tmp_path_factory.mktemp("train") / "micro.yaml"
    color = {"kind": "normalize_color"}
    data = {"loop": 3, "train": [GRID, color], "val": [{**GRID, "keep": "first"}, color], "val_splits": ["train"]}
    run = {"epochs": 1, "batch_size": 1, "workers": 0, "log_every": 1, "device": "cpu"}
    file.write_text(yaml.safe_dump({"model": MODEL, "data": data, "run": run}))
    return ["-c", file]
