# SPDX-License-Identifier: Apache-2.0
"""A store, or a part of it, from where others keep it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.pipelines.share import DEFAULT_JOBS, ShareReport, Source, move, open_source, report
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.subset import Part, Selection, joined, part_of, select
from ditr_cache.store.subset_write import TAKEN_FROM, Rewrite
from ditr_cache.store.transfer import Job, Transfer

__all__ = ["Pull"]


class Pull:
    """Copies what is missing. Blocks that are wanted whole travel as they are, others are made anew from their views.

    Args:
        url: Folder or URL of the source; `@sha256:<version>` behind it pins that version.
        store: Folder or URL of the copy; what it has already stays.
        selection: What is wanted.
        key: Public key of who must have signed the source.
        jobs: Threads.
        rehash: Read again what is there already.
        progress: Who listens; counts bytes.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        store: str | os.PathLike[str],
        selection: Selection | None = None,
        *,
        key: Path | None = None,
        jobs: int = DEFAULT_JOBS,
        rehash: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._url, self._store, self._selection, self._key = url, store, selection or Selection(), key
        self._jobs, self._rehash = jobs, rehash
        self._progress: Progress = progress or Silent()

    def run(self) -> ShareReport:
        """Bring it. A run that was killed goes on when it is run again.

        Raises:
            StoreNotFoundError: If there is no source, or not the version that is asked for.
            SignatureError: If it is not signed as it should be.
            IdentityMismatchError: If the store was made with other settings.
            CorruptStoreError: If the source gives other bytes than its manifest says.
            QuantisationError: If int8 would lose too much.
        """
        source = open_source(self._url, self._key)
        part = select(source.manifest, source.version, self._selection)
        with Transfer(
            self._store, part.identity, jobs=self._jobs, advance=self._progress.advance, rehash=self._rehash
        ) as transfer:
            transfer.add_plan(part.plan)
            for block, wanted in part.blocks.items():
                self._add(transfer, source, part, source.manifest.blocks[block], wanted)
            seconds = move(transfer, self._progress)
            return report(transfer, seconds, source if part.whole else None, source.signer)

    def _add(
        self, transfer: Transfer, source: Source, part: Part, receipt: Receipt, wanted: Mapping[str, tuple[str, ...]]
    ) -> None:
        """Decide how a block comes: as it is, made anew, or not at all because it is there."""
        have = transfer.have.get(receipt.block)
        if have is None and self._as_it_is(receipt, wanted):
            transfer.copy(source.storage, receipt, source.manifest.superseded if part.whole else None)
            return
        if have is not None and have.provenance.get(TAKEN_FROM) != receipt.uuid:
            # it has the whole block, or somebody else's: the transfer can tell
            transfer.copy(source.storage, receipt, source.manifest.superseded if part.whole else None)
            return
        union = joined(receipt, wanted, part_of(have)) if have is not None else dict(wanted)
        if union is None:
            transfer.keep(receipt.block)
            return
        if have is not None and union == part_of(have):
            transfer.there += 1
            return
        rewrite = Rewrite(
            source=source.storage,
            receipt=receipt,
            wanted=union,
            generation=0 if have is None else have.generation + 1,
            dataset=source.manifest.dataset.model_dump(mode="json"),
            points=self._selection.points and "origin" in receipt.arrays,
            dtype=self._selection.dtype,
        )
        transfer.add(Job((lambda: rewrite.run(transfer.writer, transfer.tally),), rewrite.size))

    def _as_it_is(self, receipt: Receipt, wanted: Mapping[str, tuple[str, ...]]) -> bool:
        selection = self._selection
        return (
            wanted == part_of(receipt)
            and (selection.points or "origin" not in receipt.arrays)
            and selection.dtype in (None, receipt.arrays["features"].dtype)
        )
