# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ditr_cache.cli import interrupt
from ditr_cache.cli.interrupt import graceful_stop


def _signal_twice(number, asked):
    with graceful_stop(lambda: asked.append(1)):
        os.kill(os.getpid(), number)
        assert asked == [1]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_second_one_interrupts(number, capfd, monkeypatch):
    monkeypatch.setattr(interrupt, "_SAME_S", 0)
    asked = []
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(KeyboardInterrupt):
        _signal_twice(number, asked)
    assert asked == [1]
    assert "Once more to stop at once" in capfd.readouterr().err
    assert {n: signal.getsignal(n) for n in before} == before


def test_two_signals_at_once_are_one_request():
    """A scheduler signals a process, and torchrun once more."""
    asked = []
    with graceful_stop(lambda: asked.append(1)):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    assert asked == [1]


def test_interrupted_extraction_leaves_a_store_that_goes_on(tmp_path, run):
    store = tmp_path / "rooms"
    command = ["extract", "synthetic:rooms=200,views=1", str(store), "-s", "images.size=[56,70]"]
    with subprocess.Popen(
        [sys.executable, "-m", "ditr_cache.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        patience = time.monotonic() + 120
        while not list(store.glob("receipts/*.json")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < patience
            time.sleep(0.05)
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.endswith("error: interrupted; what is finished is kept\nRun the same command again to go on.\n")
    done = int(out.partition(" done, ")[0].split()[-1])
    assert done == len(list(store.glob("receipts/*.json"))) > 0
    assert run("verify", store).code == 0
    assert f"{done} present, {200 - done} missing" in run("info", store).out
