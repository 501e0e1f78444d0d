# SPDX-License-Identifier: Apache-2.0
"""A store without points, joined to somebody's own copy of the data set."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ditr_cache.datasets import Dataset, guess_dataset, open_dataset
from ditr_cache.errors import ConfigError, DatasetError
from ditr_cache.pipelines.attach_points import in_store_order
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.pipelines.share import DEFAULT_JOBS, ShareReport, Source, move, open_source, report
from ditr_cache.store.manifest import Plan, SourceEntry
from ditr_cache.store.receipt import Receipt, SampleEntry
from ditr_cache.store.subset import block_plan, part_of
from ditr_cache.store.subset_write import TAKEN_FROM, Rewrite
from ditr_cache.store.transfer import Job, Transfer
from ditr_cache.types import PointCloud

__all__ = ["Attach"]


class Attach:
    """Writes a new store that has the features of one and the points of a data set, where they are the same points.

    Args:
        store: Folder or URL of a store without points.
        source: The data set, as `extract` takes it.
        out: Folder or URL of the new store.
        dataset: Name of its reader; `auto`: guessed from the files.
        jobs: Threads.
        progress: Who listens; counts bytes.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        source: str | Path,
        out: str | os.PathLike[str],
        *,
        dataset: str = "auto",
        jobs: int = DEFAULT_JOBS,
        progress: Progress | None = None,
    ) -> None:
        self._store, self._source, self._out, self._name = store, source, out, dataset
        self._jobs = jobs
        self._progress: Progress = progress or Silent()
        self._turns = threading.Lock()

    def run(self) -> ShareReport:
        """Join them. A run that was killed goes on when it is run again.

        Raises:
            ConfigError: If the store has its points.
            DatasetError: If this is another data set, or a sample of it has other points.
            CorruptStoreError: If the store is damaged.
        """
        store = open_source(self._store)
        features = dict(store.manifest.identity.get("features") or {})
        if any("coord" in receipt.arrays for receipt in store.manifest.blocks.values()):
            raise ConfigError("this store has its points already", where=store.storage.location)
        if self._name == "auto":
            guess = guess_dataset(self._source)
            self._progress.note(f"data set: {guess.name} ({guess.evidence})")
            self._name = guess.name
        dataset = open_dataset(self._source, self._name)
        _check_dataset(dataset, store)
        identity = {**store.manifest.identity, "features": {**features, "points": True}}
        with Transfer(self._out, identity, jobs=self._jobs, advance=self._progress.advance) as transfer:
            transfer.add_plan(_plan(store))
            for receipt in store.manifest.blocks.values():
                self._add(transfer, store, receipt, dataset)
            return report(transfer, move(transfer, self._progress))

    def _add(self, transfer: Transfer, store: Source, receipt: Receipt, dataset: Dataset) -> None:
        have = transfer.have.get(receipt.block)
        if have is not None:
            if have.provenance.get(TAKEN_FROM) == receipt.uuid:
                transfer.there += 1
            else:
                transfer.keep(receipt.block)
            return

        def points(sample: SampleEntry) -> PointCloud:
            # readers are not made for several threads
            with self._turns:
                return in_store_order(_load(dataset, sample.id), sample)

        rewrite = Rewrite(
            source=store.storage,
            receipt=receipt,
            wanted=part_of(receipt),
            generation=0,
            dataset=store.manifest.dataset.model_dump(mode="json"),
            points=True,
            own_points=points,
        )
        transfer.add(Job((lambda: rewrite.run(transfer.writer, transfer.tally),), rewrite.size))


def _check_dataset(dataset: Dataset, store: Source) -> None:
    wanted = (store.manifest.identity.get("dataset") or {}).get("name")
    if wanted != dataset.name:
        raise DatasetError(
            f"this is {dataset.name}, the store was made from {wanted}", hint="Another reader: --dataset NAME"
        )


def _load(dataset: Dataset, sample: str) -> PointCloud:
    try:
        return dataset.load(sample).points
    except (FileNotFoundError, KeyError) as error:
        raise DatasetError("this copy of the data set does not have the sample", where=sample) from error


def _plan(store: Source) -> Plan:
    manifest = store.manifest
    splits = {sample.id: sample.split for receipt in manifest.blocks.values() for sample in receipt.samples}
    present = (block_plan(block, part_of(receipt), splits) for block, receipt in manifest.blocks.items())
    source = SourceEntry(version=store.version, digest=manifest.digest, attached=True)
    return Plan(dataset=manifest.dataset, blocks=(*manifest.planned, *present), sources=(*manifest.sources, source))
