# SPDX-License-Identifier: Apache-2.0
"""`probe`."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from serve_world import serving

from ditr_cache.cli.main import main


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Two rooms, one of them for validation."""
    folder = tmp_path_factory.mktemp("split") / "rooms"
    size = ("-s", "images.size=[56,70]", "-s", "run.threads=2")
    with pytest.raises(SystemExit) as end:
        main(["extract", "synthetic:rooms=2,views=3,val=1", str(folder), "-q", *size])
    assert not end.value.code
    return folder


def test_tables(split, run):
    done = run("probe", split, "--points", 400)
    assert done.code == 0
    lines = done.out.splitlines()
    assert "features      rooms-vit-tiny, layer 6 of 6, images of 56x70, float16" in done.out
    assert "400 points of 1 sample, of whose points" in done.out
    assert [line for line in lines if line.startswith(("features (192 channels)", "coord, color, normal (9"))]
    assert any(line.startswith("class") and line.endswith("points") for line in lines)
    assert any(line.startswith("floor ") for line in lines)
    assert any(line.startswith("one point in two views") for line in lines)
    assert "of all comparisons (50: chance)." in lines[-1]
    assert "steps in " in done.err


def test_json_and_against_and_picture(split, run, tmp_path):
    png = tmp_path / "bars.png"
    done = run("probe", split, "--points", 300, "--against", split, "--picture", png, "--json", "-q", "-k", 5)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["options"]["k"] == 5
    assert [m["method"] for m in report["methods"]] == ["linear", "neighbours"] * 2 + ["linear"]
    (other,) = report["against"]
    assert other["methods"][0]["scores"] == report["methods"][0]["scores"]
    with Image.open(png) as image:
        assert image.width > 300
    plain = run("probe", split, "--points", 300, "--against", split, "-q").out
    assert "Side by side, in per cent" in plain
    assert "features, k-NN" in plain


def test_consistency_alone(finished, run):
    done = run("probe", finished, "--consistency-only", "-q")
    assert done.code == 0
    assert "IoU" not in done.out
    assert "Cross-view consistency" in done.out
    assert run("probe", finished, "--consistency-only", "--picture", "x.png").code == 2


def test_one_view_is_said(finished, run):
    done = run("probe", finished, "--consistency-only", "--count", 1, "-q")
    assert (done.code, "No cross-view consistency: no drawn point is seen by two views." in done.out) == (0, True)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "no samples in split 'val'\nSplits of the store: train (1). Name them with --train and --val;"),
        (("--val", "train"), 2, "1 samples are on both sides"),
        (("--labels", "segment20"), 2, "no samples in split 'val'"),
        (("--points", "0"), 2, "Invalid value for '--points'"),
        (("--picture", "no/where.png"), 2, "there is no folder no"),
        (("--rule", "mean"), 2, "Invalid value for '--rule'"),
    ],
)
def test_refused(finished, run, options, code, message):
    done = run("probe", finished, *options)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_no_store(run, tmp_path):
    done = run("probe", tmp_path / "nowhere")
    assert (done.code, done.out) == (1, "")
    assert "no store here\nMake one with: ditr-cache extract SOURCE STORE" in done.err


def test_a_url_is_read_once(split, run, tmp_path):
    here = json.loads(run("probe", split, "--points", 200, "--json").out)
    with serving(split) as server:
        url = f"http://{server.host}:{server.port}"
        cache = ("--cache-dir", tmp_path / "cache")
        done = run("probe", url, "--points", 200, "--json", *cache)
    assert done.code == 0, done.err
    there = json.loads(done.out)
    assert [m["scores"] for m in there["methods"]] == [m["scores"] for m in here["methods"]]
    assert there["consistency"] == here["consistency"]
    assert any((tmp_path / "cache").rglob("*"))
