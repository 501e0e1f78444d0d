# SPDX-License-Identifier: Apache-2.0
"""Stage one: a frozen ViT sees every frame once; what the points need of it goes into a store.

This is the run of one process; `ditr_cache.pipelines.cluster` hands the same blocks to many.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ditr_cache.backbones import Backbone, load_backbone
from ditr_cache.config import ExtractConfig
from ditr_cache.datasets.base import Dataset
from ditr_cache.pipelines.committer import Committer
from ditr_cache.pipelines.events import BlockState
from ditr_cache.pipelines.intent import changed_blocks, check_shard, count_images, open_run, store_identity
from ditr_cache.pipelines.outcome import BlockOutcome
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.pipelines.report import Estimate, ExtractReport, summarise
from ditr_cache.pipelines.stages import Stages, full_disk, pick_device
from ditr_cache.store.writer import StoreWriter

__all__ = ["Extract", "pick_device", "store_identity"]


class Extract:
    """Runs stage one; run it again to go on where it stopped.

    Args:
        dataset: Source of scenes.
        store: A folder or a URL; created if need be.
        config: All settings.
        shard: (i, n): do the planned blocks with index mod n = i.
        redo: Do committed blocks again, as their next generation.
        retry: Only those of which something failed, or that the data set has otherwise now.
        single_writer: Nobody else writes to the store: object storage without conditional requests will do.
        progress: Who listens.
        backbone: Loaded from the settings if not given.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: Path | str,
        config: ExtractConfig,
        *,
        shard: tuple[int, int] = (0, 1),
        redo: bool = False,
        retry: bool = False,
        single_writer: bool = False,
        progress: Progress | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        check_shard(shard)
        self.dataset, self.path, self.config, self.shard = dataset, store, config, shard
        self.redo, self.retry = redo, retry
        self.progress: Progress = progress or Silent()
        self._backbone, self._single_writer = backbone, single_writer
        self._stop = threading.Event()

    def request_stop(self) -> None:
        """Stop soon: the block at hand is given up, finished ones are finalised. Safe in signal handlers."""
        self._stop.set()

    def run(self) -> ExtractReport:
        """Extract what is not there yet.

        Raises:
            IdentityMismatchError: If the store was made with other settings.
            StoreError: If the disk is full.
            DatasetError: If the data set cannot be planned.
            ConfigError: If the image size fits no patches of this backbone.
        """
        with full_disk(self.path):
            return self._run()

    def _run(self) -> ExtractReport:
        began = time.monotonic()
        plan = self.dataset.plan()
        backbone = self._load_backbone()
        store, mine, todo = open_run(
            self.dataset,
            plan,
            self.path,
            self.config,
            backbone,
            self.shard,
            redo=self.redo,
            retry=self.retry,
            single_writer=self._single_writer,
        )
        self.progress.begin(sum(count_images(block.plan, self.config) for block in todo))
        outcomes: dict[str, BlockOutcome] = {}
        try:
            self._pass(store, backbone, todo, outcomes)
            # once more what a medium's failure cost
            again = [block for block in todo if block.plan.id in outcomes and outcomes[block.plan.id].transient]
            if again and not self._stop.is_set():
                self._pass(store, backbone, [BlockState(b.plan, b.generation) for b in again], outcomes)
            manifest = store.finalize()
        finally:
            self.progress.end()
        return summarise(
            manifest,
            [block.id for block in mine],
            list(outcomes.values()),
            changed_blocks(mine, manifest, self.config),
            seconds=time.monotonic() - began,
            device=str(backbone.device),
            interrupted=self._stop.is_set(),
        )

    def estimate(self) -> Estimate:
        """Measure a few frames and extrapolate; writes nothing."""
        from ditr_cache.pipelines.estimate import estimate

        return estimate(self.dataset, self.path, self.config, self._load_backbone(), self.shard)

    def _pass(
        self, store: StoreWriter, backbone: Backbone, todo: Sequence[BlockState], outcomes: dict[str, BlockOutcome]
    ) -> None:
        """One pass over `todo`; `outcomes` gets how each block ended."""
        told = 0
        notes: queue.SimpleQueue[str] = queue.SimpleQueue()

        def tick(committer: Committer) -> None:
            nonlocal told
            while not notes.empty():
                self.progress.note(notes.get())
            images = committer.images
            self.progress.advance(images - told)
            told = images

        def done(outcome: BlockOutcome) -> None:
            outcomes[outcome.block] = outcome

        stages = Stages(
            self.dataset, store, self.config, backbone, note=notes.put, done=done, stopped=self._stop.is_set
        )
        stages.run((block for block in todo if not store.has_receipt(block.plan.id, block.generation)), tick)

    def _load_backbone(self) -> Backbone:
        if self._backbone is None:
            self._backbone = load_backbone(self.config.backbone, pick_device(self.config.run.device))
        return self._backbone
