# SPDX-License-Identifier: Apache-2.0
"""Points drawn from the samples of a store, with their features and labels.

N points of a sample, n drawn ones, P rows, D feature channels, C channels of the points themselves, G samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditr_cache.errors import SampleError
from ditr_cache.probing.consistency import pair_cosines
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.seeding import rng_for, seed_for
from ditr_cache.types import FactoredFeatures, PointCloud, PointFeatures

__all__ = ["DrawnPoints", "PointDrawer", "draw_points", "evenly"]

Rule = Literal["random", "last", "first"]


@dataclass(slots=True, eq=False)
class DrawnPoints:
    """Points of some samples, sample after sample; lists hold a tensor a sample."""

    feature: list[Tensor] = field(default_factory=list)
    """`[n, D]` float32."""
    plain: list[Tensor] = field(default_factory=list)
    """`[n, C]` float32: what is known of the points without images."""
    label: list[Tensor] = field(default_factory=list)
    """`[n]` int64; empty where labels are not asked for."""
    group: list[Tensor] = field(default_factory=list)
    """`[n]` int64 number of the sample."""
    same: list[Tensor] = field(default_factory=list)
    random: list[Tensor] = field(default_factory=list)
    """Cosines of pairs from two views; see `pair_cosines`. Empty where they are not asked for."""
    samples: int = 0
    points: int = 0
    """Of the samples, drawn or not."""
    seen: int = 0
    """Of them seen by at least one of the views that were read."""

    def __len__(self) -> int:
        return sum(map(len, self.group))


class PointDrawer:
    """Reads samples and draws points among those that are seen (and have labels).

    Args:
        store: Where from.
        label_set: Array of labels; None: points need none.
        classes: K, where the store names its classes.
        plain: Which of `coord`, `color`, `normal`, `strength` are read beside the features.
        count: Views of each sample, taken evenly; None: all.
        rule: Which of the views that see a point serves it.
        seed: Of every draw.
    """

    def __init__(
        self,
        store: FeatureStore,
        label_set: str | None,
        classes: int | None,
        plain: Sequence[str],
        count: int | None,
        rule: Rule,
        seed: int,
    ) -> None:
        self._store, self._label_set, self._classes, self._plain = store, label_set, classes, plain
        self._count, self._rule, self._seed = count, rule, seed

    def draw(
        self,
        sample_ids: Sequence[str],
        points: int,
        *,
        balanced: bool = False,
        pairs: bool = False,
        tick: Callable[[], None] = lambda: None,
    ) -> DrawnPoints:
        """Draw at most `points` points, dealt out evenly to the samples; one with fewer gives all it has.

        Args:
            sample_ids: Where from.
            points: Of all samples together.
            balanced: Deal those of a sample out evenly to its classes, too.
            pairs: Also compare the features of the drawn points with those from another view.
            tick: Called after each sample.

        Raises:
            SampleError: If a label is no class.
            StoreError: If something cannot be read.
        """
        drawn = DrawnPoints()
        for number, sample_id in enumerate(sample_ids):
            share = points // len(sample_ids) + (number < points % len(sample_ids))
            self._add(drawn, sample_id, number, share, balanced=balanced, pairs=pairs)
            tick()
        return drawn

    def _add(self, drawn: DrawnPoints, sample_id: str, number: int, share: int, *, balanced: bool, pairs: bool) -> None:
        read = self._read(sample_id, self._rule, "views")
        index_N = read.features.index
        label_N = self._labels(read.points, sample_id)
        fit_N = index_N >= 0 if label_N is None else (index_N >= 0) & (label_N >= 0)
        rng = rng_for(self._seed, "probe", "points", sample_id)
        point_n = draw_points(np.flatnonzero(fit_N), label_N if balanced else None, share, rng)
        drawn.samples += 1
        drawn.points += len(index_N)
        drawn.seen += int((index_N >= 0).sum())
        if not len(point_n):
            return
        feature_nD = _rows(read.features, index_N[point_n])
        drawn.feature.append(feature_nD)
        drawn.group.append(torch.full((len(point_n),), number))
        if read.points is not None:
            drawn.plain.append(_plain(read.points, self._plain, point_n))
        if label_N is not None:
            drawn.label.append(torch.from_numpy(label_N[point_n].astype(np.int64)))
        if pairs:
            self._pair(drawn, sample_id, read, point_n, feature_nD, int(rng.integers(1 << 31)))

    def _pair(
        self,
        drawn: DrawnPoints,
        sample_id: str,
        read: PointFeatures,
        point_n: NDArray[np.int64],
        feature_nD: Tensor,
        shift: int,
    ) -> None:
        """Draw a view for every point once more, and keep those that got another one."""
        again = self._read(sample_id, "random", "other views")
        other_n = np.flatnonzero(again.view[point_n] != read.view[point_n])
        if len(other_n):
            feature_oD = _rows(again.features, again.features.index[point_n[other_n]])
            same, random = pair_cosines(feature_nD[torch.from_numpy(other_n)], feature_oD, shift)
            drawn.same.append(same)
            drawn.random.append(random)

    def _read(self, sample_id: str, rule: Rule, what: str) -> PointFeatures:
        # strided: the same views both times, whatever the seed
        seed = seed_for(self._seed, "probe", what, sample_id)
        return self._store.read(sample_id, count=self._count, pick="strided", rule=rule, seed=seed)

    def _labels(self, points: PointCloud | None, sample_id: str) -> NDArray[np.int32] | None:
        if self._label_set is None or points is None:
            return None
        label_N = points.segments[self._label_set]
        low, high = int(label_N.min(initial=-1)), int(label_N.max(initial=-1))
        if low < -1 or (self._classes is not None and high >= self._classes):
            raise SampleError(
                f"{self._label_set} has label {low if low < -1 else high}, which is no class", where=sample_id
            )
        return label_N


def draw_points(
    point_M: NDArray[np.int64], label_N: NDArray[np.int32] | None, count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Some of the points, ascending; all where there are no more than `count`.

    Args:
        point_M: Positions to draw among.
        label_N: `[N]` labels of all positions: the draw is dealt out evenly to the classes, and what rare ones lack
            goes to the others. None: every point alike.
        count: How many.
        rng: Where the draw comes from.
    """
    if len(point_M) <= count:
        return point_M
    point_M = rng.permutation(point_M)
    if label_N is None:
        return np.sort(point_M[:count])
    parts = [point_M[label_N[point_M] == label] for label in np.unique(label_N[point_M])]
    parts.sort(key=len)
    taken, left = [], count
    for i, part in enumerate(parts):
        taken.append(part[: left // (len(parts) - i)])
        left -= len(taken[-1])
    return np.sort(np.concatenate(taken))


def evenly(ids: Sequence[str], most: int | None) -> tuple[str, ...]:
    """At most so many, evenly spread over all; None: all."""
    n = len(ids) if most is None else min(most, len(ids))
    return tuple(ids[i * len(ids) // n] for i in range(n))


def _rows(features: FactoredFeatures, index_n: NDArray[Any]) -> Tensor:
    """`[n, D]` float32 features of some rows."""
    seat_n = index_n.astype(np.intp)
    row_view = None if features.row_view is None else features.row_view[seat_n]
    some = FactoredFeatures(features.rows[seat_n], None, features.affine, row_view).dequantise()
    return torch.from_numpy(np.asarray(some.rows, np.float32))


def _plain(points: PointCloud, names: Sequence[str], point_n: NDArray[np.int64]) -> Tensor:
    """`[n, C]`: metres from the middle of the sample's floor, colour and strength as stored, unit normals."""
    columns = []
    for name in names:
        column_N = getattr(points, name)
        if name == "coord":
            low_3, high_3 = column_N.min(0), column_N.max(0)
            column_N = column_N - np.array([*(low_3 + high_3)[:2] / 2, low_3[2]], np.float32)
        columns.append(column_N[point_n].reshape(len(point_n), -1).astype(np.float32))
    return torch.from_numpy(np.concatenate(columns, 1) if columns else np.zeros((len(point_n), 0), np.float32))
