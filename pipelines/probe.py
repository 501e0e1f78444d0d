# SPDX-License-Identifier: Apache-2.0
"""How good the features of a store are, before anything is trained on them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ditr_cache.errors import ConfigError
from ditr_cache.pipelines.probe_methods import STEPS, Input, MethodScores, classify
from ditr_cache.pipelines.probe_points import DrawnPoints, PointDrawer
from ditr_cache.pipelines.probe_sides import ProbeOptions, choose_sides
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.probing.consistency import Consistency, consistency
from ditr_cache.store.reader import open_store
from ditr_cache.training.distributed import pick_device

__all__ = ["DrawnSplit", "Probe", "ProbeOptions", "ProbeReport"]

MOST_NUMBERS = 10_000
"""Classes of a data set that does not name them."""


@dataclass(frozen=True, slots=True)
class DrawnSplit:
    """What was drawn of one side."""

    samples: int
    points: int
    """Of these samples."""
    seen: int
    """Of them seen by at least one of the views."""
    drawn: int


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What came out."""

    store: str
    manifest: str
    """sha256 of the manifest."""
    digest: str
    """Content digest of the store."""
    backbone: Mapping[str, Any]
    """Of the store's identity."""
    images: Mapping[str, Any]
    dtype: str
    """Of the stored features."""
    options: ProbeOptions
    label_set: str | None
    train: DrawnSplit | None
    val: DrawnSplit
    plain: tuple[str, ...]
    """What the input `points` consists of."""
    methods: tuple[MethodScores, ...]
    untrained: tuple[str, ...]
    """Classes that have validation points and no training points."""
    consistency: Consistency | None
    """None where no drawn point is seen by two views."""
    missing_blocks: int
    """Planned, and not there yet."""
    random_weights: bool
    device: str
    seconds: float

    def words(self, input_: Input) -> str:
        """What an input consists of."""
        points = ", ".join(self.plain)
        return {"features": "features", "points": points, "both": f"features, {points}"}[input_]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Probe:
    """Draws points of a training and a validation side, and classifies the latter by the former.

    Args:
        store: Folder or URL.
        options: Which points, how, where.
        progress: Who listens; counts samples that are read, fits, and searches for neighbours.

    Raises:
        StoreNotFoundError: If there is no store.
        ConfigError: If the store lacks a split, points or labels, or a sample would be on both sides.
    """

    def __init__(
        self, store: str | os.PathLike[str], options: ProbeOptions | None = None, *, progress: Progress | None = None
    ) -> None:
        self.options = options = options or ProbeOptions()
        self.store = open_store(store, cache_dir=options.cache_dir, cache_size=options.cache_size)
        self._progress: Progress = progress or Silent()
        self._device = pick_device(options.device)
        self._sides = choose_sides(self.store, options)

    def run(self) -> ProbeReport:
        """Draw, compare views, classify.

        Raises:
            ConfigError: If no point can be drawn.
            SampleError: If a label is no class.
            StoreError: If something cannot be read.
        """
        start, options = time.perf_counter(), self.options
        sides, labelled = self._sides, self._sides.label_set is not None
        names = self.store.class_names.get(sides.label_set or "")
        classes = None if names is None else len(names)
        drawer = PointDrawer(
            self.store, sides.label_set, classes, sides.plain, options.count, options.rule, options.seed
        )
        self._progress.begin(len(sides.train) + len(sides.val) + STEPS * labelled)
        try:
            train = drawer.draw(sides.train, options.points, balanced=options.balanced, tick=self._tick)
            val = drawer.draw(sides.val, options.points, pairs=True, tick=self._tick)
            methods = self._classify(train, val, names or self._numbers(train, val)) if labelled else ()
        finally:
            self._progress.end()
            self.store.close()
        identity = self.store.identity
        return ProbeReport(
            store=str(self.store.root),
            manifest=self.store.version,
            digest=self.store.digest,
            backbone=_section(identity, "backbone"),
            images=_section(identity, "images"),
            dtype=next((r.arrays["features"].dtype for r in self.store.manifest.blocks.values()), "-"),
            options=options,
            label_set=sides.label_set,
            train=_drawn(train) if sides.train else None,
            val=_drawn(val),
            plain=sides.plain,
            methods=methods,
            untrained=_untrained(train, methods),
            consistency=consistency(val.same, val.random),
            missing_blocks=len(self.store.manifest.planned),
            random_weights=_section(identity, "backbone").get("random_seed") is not None,
            device=str(self._device),
            seconds=time.perf_counter() - start,
        )

    def _tick(self) -> None:
        self._progress.advance(1)

    def _numbers(self, *sides: DrawnPoints) -> tuple[str, ...]:
        """Classes by number, where the store does not name them."""
        highest = max((int(label_n.max()) for side in sides for label_n in side.label), default=-1)
        if highest >= MOST_NUMBERS:
            raise ConfigError(
                f"{self._sides.label_set} goes up to {highest:,}, and no classes are named: these are no class numbers",
                where=self.store.root,
            )
        return tuple(map(str, range(highest + 1)))

    def _classify(self, train: DrawnPoints, val: DrawnPoints, names: Sequence[str]) -> tuple[MethodScores, ...]:
        for side, splits in ((train, self.options.train), (val, self.options.val)):
            if not len(side):
                raise ConfigError(
                    f"no point of split {' and '.join(splits)} has a label ({self._sides.label_set}) and is seen",
                    where=self.store.root,
                )
        return tuple(classify(train, val, names, self.options.k, self._device, self._tick))


def _drawn(side: DrawnPoints) -> DrawnSplit:
    return DrawnSplit(side.samples, side.points, side.seen, len(side))


def _untrained(train: DrawnPoints, methods: Sequence[MethodScores]) -> tuple[str, ...]:
    if not methods:
        return ()
    trained = set(torch.unique(torch.cat(train.label)).tolist())
    return tuple(c.name for k, c in enumerate(methods[0].scores.classes) if c.points and k not in trained)


def _section(identity: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = identity.get(name)
    return dict(found) if isinstance(found, Mapping) else {}
