# SPDX-License-Identifier: Apache-2.0
"""How good a trained network is on the samples of a store."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ditr_cache.pipelines.cloud_picture import cloud_picture
from ditr_cache.pipelines.confusion_picture import confusion_picture
from ditr_cache.pipelines.labelling import Labelled, Labeller, LabelOptions
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.pipelines.splat import axes, vantage
from ditr_cache.store.layout import block_file_name
from ditr_cache.training.inference import Cost
from ditr_cache.training.metrics import Scores, VisibilityConfusion

__all__ = ["Evaluate", "EvaluateReport"]

PANEL = (480, 640)
"""Height and width of a cloud's panel in pixels."""


@dataclass(frozen=True, slots=True)
class EvaluateReport:
    """What came out."""

    run: str
    checkpoint: str
    """Folder of the weights."""
    store: str
    digest: str
    """Content digest of the store."""
    protocol: str
    label_set: str
    samples: int
    points: int
    """Labelled or not."""
    visible: int
    """Of them seen by at least one of the drawn views."""
    scores: Scores
    unlabelled: tuple[str, ...]
    """Samples without labels: predicted, and not counted."""
    cost: Cost
    seconds: float
    device: str
    pictures: str | None
    """Where pictures were drawn."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Evaluate:
    """Labels the samples of some splits and compares.

    Args:
        run: Folder of the run.
        store: The store that it was trained from, or another of the same identity.
        options: Which samples, how, where.
        pictures: Folder for a confusion matrix, and truth, prediction and errors of every sample; None draws nothing.
        progress: Who listens; counts samples.
    """

    def __init__(
        self,
        run: Path,
        store: str | os.PathLike[str],
        options: LabelOptions | None = None,
        *,
        pictures: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._labeller = Labeller(run, store, options or LabelOptions())
        self._pictures, self._progress = pictures, progress or Silent()

    def run(self) -> EvaluateReport:
        """Label, compare, draw.

        Raises:
            CheckpointError: If there is no trained network.
            StoreError: If the store cannot be read.
        """
        labeller = self._labeller
        names = labeller.labels.classes
        confusion, unlabelled, points, visible = VisibilityConfusion(len(names)), [], 0, 0
        self._progress.begin(len(labeller.samples))
        try:
            for done in labeller:
                points += len(done.label)
                visible += int(done.visible.sum())
                if done.segment is None or (done.segment < 0).all():
                    unlabelled.append(done.id)
                else:
                    confusion.update(done.label, done.segment, done.visible)
                self._draw(done)
                self._progress.advance(1)
        finally:
            self._progress.end()
        scores = confusion.scores(names)
        self._draw_confusion(confusion.overall.counts.numpy(), scores)
        return EvaluateReport(
            run=str(labeller.run),
            checkpoint=str(labeller.checkpoint),
            store=str(labeller.store.root),
            digest=labeller.store.digest,
            protocol=labeller.options.protocol,
            label_set=labeller.labels.name,
            samples=len(labeller.samples),
            points=points,
            visible=visible,
            scores=scores,
            unlabelled=tuple(unlabelled),
            cost=labeller.cost,
            seconds=labeller.seconds,
            device=str(labeller.device),
            pictures=None if self._pictures is None else str(self._pictures),
        )

    def _draw(self, done: Labelled) -> None:
        if self._pictures is None:
            return
        self._pictures.mkdir(parents=True, exist_ok=True)
        points = self._labeller.points(done.id)
        up, ahead = axes(self._labeller.poses(done.id))
        view = vantage(points.coord, up, ahead, PANEL, points.normal)
        picture = cloud_picture(view, done.label, done.segment, self._labeller.labels.classes, done.id)
        picture.save(self._pictures / f"{block_file_name(done.id)}.png")

    def _draw_confusion(self, counts: np.ndarray, scores: Scores) -> None:
        if self._pictures is None:
            return
        self._pictures.mkdir(parents=True, exist_ok=True)
        title = (
            f"{self._labeller.options.protocol} protocol, {len(self._labeller.samples):,} samples: "
            f"mIoU {scores.overall.miou * 100:.1f}, accuracy {scores.overall.allacc * 100:.1f}"
        )
        confusion_picture(counts, self._labeller.labels.classes, title).save(self._pictures / "confusion.png")
