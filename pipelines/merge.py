# SPDX-License-Identifier: Apache-2.0
"""Stores of equal settings become one: shards that were extracted by several teams."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations

from ditr_cache.errors import IdentityMismatchError, StoreError
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.pipelines.share import DEFAULT_JOBS, ShareReport, Source, move, open_source, report
from ditr_cache.store.identity import identity_difference
from ditr_cache.store.manifest import DatasetEntry, Plan, PlannedBlock, block_items
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.subset import block_plan, part_of
from ditr_cache.store.transfer import Transfer

__all__ = ["Merge"]


class Merge:
    """Copies the blocks of all stores into one. Files are copied, not linked: `out` shares nothing with them.

    Args:
        stores: Folders or URLs; of blocks that several have, the first one's is taken.
        out: Folder or URL of the result; may have a part of it already.
        jobs: Threads.
        progress: Who listens; counts bytes.
    """

    def __init__(
        self,
        stores: Sequence[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        *,
        jobs: int = DEFAULT_JOBS,
        progress: Progress | None = None,
    ) -> None:
        self._stores, self._out, self._jobs = stores, out, jobs
        self._progress: Progress = progress or Silent()

    def run(self) -> ShareReport:
        """Merge. A run that was killed goes on when it is run again.

        Raises:
            IdentityMismatchError: If two stores were made with different settings.
            StoreError: If two stores have one sample with different contents, or labels of different meaning.
            CorruptStoreError: If a source gives other bytes than its manifest says.
        """
        sources = [open_source(store) for store in self._stores]
        _check_identities(sources)
        chosen = _choose(sources)
        with Transfer(
            self._out, sources[0].manifest.identity, jobs=self._jobs, advance=self._progress.advance
        ) as transfer:
            transfer.add_plan(_plan(sources, [receipt for _, receipt in chosen.values()]))
            for source, receipt in chosen.values():
                transfer.copy(source.storage, receipt)
            return report(transfer, move(transfer, self._progress))


def _check_identities(sources: Sequence[Source]) -> None:
    first, *others = sources
    for other in others:
        lines = identity_difference(first.manifest.identity, other.manifest.identity)
        if lines:
            raise IdentityMismatchError(
                f"{first.storage.location} has other settings:\n  "
                + "\n  ".join(line.replace("asked for", "the other") for line in lines),
                where=other.storage.location,
                hint="Only features of equal settings can be in one store.",
            )
    for a, b in combinations(sources, 2):
        for field in ("class_names", "label_maps"):
            mine, theirs = getattr(a.manifest.dataset, field), getattr(b.manifest.dataset, field)
            for labels in mine.keys() & theirs.keys():
                if mine[labels] != theirs[labels]:
                    what = f"{field} of {labels!r} are not those of {a.storage.location}"
                    raise StoreError(what, where=b.storage.location)


def _choose(sources: Sequence[Source]) -> dict[str, tuple[Source, Receipt]]:
    """The block to take for every block id.

    Raises:
        StoreError: If blocks of one id have different contents, or a sample is in blocks of two ids.
    """
    chosen: dict[str, tuple[Source, Receipt]] = {}
    block_of: dict[str, str] = {}
    for source in sources:
        for receipt in source.manifest.blocks.values():
            for sample in receipt.samples:
                other = block_of.setdefault(sample.id, receipt.block)
                if other != receipt.block:
                    raise _conflict(chosen[other][0], source, sample.id, f"blocks {other} and {receipt.block}")
            first, taken = chosen.setdefault(receipt.block, (source, receipt))
            if taken.samples != receipt.samples or block_items(taken) != block_items(receipt):
                both = [s.id for s in receipt.samples if s.id in part_of(taken)]
                what = f"block {receipt.block} of both, with different contents"
                raise _conflict(first, source, (both or [receipt.samples[0].id])[0] if receipt.samples else "?", what)
    return chosen


def _conflict(a: Source, b: Source, sample: str, what: str) -> StoreError:
    return StoreError(
        f"sample {sample} is in {what}",
        where=f"{a.storage.location} and {b.storage.location}",
        hint="See what differs: ditr-cache diff A B",
    )


def _plan(sources: Sequence[Source], receipts: Sequence[Receipt]) -> Plan:
    """What is there once all is: every block that is present in one, or planned in one and present in none."""
    dataset = DatasetEntry(
        class_names={k: v for source in sources for k, v in source.manifest.dataset.class_names.items()},
        label_maps={k: v for source in sources for k, v in source.manifest.dataset.label_maps.items()},
    )
    splits = {sample.id: sample.split for receipt in receipts for sample in receipt.samples}
    blocks: dict[str, PlannedBlock] = {b.id: b for source in reversed(sources) for b in source.manifest.planned}
    blocks |= {receipt.block: block_plan(receipt.block, part_of(receipt), splits) for receipt in receipts}
    lineage = {entry.model_dump_json(): entry for source in sources for entry in source.manifest.sources}
    return Plan(
        dataset=dataset,
        blocks=tuple(blocks[block] for block in sorted(blocks)),
        sources=tuple(lineage[key] for key in sorted(lineage)),
    )
