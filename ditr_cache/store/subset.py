# SPDX-License-Identifier: Apache-2.0
"""Which part of a store is wanted, and what the documents of that part say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from ditr_cache.errors import SampleNotFoundError
from ditr_cache.store.choose import Draw, draw_views
from ditr_cache.store.manifest import Manifest, Plan, PlannedBlock, PlannedSample, SourceEntry
from ditr_cache.store.receipt import Receipt

__all__ = ["Part", "Selection", "block_plan", "joined", "part_of", "select"]

Views = Mapping[str, tuple[str, ...]]
"""Sample id -> names of its base views, both in the order of the block."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is wanted of a store."""

    samples: tuple[str, ...] = ()
    """Patterns of sample ids, as a shell has them; none: all."""
    views: int | None = None
    """So many base views of a sample, spread as the official evaluation does, with all their variants; None: all."""
    points: bool = True
    """False: neither coordinates nor what belongs to points."""
    dtype: Literal["int8"] | None = None
    """What float16 features are converted to; None: they are left as they are."""

    def identity(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Identity of what is taken from a store of that identity."""
        features = dict(identity.get("features") or {})
        if not self.points:
            features["points"] = False
        if self.dtype is not None:
            features["dtype"] = self.dtype
        return {**identity, "features": features} if features else dict(identity)

    def of(self, samples: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """What is wanted of some samples with these base views."""
        return {sample: self._spread(views) for sample, views in samples.items() if self.matches(sample)}

    def matches(self, sample: str) -> bool:
        """Whether a sample is wanted."""
        return not self.samples or any(fnmatchcase(sample, pattern) for pattern in self.samples)

    def _spread(self, views: tuple[str, ...]) -> tuple[str, ...]:
        chosen = draw_views(range(len(views)), self.views, "strided", Draw(0))
        return tuple(views[i] for i in chosen)


@dataclass(frozen=True, slots=True)
class Part:
    """What of a store is wanted, and what it will be called."""

    identity: Mapping[str, Any]
    plan: Plan
    blocks: Mapping[str, Views]
    """What is wanted of every block that is present."""
    whole: bool
    """Whether that is all there is, unchanged."""


def select(manifest: Manifest, version: str, selection: Selection) -> Part:
    """What a selection takes of a store.

    Args:
        manifest: The store's.
        version: Its sha256.
        selection: What is wanted.

    Raises:
        SampleNotFoundError: If a pattern fits no sample.
        ConfigError: If fewer than one view is asked for.
    """
    present = {receipt.block: part_of(receipt) for receipt in manifest.blocks.values()}
    missing = {block.id: {s.id: s.views for s in block.samples} for block in manifest.planned}
    known = [sample for samples in (*present.values(), *missing.values()) for sample in samples]
    for pattern in selection.samples:
        if not any(fnmatchcase(sample, pattern) for sample in known):
            some = ", ".join(known[:3]) or "none"
            raise SampleNotFoundError(
                f"no sample fits {pattern!r}", hint=f"The store has {len(known)}: {some}{', ...' * (len(known) > 3)}"
            )
    blocks = {block: wanted for block, samples in present.items() if (wanted := selection.of(samples))}
    planned = {block: wanted for block, samples in missing.items() if (wanted := selection.of(samples))}
    identity = selection.identity(manifest.identity)
    # blocks without samples are in no part, but they are in the whole
    whole = identity == manifest.identity and all(selection.of(samples) == samples for samples in present.values())
    whole = whole and all(selection.of(samples) == samples for samples in missing.values())
    sources = manifest.sources
    if whole:
        blocks, planned = present, missing
    else:
        sources += (
            SourceEntry(
                version=version,
                digest=manifest.digest,
                samples=selection.samples,
                views=selection.views,
                points=selection.points,
                dtype=selection.dtype,
            ),
        )
    splits = {s.id: s.split for receipt in manifest.blocks.values() for s in receipt.samples}
    splits |= {s.id: s.split for block in manifest.planned for s in block.samples}
    plan = Plan(
        dataset=manifest.dataset,
        blocks=tuple(block_plan(block, views, splits) for block, views in {**planned, **blocks}.items()),
        sources=sources,
    )
    return Part(identity, plan, blocks, whole)


def part_of(receipt: Receipt) -> dict[str, tuple[str, ...]]:
    """All that a block has."""
    return {sample.id: sample.views for sample in receipt.samples}


def block_plan(block: str, views: Views, splits: Mapping[str, str]) -> PlannedBlock:
    """A plan of a block.

    Args:
        block: Its id.
        views: Its samples and their views.
        splits: Split of every sample.
    """
    samples = (PlannedSample(id=sample, split=splits[sample], views=names) for sample, names in views.items())
    return PlannedBlock(id=block, samples=tuple(samples))


def joined(receipt: Receipt, *parts: Views) -> dict[str, tuple[str, ...]] | None:
    """Everything that some parts of a block have, in the order of the block; None if it does not have all of that."""
    wanted = {sample: {view for part in parts for view in part.get(sample, ())} for part in parts for sample in part}
    found = {
        sample.id: tuple(view for view in sample.views if view in wanted[sample.id])
        for sample in receipt.samples
        if sample.id in wanted
    }
    whole = found.keys() == wanted.keys() and all(len(found[sample]) == len(wanted[sample]) for sample in found)
    return found if whole else None
