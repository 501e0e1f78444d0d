# SPDX-License-Identifier: Apache-2.0
"""Validation points, classified by training points in several ways: by features, and by what is known without images.

M training points, Q validation points, D channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ditr_cache.pipelines.probe_points import DrawnPoints
from ditr_cache.probing.linear import PENALTIES, LinearProbe, choose_penalty, held_out
from ditr_cache.probing.neighbours import vote
from ditr_cache.training.metrics import ConfusionMatrix, SegmentationScores

__all__ = ["STEPS", "Input", "MethodScores", "classify"]

STEPS = 3 * (len(PENALTIES) + 1) + 2
"""Calls of `tick`: three linear probes with a fit for each penalty and one of all points, two searches."""

Input = Literal["features", "points", "both"]
Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class MethodScores:
    """One way to classify, on the same points as the others."""

    input: Input
    """`points`: what is known without images."""
    method: Literal["linear", "neighbours"]
    channels: int
    """D."""
    penalty: float | None
    """Chosen for the linear probe."""
    scores: SegmentationScores
    seconds: float


def classify(
    train: DrawnPoints, val: DrawnPoints, names: Sequence[str], k: int, device: torch.device, tick: Tick
) -> Iterator[MethodScores]:
    """Linear probe and neighbours on features, the same on points alone, and a linear probe on both side by side.

    Args:
        train: Points to learn from, at least one.
        val: Points to classify, at least one.
        names: K class names.
        k: Neighbours.
        device: Where to compute.
        tick: Called `STEPS` times.
    """
    label_M, label_Q = torch.cat(train.label).to(device), torch.cat(val.label)
    held_M = held_out(torch.cat(train.group)).to(device)
    features, points = (
        [torch.cat(getattr(side, name)).to(device) for side in (train, val)] for name in ("feature", "plain")
    )
    both = [torch.cat(pair, 1) for pair in zip(features, points, strict=True)]
    inputs: dict[Input, list[Tensor]] = {"features": features, "points": points, "both": both}
    for name, (bank_MD, query_QD) in inputs.items():
        start = time.perf_counter()
        found_Q, penalty = _linear(bank_MD, label_M, held_M, query_QD, tick)
        seconds = time.perf_counter() - start
        scores = _scores(found_Q, label_Q, names)
        yield MethodScores(name, "linear", bank_MD.shape[1], penalty, scores, seconds)
        if name == "both":
            # in which units would distances be?
            return
        start = time.perf_counter()
        found_Q = _neighbours(bank_MD, label_M, query_QD, k, scaled=name == "points")
        tick()
        seconds = time.perf_counter() - start
        yield MethodScores(name, "neighbours", bank_MD.shape[1], None, _scores(found_Q, label_Q, names), seconds)


def _linear(bank_MD: Tensor, label_M: Tensor, held_M: Tensor, query_QD: Tensor, tick: Tick) -> tuple[Tensor, float]:
    """With the penalty that does best on held-out training points, fitted to all of them."""
    penalty = choose_penalty(bank_MD, label_M, held_M, tick=tick)
    found_Q = LinearProbe.fit(bank_MD, label_M, penalty).predict(query_QD)
    tick()
    return found_Q, penalty


def _neighbours(bank_MD: Tensor, label_M: Tensor, query_QD: Tensor, k: int, *, scaled: bool) -> Tensor:
    """By the cosine of features as they are; by distance where channels have units, each scaled to deviation 1."""
    if not scaled:
        return vote(bank_MD, label_M, query_QD, k)
    scale_D = bank_MD.std(0, correction=0)
    scale_D = torch.where(scale_D > 0, scale_D, 1.0)
    return vote(bank_MD / scale_D, label_M, query_QD / scale_D, k, metric="euclidean")


def _scores(found_Q: Tensor, label_Q: Tensor, names: Sequence[str]) -> SegmentationScores:
    confusion = ConfusionMatrix(len(names))
    confusion.update(found_Q.cpu(), label_Q)
    return confusion.scores(names)
