# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache experiment`: what is planned, what is done, and how it ends."""

import json
import signal
import subprocess
import sys
import time

import pytest


def test_dry_run_lists_and_writes_nothing(micro, finished, run, tmp_path):
    done = run("experiment", "visibility", finished, tmp_path / "out", *micro, "--seeds", 1, "-n")
    assert done.code == 0, done.err
    assert "ptv3-0" in done.out
    found = json.loads(
        run("experiment", "visibility", finished, tmp_path / "out", *micro, "--seeds", 2, "-n", "--json", "-q").out
    )
    assert [(item["arm"], item["seed"], item["done"]) for item in found["runs"]] == [
        ("ptv3", 0, False),
        ("ditr", 0, False),
        ("ptv3", 1, False),
        ("ditr", 1, False),
    ]
    assert not (tmp_path / "out").exists()


def test_one_that_fails_is_told_and_the_others_count(micro, finished, run, tmp_path):
    command = ("experiment", "visibility", finished, tmp_path / "out", *micro, "--seeds", 1)
    done = run(*command)
    assert done.code == 0, done.err
    assert "PTv3" in done.out
    assert "DITR" in done.out
    # a run that lost what it had saved
    (tmp_path / "out" / "ditr-0" / "scores.json").unlink()
    (tmp_path / "out" / "ditr-0" / "checkpoints" / "last.json").write_text("{")
    failed = run(*command)
    assert failed.code == 3
    assert "why it failed" in failed.out
    report = json.loads(run(*command, "--json", "-q").out)
    assert list(report["failures"]) == ["ditr-0"]
    assert [row["name"] for row in report["rows"]] == ["ptv3"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing",), "Invalid value for 'NAME'"),
        (("backbones",), "backbones are compared by their stores"),
        (("online",), "online needs the images"),
        (("visibility", "-s", "data.val_splits=[test]"), "no samples in split 'test'"),
    ],
)
def test_refused_before_anything_is_written(micro, finished, run, tmp_path, args, message):
    name, *settings = args
    done = run("experiment", name, finished, tmp_path / "out", *micro, *settings)
    assert done.code != 0
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_store_is_no_folder_for_results(micro, store, run):
    done = run("experiment", "visibility", store, store, *micro)
    assert done.code != 0
    assert "not empty and holds no experiment" in done.err
    assert not (store / "experiment.json").exists()


def test_interrupted_and_gone_on(micro, finished, run, tmp_path):
    out = tmp_path / "out"
    command = ["experiment", "visibility", str(finished), str(out), *map(str, micro), "--seeds", "1"]
    command += ["-s", "data.loop=300"]
    with subprocess.Popen(
        [sys.executable, "-m", "ditr_cache.cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        patience = time.monotonic() + 120
        log = out / "ptv3-0" / "log.jsonl"
        while not (log.exists() and log.stat().st_size):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < patience
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.endswith("Give the same command again to go on.\n")
    step = len(log.read_text().splitlines())
    assert run(*command[:-1], "data.loop=300", "-n").code == 0
    assert 0 < step < 300
