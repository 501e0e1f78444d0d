# SPDX-License-Identifier: Apache-2.0
"""Which samples of a store a probe learns from, which it classifies, and what is known of their points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ditr_cache.errors import ConfigError
from ditr_cache.pipelines.probe_points import Rule, evenly
from ditr_cache.store.locate import DEFAULT_CACHE_SIZE
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.dataset import split_samples

__all__ = ["ProbeOptions", "Sides", "choose_sides"]

PLAIN = ("coord", "color", "normal", "strength")
"""What is known of a point without images, as far as the store has it."""


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """Which points, how compared, where."""

    train: tuple[str, ...] = ("train",)
    """Splits that are learned from."""
    val: tuple[str, ...] = ("val",)
    """Splits that are classified."""
    label_set: str | None = None
    """Array of labels; None: the only one."""
    samples: int | None = 200
    """At most so many samples of each side, evenly spread; None: all."""
    points: int = 20_000
    """Points drawn of each side, dealt out evenly to its samples."""
    balanced: bool = False
    """Deal the training points of a sample out evenly to its classes."""
    count: int | None = 10
    """Views of each sample, taken evenly as in evaluation; None: all."""
    rule: Rule = "random"
    """Which of the views that see a point serves it."""
    k: int = 20
    """Neighbours."""
    consistency_only: bool = False
    """Compare views alone, over all samples: needs no labels and no splits."""
    seed: int = 0
    """Of every draw."""
    device: str = "auto"
    """Where the probes compute; `auto` takes CUDA where there is one."""
    cache_dir: Path | None = None
    """Where to keep what was read from a server; None: nowhere."""
    cache_size: int = DEFAULT_CACHE_SIZE
    """Bytes that the cache may take."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Samples by what they are for."""

    train: tuple[str, ...]
    """Empty where views are compared alone."""
    val: tuple[str, ...]
    label_set: str | None
    """None where views are compared alone."""
    plain: tuple[str, ...]
    """What is known of points without images, in all of these samples."""


def choose_sides(store: FeatureStore, options: ProbeOptions) -> Sides:
    """Look up what the options name.

    Raises:
        ConfigError: If the store lacks a split, points or labels, or a sample would be on both sides.
    """
    if options.consistency_only:
        some = evenly(tuple(store.samples), options.samples)
        if not some:
            raise ConfigError("the store has no samples", where=store.root)
        return Sides((), some, None, ())
    train, val = (evenly(_split(store, splits), options.samples) for splits in (options.train, options.val))
    _check_apart(train, val)
    have = _common_arrays(store, (*train, *val))
    return Sides(train, val, _label_set(store, have, options.label_set), tuple(name for name in PLAIN if name in have))


def _split(store: FeatureStore, splits: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return split_samples(store, splits)
    except ConfigError as error:
        hint = f"{error.hint}. Name them with --train and --val; --consistency-only needs none."
        raise ConfigError(error.what, where=error.where, hint=hint) from None


def _check_apart(train: Sequence[str], val: Sequence[str]) -> None:
    both = sorted(set(train) & set(val))
    if both:
        raise ConfigError(
            f"{len(both)} samples are on both sides, {both[0]} among them: the probe would be asked what it was told",
            hint="Name different splits with --train and --val.",
        )


def _common_arrays(store: FeatureStore, sample_ids: Iterable[str]) -> set[str]:
    """Names of the arrays that every block of these samples has."""
    blocks = {store.samples.locate(sample_id)[0].block for sample_id in sample_ids}
    return set.intersection(*(set(store.manifest.blocks[block].arrays) for block in blocks))


def _label_set(store: FeatureStore, have: set[str], wanted: str | None) -> str:
    if "coord" not in have:
        raise ConfigError(
            "this store has no points, and so no labels",
            where=store.root,
            hint="Join it with the data set first: ditr-cache attach STORE SOURCE OUT. "
            "Or compare views alone: --consistency-only",
        )
    sets = sorted(name for name in have if name.startswith("segment"))
    if wanted in sets:
        return str(wanted)
    if wanted is None and len(sets) == 1:
        return sets[0]
    if not sets:
        raise ConfigError(
            "the store has no labels", where=store.root, hint="Views can be compared without: --consistency-only"
        )
    what = f"the store has no labels {wanted!r}" if wanted is not None else "the store has several label sets"
    raise ConfigError(what, where=store.root, hint=f"Name one with --labels: {', '.join(sets)}")
