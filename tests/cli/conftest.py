# SPDX-License-Identifier: Apache-2.0
"""Command lines run in this process, and a small real store to run them on."""

import contextlib
import io
import shutil
import signal
from dataclasses import dataclass

import pytest

from ditr_cache.cli.main import main

ROOMS = ("synthetic:rooms=1,views=2", "-s", "images.size=[56,70]", "-s", "run.threads=2")


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
def store(finished, tmp_path):
    """A copy of the finished store."""
    return shutil.copytree(finished, tmp_path / "rooms")
