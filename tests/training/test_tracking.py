# SPDX-License-Identifier: Apache-2.0
import json
import math
import sys
import time

import pytest
import torch

from ditr_cache.training.metrics import ConfusionMatrix
from ditr_cache.training.tracking import (
    EvaluationReport,
    JsonLog,
    Nobody,
    StepReport,
    TensorBoard,
    Trackers,
    tensorboard_or_nobody,
)


def _step(step, loss=1.5):
    return StepReport(step, 0, 1e-3, 0.1, 0.2, 1000, loss)


def _evaluation(step):
    scores = ConfusionMatrix(2, torch.tensor([[3, 1], [0, 4]])).scores(("floor", "wall"))
    return EvaluationReport(step, 0, scores, 1.0, True)


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_has_a_line_for_every_reading(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.step(_step(step, None if step == 2 else 0.1 + step))
    log.evaluation(_evaluation(3))
    log.close()
    first, second, third = _lines(tmp_path / "log.jsonl")
    assert [first["step"], second["step"]] == [1, 3]
    assert first["loss"] == 0.1 + 1
    assert third["kind"] == "evaluation"
    assert third["scores"]["classes"][1]["name"] == "wall"


def test_times_are_means_since_the_last_reading(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl")
    for step, seconds, loss in ((1, 1.0, None), (2, 3.0, 0.5), (3, 7.0, math.nan)):
        log.step(StepReport(step, 0, 1e-3, seconds, 2 * seconds, 10, loss, math.inf))
    log.close()
    first, second = _lines(tmp_path / "log.jsonl")
    assert (first["data_s"], first["step_s"], first["loss"]) == (2.0, 4.0, 0.5)
    assert (second["data_s"], second["loss"], second["grad_norm"]) == (7.0, None, None)


def test_log_is_cut_back_to_what_a_checkpoint_vouches_for(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLog(path)
    log.step(_step(1))
    log.settle()
    keep = log.length()
    log.step(_step(2))
    log.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "st')  # a kill in the middle of a line
    again = JsonLog(path, keep)
    assert again.length() == keep
    again.step(_step(2, 9.0))
    again.close()
    assert [(line["step"], line["loss"]) for line in _lines(path)] == [(1, 1.5), (2, 9.0)]


def test_log_that_is_shorter_than_vouched_for_is_not_padded(tmp_path):
    (tmp_path / "log.jsonl").write_bytes(b"{}\n")
    log = JsonLog(tmp_path / "log.jsonl", 100)
    log.step(_step(1))
    log.close()
    assert len(_lines(tmp_path / "log.jsonl")) == 2


def _scalars(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(e.step, round(e.value, 3)) for e in events.Scalars(tag)]


def test_tensorboard_hides_what_no_checkpoint_vouches_for(tmp_path):
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path)
    for step in (1, 2, 3, 4):
        board.step(_step(step, float(step)))
    board.step(_step(5, None))
    board.evaluation(_evaluation(4))
    board.close()
    assert _scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert _scalars(tmp_path, "iou/floor") == [(4, 0.75)]
    # files are read in the order of their names, which hold the second, and after it a count that is not padded
    time.sleep(1.1)
    again = TensorBoard(tmp_path, done=2)
    again.step(_step(3, 30.0))
    again.settle()
    again.close()
    assert _scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_without_tensorboard_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    board = tensorboard_or_nobody(tmp_path / "tensorboard")
    assert type(board) is Nobody
    board.step(_step(1))
    assert not (tmp_path / "tensorboard").exists()


def test_all_are_told_in_order():
    heard = []

    class Ear(Nobody):
        def __init__(self, name):
            self.name = name

        def __getattribute__(self, what):
            if what in ("begin", "step", "evaluation", "note", "settle", "close"):
                return lambda *args: heard.append((object.__getattribute__(self, "name"), what, args))
            return object.__getattribute__(self, what)

    both = Trackers([Ear("a"), Ear("b")])
    both.begin(1, 2)
    both.note("x")
    both.settle()
    both.close()
    assert heard == [
        (n, w, a) for w, a in (("begin", (1, 2)), ("note", ("x",)), ("settle", ()), ("close", ())) for n in "ab"
    ]
