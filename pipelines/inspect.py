# SPDX-License-Identifier: Apache-2.0
"""What is in a store, from its documents alone: no array is opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ditr_cache.errors import StoreNotFoundError
from ditr_cache.store.identity import read_identity
from ditr_cache.store.locate import open_storage
from ditr_cache.store.manifest import Manifest, build_manifest
from ditr_cache.store.reader import SampleInfo
from ditr_cache.store.receipt import FrameNote, Receipt
from ditr_cache.store.records import read_failures, read_plans, read_receipts
from ditr_cache.store.versions import read_manifest, split_version

__all__ = ["ArraySummary", "Info", "InfoReport", "SplitSummary"]


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """Samples of one split."""

    samples: int
    points: int


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """One array, over all blocks."""

    name: str
    dtype: str
    bytes: int
    """Of its objects, metadata included."""


@dataclass(frozen=True, slots=True)
class InfoReport:
    """What a store holds."""

    store: str
    format_version: int
    identity: Mapping[str, Any]
    digest: str
    manifest: str | None
    """sha256 of the current manifest; None if nothing has been finalised, and all is computed from the receipts."""
    blocks: int
    """Present."""
    missing: tuple[str, ...]
    """Planned and not present."""
    failed: Mapping[str, str]
    """Those of the missing that failed: block to reason."""
    not_finalised: int
    """Committed blocks that the manifest does not show yet."""
    samples: tuple[SampleInfo, ...]
    splits: Mapping[str, SplitSummary]
    points: int
    points_seen: int
    """By at least one view."""
    views: int
    rows: int
    hits: int
    views_per_point: float
    bytes: int
    """Of all objects of the present blocks."""
    arrays: tuple[ArraySummary, ...]
    dropped: tuple[FrameNote, ...]
    """Frames and samples that failed."""
    skipped: tuple[FrameNote, ...]
    """Frames without a valid pose."""
    int8_cosine_error_p99: float | None
    """Of the worst block."""
    random_weights: bool
    class_names: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    """What could not be found out."""

    def to_dict(self, *, samples: bool = True) -> dict[str, Any]:
        """Plain values.

        Args:
            samples: With every sample, or only how many there are.
        """
        plain: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return plain | {
            "samples": [asdict(s) for s in self.samples] if samples else len(self.samples),
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "arrays": [asdict(array) for array in self.arrays],
            "dropped": [note.model_dump() for note in self.dropped],
            "skipped": [note.model_dump() for note in self.skipped],
        }


class Info:
    """Reads the documents of a store.

    Args:
        store: A folder or a URL; with `@sha256:<version>` behind it, that version.

    Raises:
        StoreNotFoundError: If there is no store.
        ConfigError: If URLs of that kind cannot be read here.
    """

    def __init__(self, store: str | os.PathLike[str]) -> None:
        location, self._version = split_version(store)
        self._storage = open_storage(location)
        self._identity = read_identity(self._storage)

    def run(self) -> InfoReport:
        """Read and sum up.

        Raises:
            MetadataError: If a document is not valid.
            CorruptStoreError: If the manifest is damaged.
            RemoteError: If a server cannot be reached, or refuses.
        """
        # a version is what its manifest says
        whole = self._storage.listable and self._version is None
        receipts = list(read_receipts(self._storage)) if whole else []
        manifest, version = self._manifest(receipts)
        present = list(manifest.blocks.values())
        shown = {(r.block, r.uuid) for r in present} if version else set()
        newest = build_manifest(self._identity, (), receipts).blocks.values()
        missing = tuple(block.id for block in manifest.planned)
        failures = read_failures(self._storage) if self._storage.listable else {}
        samples = tuple(_samples(present))
        total = {k: sum(getattr(r.coverage, k) for r in present) for k in ("points", "seen", "hits", "rows", "views")}
        errors = [r.int8_cosine_error_p99 for r in present if r.int8_cosine_error_p99 is not None]
        backbone = manifest.identity.get("backbone")
        return InfoReport(
            store=str(self._storage.location),
            format_version=manifest.format_version,
            identity=manifest.identity,
            digest=manifest.digest,
            manifest=version,
            blocks=len(present),
            missing=missing,
            failed={block: failures[block] for block in missing if block in failures},
            not_finalised=sum((r.block, r.uuid) not in shown for r in newest),
            samples=samples,
            splits=_splits(samples),
            points=total["points"],
            points_seen=total["seen"],
            views=total["views"],
            rows=total["rows"],
            hits=total["hits"],
            views_per_point=round(total["hits"] / total["points"], 3) if total["points"] else 0.0,
            bytes=sum(r.size for r in present),
            arrays=_arrays(present),
            dropped=tuple(note for r in present for note in r.dropped),
            skipped=tuple(note for r in present for note in r.skipped),
            int8_cosine_error_p99=max(errors, default=None),
            random_weights=isinstance(backbone, Mapping) and backbone.get("random_seed") is not None,
            class_names=manifest.dataset.class_names,
            notes=()
            if self._storage.listable
            else ("a web server cannot tell what failed, and what is not finalised yet",),
        )

    def _manifest(self, receipts: Iterable[Receipt]) -> tuple[Manifest, str | None]:
        """The current one, or the one that `finalize` would write if there is none: a first run may still be going."""
        try:
            return read_manifest(self._storage, self._version)
        except StoreNotFoundError:
            if self._version is not None or not self._storage.listable:
                raise
            return build_manifest(self._identity, read_plans(self._storage), receipts), None


def _samples(receipts: Iterable[Receipt]) -> Iterable[SampleInfo]:
    for receipt in receipts:
        for s in receipt.samples:
            yield SampleInfo(
                s.id, s.split, s.points, s.views, s.coord_sha256, s.coord_sha256_sorted, block=receipt.block
            )


def _splits(samples: Iterable[SampleInfo]) -> dict[str, SplitSummary]:
    found: dict[str, list[int]] = {}
    for sample in samples:
        found.setdefault(sample.split, []).append(sample.points)
    return {split: SplitSummary(len(points), sum(points)) for split, points in sorted(found.items())}


def _arrays(receipts: Iterable[Receipt]) -> tuple[ArraySummary, ...]:
    """Largest first."""
    found: dict[tuple[str, str], int] = {}
    for receipt in receipts:
        for name, entry in receipt.arrays.items():
            size = entry.metadata.size + (entry.data.size if entry.data else 0)
            found[name, entry.dtype] = found.get((name, entry.dtype), 0) + size
    arrays = [ArraySummary(name, dtype, size) for (name, dtype), size in found.items()]
    return tuple(sorted(arrays, key=lambda a: (-a.bytes, a.name)))
