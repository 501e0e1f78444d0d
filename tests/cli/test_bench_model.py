# SPDX-License-Identifier: Apache-2.0
"""`bench model`."""

import json
import shutil

import pytest

SMALL = (
    *("-c", "tiny", "--rounds", 1, "--no-memory"),
    *("-s", "run.device=cpu", "-s", "data.views.evaluation_count=2", "-s", "run.threads=1"),
)


def test_tables(finished, run):
    done = run("bench", "model", finished, *SMALL, "--samples", 1, "-s", "model.enc_patch_size=[64,64,64,64]")
    assert done.code == 0, done.err
    heads = [line for line in done.out.splitlines() if line.startswith(("Times PTv3 alone", "Medians here"))]
    assert heads == ["Times PTv3 alone: median of rounds (quartiles)", "Medians here"]
    assert "paper, online" in done.out
    assert "12 -> 15 h" in done.out
    assert "41 -> 76 ms a scene" in done.out
    assert "1.4 -> 5.6 GiB, in inference" in done.out
    assert "rooms-vit-tiny (that of the store) in fp32" in done.out
    assert "settings: tiny + " in done.err
    assert max(map(len, done.out.splitlines())) <= 120  # wider, the slower the machine


def test_json_without_a_store(run):
    done = run("bench", "model", *SMALL, "--points", 300, "--backbone", "rooms-vit-tiny", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["store"], report["points"], report["vit"]) == (None, 300, "rooms-vit-tiny")
    assert set(report["networks"]) == {"ptv3", "cached", "online"}
    assert report["paper"]["training_h"] == {"ptv3": 12, "online": 15}


def test_a_store_of_that_name_is_a_path(finished, run, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    done = run("bench", "./model", "--samples", 1)
    assert done.code == 0
    assert "1 reads of 1 samples" in done.out
    assert run("bench", "--samples", 1, "model").code == 0


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--backbone", "x", "--weights", "y"), 2, "exclude each other"),
        (("--backbone", "vit-of-mine", "--points", 50), 1, "there is no backbone named 'vit-of-mine'"),
        (("-s", "model.injection=none"), 2, "takes no patch features"),
        (("--rounds", 0), 2, "Invalid value for '--rounds'"),
        (("nowhere",), 1, "no store here"),
    ],
)
def test_refused(run, args, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("bench", "model", *SMALL, *args)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
