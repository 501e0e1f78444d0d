# SPDX-License-Identifier: Apache-2.0
"""The official formulas, against official counts and against a loop that anybody can read."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.training.metrics import ConfusionMatrix, VisibilityConfusion

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses.npz"


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_official_counts(kind):
    z = np.load(GOLDEN)
    prediction, target = z["logits"].argmax(1), z["labels"]
    matrix = ConfusionMatrix(20)
    for part in np.array_split(np.arange(len(target)), 3):
        pair = prediction[part], target[part]
        matrix.update(*(pair if kind == "numpy" else map(torch.from_numpy, pair)))
    for name in ("intersection", "union", "target"):
        np.testing.assert_array_equal(getattr(matrix, name), z[name])
    scores = matrix.scores()
    np.testing.assert_array_equal([c.iou for c in scores.classes], z["intersection"] / (z["union"] + 1e-10))
    assert scores.miou == pytest.approx((z["intersection"] / z["union"]).mean(), rel=1e-9)
    assert scores.macc == pytest.approx((z["intersection"] / (z["target"] + 1e-10)).mean(), rel=1e-9)
    assert scores.allacc == pytest.approx(z["intersection"].sum() / z["target"].sum(), rel=1e-9)
    # the last class has no labels: it pulls the official mean down and is no part of the other
    assert z["target"][-1] == 0
    assert scores.miou_present == pytest.approx(scores.miou * 20 / 19, rel=1e-9)


def naive(prediction, target, classes):
    """Sets of points, class by class."""
    labelled = {i for i, t in enumerate(target) if t != -1}
    iou, acc = [], []
    for c in range(classes):
        mine = {i for i in labelled if target[i] == c}
        given_ = {i for i in labelled if prediction[i] == c}
        iou.append(len(mine & given_) / (len(mine | given_) + 1e-10))
        acc.append(len(mine & given_) / (len(mine) + 1e-10))
    right = sum(prediction[i] == target[i] for i in labelled)
    return iou, acc, right / (len(labelled) + 1e-10)


@st.composite
def labellings(draw):
    classes = draw(st.integers(1, 6))
    n = draw(st.integers(0, 40))
    prediction = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    target = draw(st.lists(st.integers(-1, classes - 1), min_size=n, max_size=n))
    visible = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return classes, prediction, target, visible


@settings(max_examples=150, deadline=None)
@given(labellings())
def test_as_a_loop_over_points(case):
    classes, prediction, target, visible = case
    matrix = VisibilityConfusion(classes)
    matrix.update(np.array(prediction, np.int32), np.array(target, np.int64), np.array(visible, bool))
    scores = matrix.scores([f"c{i}" for i in range(classes)])
    everyone = range(len(target))
    for got, keep in (
        (scores.overall, list(everyone)),
        (scores.visible, [i for i in everyone if visible[i]]),
        (scores.invisible, [i for i in everyone if not visible[i]]),
    ):
        kept = [target[i] for i in keep]
        iou, acc, right = naive([prediction[i] for i in keep], kept, classes)
        assert [c.iou for c in got.classes] == pytest.approx(iou, rel=1e-12)
        assert [c.acc for c in got.classes] == pytest.approx(acc, rel=1e-12)
        assert got.miou == pytest.approx(np.mean(iou), rel=1e-12)
        assert got.macc == pytest.approx(np.mean(acc), rel=1e-12)
        assert got.allacc == pytest.approx(right, rel=1e-12)
        assert [c.points for c in got.classes] == [kept.count(c) for c in range(classes)]
        present = [iou[c] for c in range(classes) if c in kept]
        assert got.miou_present == pytest.approx(np.mean(present) if present else 0.0, rel=1e-12)


def test_predictions_of_unlabelled_points_do_not_count():
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([7, 0]), np.array([-1, 0]))
    assert matrix.counts.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([2], [0], "prediction 2 is not one of the classes 0 to 1"),
        ([-1], [0], "prediction -1"),
        ([0], [2], "label 2"),
        ([0], [-2], "label -2"),
        ([0, 1], [0], "2 predictions for 1 labels"),
        ([0.5], [0], "integers"),
        ([[0]], [[0]], "integers"),
    ],
)
def test_what_is_no_class_is_refused(prediction, target, message):
    matrix = ConfusionMatrix(2)
    with pytest.raises(ValueError, match=message):
        matrix.update(np.array(prediction), np.array(target))
    assert matrix.counts.sum() == 0


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="at least one"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="for 3 classes"):
        ConfusionMatrix(3, torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="zip"):
        ConfusionMatrix(2).scores(["one"])


def test_one_process_needs_no_group():
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([1]), np.array([0]))
    matrix.all_reduce()
    assert matrix.counts.tolist() == [[0, 1], [0, 0]]


def _part(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    matrix = VisibilityConfusion(3)
    matrix.update(np.array([0, 1, 2]), np.array([rank, 1, -1]), np.array([True, False, True]))
    matrix.all_reduce()
    torch.save((matrix.visible.counts, matrix.invisible.counts), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_add_up(tmp_path):
    mp.start_processes(_part, (str(tmp_path),), nprocs=2, start_method="spawn")
    for rank in range(2):
        visible, invisible = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert visible.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
        assert invisible.tolist() == [[0, 0, 0], [0, 2, 0], [0, 0, 0]]
