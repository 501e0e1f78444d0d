# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache experiment`: what is planned, what is done, and how it ends."""

import json

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


def test_interrupted(micro, finished, run, interrupt, tmp_path):
    out = tmp_path / "out"
    command = ["experiment", "visibility", str(finished), str(out), *map(str, micro), "--seeds", "1"]
    command += ["-s", "data.loop=300"]
    log = out / "ptv3-0" / "log.jsonl"
    done = interrupt(command, log)
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
    assert done.err.endswith("Give the same command again to go on.\n")
    assert 0 < len(log.read_text().splitlines()) < 300
    assert run(*command, "-n").code == 0
