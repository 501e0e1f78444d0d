# SPDX-License-Identifier: Apache-2.0
"""How good a segmentation is: counts that add up over samples and processes, and the official formulas over them.

Shape letters: N points, K classes. The official code sums intersections, unions and targets over the whole data set
and only then divides; a confusion matrix holds all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ditr_cache.errors import ConfigError, DatasetError

__all__ = [
    "ClassScore",
    "ConfusionMatrix",
    "Scores",
    "SegmentationScores",
    "VisibilityConfusion",
]

EPSILON = 1e-10
"""Added to every denominator, as the official code does: a class that never occurs scores 0, not NaN."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class."""

    name: str
    iou: float
    """Intersection over union."""
    acc: float
    """Share of its points that were found (recall)."""
    points: int
    """Labelled points."""
    predicted: int
    """Labelled points that were given this class."""


@dataclass(frozen=True, slots=True)
class SegmentationScores:
    """Means over classes, and the classes."""

    miou: float
    """Official mIoU: mean over ALL classes; one that never occurs counts as 0."""
    macc: float
    """Mean over all classes of the share of points found."""
    allacc: float
    """Share of all labelled points that are right."""
    miou_present: float
    """Mean IoU over the classes that have labelled points; what a small data set can be judged by."""
    macc_present: float
    """Mean accuracy over the classes that have labelled points."""
    points: int
    """Labelled points."""
    classes: tuple[ClassScore, ...]

    @property
    def main(self) -> float:
        """The official mIoU."""
        return self.miou

    def curves(self) -> dict[str, float]:
        """Means, and the IoU of every class."""
        means = {f"val/{name}": getattr(self, name) for name in ("miou", "macc", "allacc")}
        return means | {f"iou/{entry.name}": entry.iou for entry in self.classes}

    def __str__(self) -> str:
        return f"mIoU {100 * self.miou:.1f}, mAcc {100 * self.macc:.1f}, allAcc {100 * self.allacc:.1f}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Scores:
    """Of all points, and of those that at least one drawn view sees and those that none sees (paper Table 8)."""

    overall: SegmentationScores
    visible: SegmentationScores
    invisible: SegmentationScores

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class ConfusionMatrix:
    """`counts[target, prediction]` over all labelled points seen so far.

    Args:
        classes: K.
        counts: `[K, K]` int64 to start from; zeros by default.

    Raises:
        ConfigError: If there is no class, or `counts` has another shape.
    """

    def __init__(self, classes: int, counts: torch.Tensor | None = None) -> None:
        if classes < 1:
            raise ConfigError(f"{classes} classes: at least one is needed")
        if counts is not None and tuple(counts.shape) != (classes, classes):
            raise ConfigError(f"counts of shape {tuple(counts.shape)} for {classes} classes")
        self.classes = classes
        self.counts = torch.zeros((classes, classes), dtype=torch.int64) if counts is None else counts.to(torch.int64)
        """`[K, K]` int64 on the CPU."""

    def update(
        self, prediction: torch.Tensor | NDArray[Any], target: torch.Tensor | NDArray[Any], ignore: int = -1
    ) -> None:
        """Count points. Where `target` is `ignore`, whatever was predicted counts nowhere.

        Args:
            prediction: `[N]` integers in 0..K-1.
            target: `[N]` integers in 0..K-1, or `ignore`.
            ignore: The label that means "no label".

        Raises:
            DatasetError: If the lengths differ, or a label or the prediction of a labelled point is no class.
        """
        prediction_N, target_N = _integers(prediction, "prediction"), _integers(target, "target")
        if prediction_N.shape != target_N.shape:
            raise DatasetError(f"{len(prediction_N)} predictions for {len(target_N)} labels")
        labelled_N = target_N != ignore
        prediction_N, target_N = prediction_N[labelled_N], target_N[labelled_N]
        for name, x_N in (("prediction", prediction_N), ("label", target_N)):
            low, high = (int(v) for v in torch.aminmax(x_N)) if len(x_N) else (0, 0)
            if low < 0 or high >= self.classes:
                wrong = low if low < 0 else high
                raise DatasetError(f"{name} {wrong} is not one of the classes 0 to {self.classes - 1}")
        pairs = torch.bincount(target_N * self.classes + prediction_N, minlength=self.classes**2)
        self.counts += pairs.reshape(self.classes, self.classes).cpu()

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        return ConfusionMatrix(self.classes, self.counts + other.counts)

    def all_reduce(self) -> None:
        """Sum over all processes, in place. Nothing happens where none are joined."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts)

    @property
    def intersection(self) -> NDArray[np.int64]:
        """`[K]` points of a class that were given it."""
        found: NDArray[np.int64] = self.counts.diagonal().numpy().copy()
        return found

    @property
    def target(self) -> NDArray[np.int64]:
        """`[K]` labelled points of a class."""
        found: NDArray[np.int64] = self.counts.sum(1).numpy()
        return found

    @property
    def predicted(self) -> NDArray[np.int64]:
        """`[K]` labelled points that were given a class."""
        found: NDArray[np.int64] = self.counts.sum(0).numpy()
        return found

    @property
    def union(self) -> NDArray[np.int64]:
        """`[K]` points that have a class or were given it."""
        return self.target + self.predicted - self.intersection

    def scores(self, names: Sequence[str] | None = None) -> SegmentationScores:
        """The official formulas.

        IoU_c = I / (U + 1e-10), acc_c = I / (T + 1e-10), allAcc = sum I / (sum T + 1e-10), means over all classes.

        Args:
            names: Of the classes; their numbers by default.
        """
        intersection, target = self.intersection, self.target
        iou_K = intersection / (self.union + EPSILON)
        acc_K = intersection / (target + EPSILON)
        present_K = target > 0
        rows = zip(
            names if names is not None else map(str, range(self.classes)),
            iou_K.tolist(),
            acc_K.tolist(),
            target.tolist(),
            self.predicted.tolist(),
            strict=True,
        )
        return SegmentationScores(
            miou=float(iou_K.mean()),
            macc=float(acc_K.mean()),
            allacc=float(intersection.sum() / (target.sum() + EPSILON)),
            miou_present=float(iou_K[present_K].mean()) if present_K.any() else 0.0,
            macc_present=float(acc_K[present_K].mean()) if present_K.any() else 0.0,
            points=int(target.sum()),
            classes=tuple(ClassScore(*row) for row in rows),
        )


class VisibilityConfusion:
    """Two matrices, of visible and of invisible points; their sum is that of all.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        self.visible, self.invisible = ConfusionMatrix(classes), ConfusionMatrix(classes)

    @property
    def overall(self) -> ConfusionMatrix:
        """Of all points."""
        return self.visible + self.invisible

    def update(
        self,
        prediction: torch.Tensor | NDArray[Any],
        target: torch.Tensor | NDArray[Any],
        visible: torch.Tensor | NDArray[np.bool_],
        ignore: int = -1,
    ) -> None:
        """Count points.

        Args:
            prediction: `[N]` integers in 0..K-1.
            target: `[N]` integers in 0..K-1, or `ignore`.
            visible: `[N]` whether at least one drawn view sees the point.
            ignore: The label that means "no label".

        Raises:
            DatasetError: As `ConfusionMatrix.update`.
        """
        prediction_N, target_N = torch.as_tensor(prediction), torch.as_tensor(target)
        seen_N = torch.as_tensor(visible, dtype=torch.bool, device=target_N.device)
        self.visible.update(prediction_N[seen_N], target_N[seen_N], ignore)
        self.invisible.update(prediction_N[~seen_N], target_N[~seen_N], ignore)

    def all_reduce(self) -> None:
        """Sum over all processes, in place."""
        self.visible.all_reduce()
        self.invisible.all_reduce()

    def scores(self, names: Sequence[str] | None = None) -> Scores:
        """By the official formulas."""
        return Scores(self.overall.scores(names), self.visible.scores(names), self.invisible.scores(names))


def _integers(x: torch.Tensor | NDArray[Any], what: str) -> torch.Tensor:
    tensor = torch.as_tensor(x)
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool or tensor.ndim != 1:
        raise DatasetError(f"{what} must be a list of integers, not {tensor.dtype} of shape {tuple(tensor.shape)}")
    return tensor.to(torch.int64)
