# SPDX-License-Identifier: Apache-2.0
"""A crash between any two file operations leaves a run that can be loaded."""

import json

import pytest
import torch

from ditr_cache.errors import CheckpointError
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.training.checkpoint import Checkpoints

OPERATIONS = (
    "make_folder",
    "write",
    "open_new",
    "sync_file",
    "sync_folder",
    "replace",
    "rename",
    "remove",
    "remove_tree",
)


class PowerCut(BaseException):
    pass


class Fragile(Filesystem):
    """Dies before operation number `after`; `replace` is made of others, which count too."""

    def __init__(self, after):
        self.left = after


def _dies(name):
    def operation(self, *args, **kwargs):
        if self.left == 0:
            raise PowerCut
        self.left -= 1
        return getattr(Filesystem, name)(self, *args, **kwargs)

    return operation


for _name in OPERATIONS:
    setattr(Fragile, _name, _dies(_name))


def _content(step):
    weights = {"backbone.weight": torch.full((2, 3), float(step)), "n.num_batches_tracked": torch.tensor(step)}
    return weights, {"step": step, "optimizer": {"state": {0: {"exp_avg": torch.full((2,), float(step))}}}}


def _save(checkpoints, step, best=False):
    return checkpoints.save(step, *_content(step), best=best)


def _check(checkpoint, step):
    assert checkpoint.step == step
    assert torch.equal(checkpoint.weights()["backbone.weight"], torch.full((2, 3), float(step)))
    assert checkpoint.state()["step"] == step


def test_newest_and_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert (checkpoints.find("last"), checkpoints.find("best")) == (None, None)
    for step, best in ((10, False), (20, True), (30, False), (40, False)):
        _save(checkpoints, step, best)
    _check(checkpoints.find("last"), 40)
    _check(checkpoints.find("best"), 20)
    folders = sorted(p.name for p in checkpoints.folder.iterdir())
    assert folders == ["last.json", "step-00000020", "step-00000040"]


def test_one_step_may_be_saved_twice(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    first = _save(checkpoints, 10)
    second = _save(checkpoints, 10, best=True)
    assert first.folder != second.folder
    assert checkpoints.find("last") == checkpoints.find("best") == second
    _check(_save(checkpoints, 10), 10)


@pytest.mark.parametrize("best", [False, True])
def test_a_crash_at_any_moment(tmp_path, best):
    operations = 0
    while True:
        folder = tmp_path / str(operations)
        _save(Checkpoints(folder), 10, best=True)
        _save(Checkpoints(folder), 20)
        try:
            _save(Checkpoints(folder, Fragile(operations)), 30, best)
        except PowerCut:
            done = False
        else:
            done = True
        after = Checkpoints(folder)
        last, at_best = after.find("last"), after.find("best")
        _check(last, last.step)
        _check(at_best, at_best.step)
        assert (last.step, at_best.step) in {(20, 10), (30, 30 if best else 10)}
        # and it goes on, leaving nothing behind
        _save(after, 40)
        names = {p.name for p in folder.iterdir()}
        assert names == {"last.json", "step-00000040", at_best.folder.name}
        if done:
            break
        operations += 1
    assert operations > 10


def test_a_state_that_would_run_code_is_refused(tmp_path):
    checkpoint = _save(Checkpoints(tmp_path), 1)
    torch.save({"loss": torch.nn.Linear(1, 1)}, checkpoint.folder / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be read"):
        checkpoint.state()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"garbage" * 100])
def test_damaged_files_are_named(tmp_path, data):
    checkpoint = _save(Checkpoints(tmp_path), 1)
    for name, load in (("state.pt", checkpoint.state), ("model.safetensors", checkpoint.weights)):
        (checkpoint.folder / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            load()


@pytest.mark.parametrize(
    ("pointer", "message"),
    [
        ("", "does not name"),
        ("[]", "does not name"),
        ('{"last": 3, "best": null}', "does not name"),
        ('{"last": "../../etc", "best": null}', "does not name"),
        ('{"last": "step-00000099", "best": null}', "which is not there"),
    ],
)
def test_pointers_are_not_trusted(tmp_path, pointer, message):
    _save(Checkpoints(tmp_path), 1)
    (tmp_path / "last.json").write_text(pointer)
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path).find("last")


def test_pointer_is_readable_by_others(tmp_path):
    _save(Checkpoints(tmp_path), 7, best=True)
    assert json.loads((tmp_path / "last.json").read_text()) == {"last": "step-00000007", "best": "step-00000007"}
