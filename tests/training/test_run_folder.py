# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
from pathlib import Path

import pytest

from ditr_cache.config import load_config
from ditr_cache.errors import CheckpointError, IdentityMismatchError, IncompleteStoreError, TrainingError
from ditr_cache.store.reader import open_store
from ditr_cache.training import run_folder
from ditr_cache.training.config import StoreExpectation, TrainConfig
from ditr_cache.training.run_folder import RunFolder, config_difference, git_revision
from ditr_cache.training.store_check import (
    check_classes,
    check_complete,
    check_expected,
    check_same,
    coordinates,
    coordinates_digest,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "store-v1-f16"


@pytest.fixture
def golden():
    with open_store(GOLDEN) as store:
        yield store


def test_what_is_written_is_read(tmp_path):
    folder, config = RunFolder(tmp_path / "run"), TrainConfig()
    assert not folder.exists
    folder.check_new()
    with folder.lock():
        folder.check_new()
        folder.begin(config, {"store": {"digest": "x"}}, {"a": "1"})
        folder.start({"step": 0}, config)
        folder.start({"step": 7}, config)
    assert folder.exists
    assert load_config(TrainConfig, [folder.config()]) == config
    assert folder.run() == {"store": {"digest": "x"}, "starts": [{"step": 0}, {"step": 7}]}
    assert folder.samples() == {"a": "1"}
    with pytest.raises(TrainingError, match="--resume"):
        folder.check_new()


def test_a_run_that_was_killed_before_it_had_begun_can_be_begun(tmp_path):
    folder = RunFolder(tmp_path)
    for name in (".lock", "samples.json", "run.json", ".config.yaml.0123.tmp"):
        (tmp_path / name).touch()
    assert not folder.exists
    folder.check_new()
    folder.begin(TrainConfig(), {}, {"a": "1"})
    assert folder.samples() == {"a": "1"}
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(TrainingError, match=r"it holds thesis\.tex"):
        folder.check_new()


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.yaml", "a: [1"), ("config.yaml", "[]"), ("run.json", "{"), ("run.json", "3"), ("samples.json", "\udce9")],
)
def test_damaged_files_are_named(tmp_path, name, text):
    folder = RunFolder(tmp_path)
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=name):
        {"config.yaml": folder.config, "run.json": folder.run, "samples.json": folder.samples}[name]()


def test_difference_names_every_setting_that_counts():
    before = TrainConfig()
    now = load_config(TrainConfig, [], ["optim.lr=1", "run.threads=3", "run.device=cpu", "data.views.count=null"])
    assert config_difference(before, now) == [
        "data.views.count: the run has 10, asked for null",
        "optim.lr: the run has 0.006, asked for 1.0",
    ]
    assert config_difference(before, before) == []
    more = load_config(TrainConfig, [], ["store.identity.backbone.dim=3", "loss.class_weights=[1]"])
    assert config_difference(before, more) == [
        "loss.class_weights: the run has null, asked for [1.0]",
        'store.identity.backbone: the run has null, asked for {"dim": 3}',
    ]


def test_revision_of_the_code(tmp_path, monkeypatch):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert head.returncode != 0
    package = tmp_path / "ditr_cache"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(run_folder.ditr_cache, "__file__", str(package / "__init__.py"))
    assert git_revision() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    # somebody else's work tree, in which this package is not tracked
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    assert git_revision() is None
    subprocess.run([*git, "add", "ditr_cache"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    revision = git_revision()
    assert len(revision["revision"]) == 40
    assert revision["modified"] is False
    (package / "__init__.py").write_text("x = 1\n")
    assert git_revision() == {**revision, "modified": True}


def test_expectations(golden):
    backbone = golden.identity["backbone"]
    digest = coordinates_digest(coordinates(golden, ["train", "val"]))
    check_expected(golden, StoreExpectation(), digest)
    expected = StoreExpectation(identity={"backbone": backbone}, digest=golden.digest, coordinates=digest)
    check_expected(golden, expected, digest)
    with pytest.raises(IdentityMismatchError) as error:
        check_expected(golden, StoreExpectation(identity={"backbone": "x", "nose": "long"}, digest="abc"), digest)
    assert error.value.what.splitlines()[1:] == [
        f'  backbone: the store has {json.dumps(backbone)}, asked for "x"',
        '  nose: the store has null, asked for "long"',
        f"  content digest: the store has {golden.digest}, asked for abc",
    ]


def test_same_store(golden):
    splits = sorted({info.split for info in golden.samples.values()})
    found = coordinates(golden, splits)
    assert len(found) == len(golden.samples)
    check_same(golden, golden.identity, found, found)
    with pytest.raises(IdentityMismatchError, match=f"{len(found)} samples? new: "):
        check_same(golden, golden.identity, {}, found)
    with pytest.raises(IdentityMismatchError, match="backbone: the store has"):
        check_same(golden, {**golden.identity, "backbone": "x"}, found, found)


def test_same_classes(golden):
    label_set, names = next(iter(golden.class_names.items()))
    check_classes(golden, label_set, names)
    check_classes(golden, "segment_without_names", ["0", "1"])
    with pytest.raises(IdentityMismatchError) as error:
        check_classes(golden, label_set, ["x", *names[1:], "y"])
    assert error.value.what.splitlines()[1:] == [
        f"  0: the store has {names[0]}, the run has x",
        f"  {len(names)}: the store has none, the run has y",
    ]


def test_digest_of_coordinates_depends_on_samples_and_points_not_on_order():
    assert coordinates_digest({"a": "1", "b": "2"}) == coordinates_digest({"b": "2", "a": "1"})
    assert len({coordinates_digest(x) for x in ({}, {"a": "1"}, {"a": "2"}, {"b": "1"})}) == 4


def test_complete(golden):
    missing = len(golden.manifest.planned)
    if missing == 0:
        assert check_complete(golden, allow_incomplete=False) == 0
    else:
        with pytest.raises(IncompleteStoreError):
            check_complete(golden, allow_incomplete=False)
    assert check_complete(golden, allow_incomplete=True) == missing
