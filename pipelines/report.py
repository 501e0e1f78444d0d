# SPDX-License-Identifier: Apache-2.0
"""What stage one says when it is done, and before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ditr_cache.pipelines.outcome import BlockOutcome
from ditr_cache.store.manifest import Manifest
from ditr_cache.store.receipt import FrameNote

__all__ = ["Estimate", "ExtractReport", "coverage", "summarise"]


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """One run, and the state of the store after it."""

    blocks_planned: int
    """Of this run's shard."""
    blocks_done: int
    """Committed by this run."""
    blocks_skipped: int
    """There already, or committed by another run meanwhile."""
    blocks_failed: int
    images: int
    """Stored by this run, variants included."""
    seconds: float
    images_per_second: float
    points: int
    """From here on: of all of the store's blocks."""
    points_seen: int
    hits: int
    rows: int
    views_per_point: float
    bytes: int
    dropped: tuple[FrameNote, ...]
    """Frames and samples that failed in this run's blocks."""
    skipped: tuple[FrameNote, ...]
    """Frames without a valid pose in this run's blocks."""
    failed: dict[str, str]
    """Blocks of this run without a receipt, with their reason."""
    changed: tuple[str, ...]
    """Blocks of this run that were made when the data set had other samples, views or splits."""
    int8_cosine_error_p99: float | None
    """Of the worst block."""
    digest: str
    device: str
    interrupted: bool = False

    @property
    def failures(self) -> int:
        """Frames, samples and blocks that failed, and blocks of other data; invalid poses do not count."""
        return len(self.dropped) + len(self.failed) + len(self.changed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        notes = {k: [n.model_dump() for n in getattr(self, k)] for k in ("dropped", "skipped")}
        plain = {k: v for k, v in _fields(self).items() if k not in notes}
        return {**plain, **notes, "failures": self.failures}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would do, from the plan and a few measured frames."""

    blocks: int
    samples: int
    frames: int
    images: int
    """Frames times variants."""
    points_estimate: int
    bytes_f16: int
    bytes_int8: int
    seconds: float
    seconds_per_image: float
    int8_cosine_error_p99: float | None
    """On the measured frames; int8 is refused above 1e-4."""
    free_bytes: int | None
    """On the disk; None: the store is not on one."""
    device: str
    grid: tuple[int, int]
    dim: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def coverage(manifest: Manifest) -> dict[str, int]:
    """Totals over all blocks: points, seen, hits, rows, views, bytes."""
    receipts = manifest.blocks.values()
    keys = ("points", "seen", "hits", "rows", "views")
    total = {key: sum(getattr(r.coverage, key) for r in receipts) for key in keys}
    return {**total, "bytes": sum(r.size for r in receipts)}


def summarise(
    manifest: Manifest,
    planned: Sequence[str],
    outcomes: Sequence[BlockOutcome],
    changed: tuple[str, ...],
    *,
    seconds: float,
    device: str,
    interrupted: bool,
) -> ExtractReport:
    """The report of a run.

    Args:
        manifest: Of the store after it.
        planned: Ids of the blocks of its shard.
        outcomes: How its blocks ended, one a block; blocks that it did not come to have none.
        changed: Ids of those that are of other data.
        seconds: How long it took.
        device: Where the ViT ran.
        interrupted: Whether it was asked to stop.
    """
    mine = set(planned)
    committed = [outcome for outcome in outcomes if outcome.committed]
    failed = {outcome.block: outcome.failure for outcome in outcomes if outcome.failure is not None}
    images = sum(outcome.images for outcome in committed)
    receipts = [r for r in manifest.blocks.values() if r.block in mine]
    skipped = {r.block for r in receipts} - {outcome.block for outcome in committed} - failed.keys()
    total = coverage(manifest)
    errors = [r.int8_cosine_error_p99 for r in receipts if r.int8_cosine_error_p99 is not None]
    return ExtractReport(
        blocks_planned=len(planned),
        blocks_done=len(committed),
        blocks_skipped=len(skipped),
        blocks_failed=len(failed),
        images=images,
        seconds=round(seconds, 3),
        images_per_second=round(images / seconds, 3) if seconds else 0.0,
        points=total["points"],
        points_seen=total["seen"],
        hits=total["hits"],
        rows=total["rows"],
        views_per_point=round(total["hits"] / total["points"], 3) if total["points"] else 0.0,
        bytes=total["bytes"],
        dropped=tuple(note for r in receipts for note in r.dropped),
        skipped=tuple(note for r in receipts for note in r.skipped),
        failed=failed,
        changed=changed,
        int8_cosine_error_p99=max(errors, default=None),
        digest=manifest.digest,
        device=device,
        interrupted=interrupted,
    )


def _fields(report: ExtractReport) -> dict[str, Any]:
    return {name: getattr(report, name) for name in report.__slots__}
