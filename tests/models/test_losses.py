# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.models import losses
from ditr_cache.models.losses import cosine_loss, cross_entropy, label_weight, lovasz_softmax

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_labels(points, classes, seed=0):
    return torch.randint(-1, classes, (points,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("at_once", [1, 1 << 23])
def test_lovasz_is_the_official_one(golden, monkeypatch, at_once):
    monkeypatch.setattr(losses, "_SORTED_AT_ONCE", at_once)
    logits = golden["logits"].requires_grad_()
    (grad,) = torch.autograd.grad(lovasz_softmax(logits, golden["labels"]), logits)
    torch.testing.assert_close(lovasz_softmax(logits, golden["labels"]).detach(), golden["lovasz"], rtol=0, atol=1e-6)
    # gradients are of order 1e-5: 1e-6 of them must be nothing to speak of
    torch.testing.assert_close(grad, golden["lovasz_grad"], rtol=1e-4, atol=1e-8)


def test_cross_entropy_and_cosine_are_the_official_ones(golden):
    entropy = cross_entropy(golden["logits"].detach(), golden["labels"])
    torch.testing.assert_close(entropy, golden["cross_entropy"], rtol=0, atol=1e-6)
    cosine = cosine_loss(golden["cos_pred"], golden["cos_target"])
    torch.testing.assert_close(cosine, golden["cosine_loss"], rtol=0, atol=1e-6)


def plain_lovasz(logits, labels):
    """By the definition: errors from large to small times what the Jaccard loss of the wrong ones gains."""
    keep = labels >= 0
    chance, labels = logits.softmax(1)[keep], labels[keep]
    total, present = 0.0, labels.unique().tolist()
    for k in present:
        truth = {i for i, label in enumerate(labels.tolist()) if label == k}
        error = torch.where(labels == k, 1 - chance[:, k], chance[:, k])
        wrong, before = set(), 0.0
        for i in error.argsort(descending=True, stable=True).tolist():
            wrong.add(i)
            # predicted = truth with the wrong ones flipped
            jaccard = 1 - len(truth - wrong) / len(truth | wrong)
            total = total + error[i] * (jaccard - before)
            before = jaccard
    return total / len(present)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.integers(1, 5), st.integers(0, 10_000))
def test_lovasz_by_its_definition(points, classes, seed):
    logits = (randn(points, classes, seed=seed) * 3).requires_grad_()
    labels = random_labels(points, classes, seed + 1)
    labels[0] = 0
    ours, plain = lovasz_softmax(logits, labels), plain_lovasz(logits, labels)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    (grad,), (expected,) = (torch.autograd.grad(loss, logits) for loss in (ours, plain))
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)


def test_lovasz_of_perfect_and_of_hopeless_predictions():
    labels = torch.tensor([0, 1, 1, 2])
    sure = torch.eye(3, dtype=torch.float64) * 200
    torch.testing.assert_close(lovasz_softmax(sure[labels], labels), torch.zeros((), dtype=torch.float64))
    assert lovasz_softmax(sure[(labels + 1) % 3], labels) == pytest.approx(1)


def test_class_weights_are_torchs():
    logits, labels = randn(50, 4), random_labels(50, 4)
    weight = torch.tensor([0.5, 2.0, 3.0, 1.0])
    expected = torch.nn.functional.cross_entropy(logits, labels, weight.double(), ignore_index=-1)
    torch.testing.assert_close(cross_entropy(logits, labels, weight=weight), expected)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 3.0, 1.0], dtype=torch.float64)])
def test_normalised_over_processes_it_is_the_mean_of_all_points(weight):
    logits, labels = randn(50, 4), random_labels(50, 4)
    parts = [slice(0, 10), slice(10, 50)]
    mean_weight = sum(label_weight(labels[p], weight=weight) for p in parts) / len(parts)
    ranks = [cross_entropy(logits[p], labels[p], weight=weight, denominator=mean_weight) for p in parts]
    torch.testing.assert_close(sum(ranks) / len(parts), cross_entropy(logits, labels, weight=weight))


@pytest.mark.parametrize("loss", [cross_entropy, lovasz_softmax])
@pytest.mark.parametrize("points", [0, 6])
def test_nothing_labelled_is_zero_with_zero_gradient(loss, points):
    logits = randn(points, 4).requires_grad_()
    value = loss(logits, torch.full((points,), -1))
    value.backward()
    assert value == 0
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", [cross_entropy, lovasz_softmax])
def test_ignored_points_and_other_ignore_labels(loss):
    logits, labels = randn(30, 4), random_labels(30, 4)
    seen = labels >= 0
    expected = loss(logits[seen], labels[seen])
    torch.testing.assert_close(loss(logits, labels), expected)
    torch.testing.assert_close(loss(logits, labels.masked_fill(~seen, 255).int(), ignore=255), expected)


def test_class_weights_beside_an_ignore_label_that_is_no_class():
    logits, labels, weight = randn(30, 4), random_labels(30, 4), torch.tensor([0.5, 2.0, 3.0, 1.0])
    other = labels.masked_fill(labels < 0, 255)
    expected = cross_entropy(logits, labels, weight=weight)
    torch.testing.assert_close(cross_entropy(logits, other, ignore=255, weight=weight), expected)


@pytest.mark.parametrize("loss", [cross_entropy, lovasz_softmax])
def test_narrow_scores_are_widened(loss):
    logits = randn(500, 4, dtype=torch.float32).bfloat16()
    labels = random_labels(500, 4)
    value = loss(logits, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.float(), labels))


def test_cosine_counts_visible_points_alone():
    pred, target = randn(5, 3).requires_grad_(), randn(5, 3, seed=1)
    target[[1, 3]] = 0
    seen = [0, 2, 4]
    loss = cosine_loss(pred, target)
    cos = (pred[seen] * target[seen]).sum(1) / pred[seen].norm(dim=1) / target[seen].norm(dim=1)
    torch.testing.assert_close(loss, (1 - cos).mean())
    loss.backward()
    assert (pred.grad.norm(dim=1) > 0).tolist() == [True, False, True, False, True]
    torch.testing.assert_close(
        cosine_loss(target * 5, target.float().half()), torch.zeros_like(loss), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("points", [0, 4])
def test_cosine_of_nothing_visible_is_zero_with_zero_gradient(points):
    pred = randn(points, 3).requires_grad_()
    loss = cosine_loss(pred, torch.zeros(points, 3))
    loss.backward()
    assert loss == 0
    torch.testing.assert_close(pred.grad, torch.zeros_like(pred))
