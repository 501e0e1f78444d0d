# SPDX-License-Identifier: Apache-2.0
"""`predict`: files, going on, exit codes."""

import json

import numpy as np
import pytest

from ditr_cache.cli.predict import FORMATS
from ditr_cache.datasets.ply import read_vertices
from ditr_cache.pipelines import label_files
from ditr_cache.store.reader import open_store

SAMPLE = "room-a-0000-0000"


def test_formats_are_those_of_the_library():
    assert FORMATS == label_files.FORMATS


def test_files_and_going_on(trained, finished, run, tmp_path):
    done = run("predict", trained, finished, tmp_path, "-q")
    assert (done.code, done.err) == (0, "")
    assert "1 written, 0 were there already" in done.out
    label_N = np.load(tmp_path / f"{SAMPLE}.npy")
    assert len(label_N) == open_store(finished).samples[SAMPLE].points
    report = json.loads(run("predict", trained, finished, tmp_path, "--json").out)
    assert (report["written"], report["skipped"]) == (0, 1)
    assert json.loads(run("predict", trained, finished, tmp_path, "--json", "--overwrite").out)["written"] == 1


def test_ply(trained, finished, run, tmp_path):
    assert run("predict", trained, finished, tmp_path, "--format", "ply").code == 0
    vertices = read_vertices(tmp_path / f"{SAMPLE}.ply")
    points = open_store(finished).read(SAMPLE).points
    np.testing.assert_allclose(vertices["x"], points.coord[:, 0] + points.origin[0], rtol=1e-6)
    assert vertices["label"].max() < len(open_store(finished).class_names["segment"])


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--format", "label"), 2, "no raw ids"),
        (("--format", "csv"), 2, "Invalid value for '--format'"),
        (("--split", "test"), 2, "no samples in split"),
    ],
)
def test_what_cannot_be(args, code, message, trained, finished, run, tmp_path):
    done = run("predict", trained, finished, tmp_path / "out", *args)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_other_predictions_are_kept(trained, finished, run, tmp_path):
    assert run("predict", trained, finished, tmp_path).code == 0
    done = run("predict", trained, finished, tmp_path, "--protocol", "test")
    assert done.code == 2
    assert 'protocol: there "plain", now "test"' in done.err
