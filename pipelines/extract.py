# SPDX-License-Identifier: Apache-2.0
"""Stage one: a frozen ViT sees every frame once; what the points need of it goes into a store.

feeder thread     scene -> views        loads points, starts the pool's work, numbers everything
pool threads      decode, project       image -> pixels, points -> hits
main thread       ViT                   pixels -> patch maps -> seen rows, batched across scenes
pool threads      narrow, hash          rows -> float16 or int8
committer thread  write, commit         in the order of the plan; a receipt a block
"""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ditr_cache.backbones import Backbone, load_backbone
from ditr_cache.config import ExtractConfig
from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import ConfigError, StoreError
from ditr_cache.pipelines.committer import Committer
from ditr_cache.pipelines.encoder import FrameEncoder
from ditr_cache.pipelines.events import BeginSample, BlockState, FrameJob
from ditr_cache.pipelines.feeder import Feeder
from ditr_cache.pipelines.intent import (
    block_settings,
    check_plan,
    check_size,
    count_images,
    dataset_entry,
    plan_document,
    provenance,
    store_identity,
)
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.pipelines.report import Estimate, ExtractReport, summarise
from ditr_cache.store.writer import StoreWriter
from ditr_cache.types import BlockPlan

__all__ = ["Extract", "pick_device", "store_identity"]


def pick_device(name: str) -> str:
    """`auto` is CUDA where there is one.

    Raises:
        ConfigError: If the device is asked for and not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"run.device is {name}, but torch finds no CUDA device", hint="Use -s run.device=cpu")
    return name


class Extract:
    """Runs stage one; run it again to go on where it stopped.

    Args:
        dataset: Source of scenes.
        store: Folder of the store; created if need be.
        config: All settings.
        shard: (i, n): do the planned blocks with index mod n = i.
        redo: Do committed blocks again, as their next generation.
        progress: Who listens.
        backbone: Loaded from the settings if not given.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: Path,
        config: ExtractConfig,
        *,
        shard: tuple[int, int] = (0, 1),
        redo: bool = False,
        progress: Progress | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        if not 0 <= shard[0] < shard[1]:
            raise ConfigError(f"shard {shard[0]}/{shard[1]}: i/n needs 0 <= i < n")
        self.dataset, self.path, self.config, self.shard, self.redo = dataset, store, config, shard, redo
        self.progress: Progress = progress or Silent()
        self._backbone = backbone
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
        with _full_disk(self.path):
            return self._run()

    def _run(self) -> ExtractReport:
        began = time.monotonic()
        plan = self.dataset.plan()
        check_plan(plan, self.dataset.name)
        backbone = self._load_backbone()
        check_size(self.config, backbone)
        store = StoreWriter.create(self.path, store_identity(self.config, self.dataset, backbone))
        store.add_plan(plan_document(self.dataset, plan, self.config))
        mine = plan[self.shard[0] :: self.shard[1]]
        todo = self._to_do(store, mine)
        self.progress.begin(sum(count_images(block.plan, self.config) for block in todo))
        try:
            first = self._extract(store, backbone, todo)
            again = [BlockState(b.plan, b.generation) for b, _ in first.failed if isinstance(b.failure, OSError)]
            # what was written of failed blocks is not there
            self.progress.advance(first.stored - first.images)
            retry = self._extract(store, backbone, again) if again and not self._stop.is_set() else None
            manifest = store.finalize()
        finally:
            self.progress.end()
        passes = [first] if retry is None else [first, retry]
        failed = {block.plan.id: reason for block, reason in passes[-1].failed}
        if retry is not None:
            # the second pass repeats only what a medium's failure cost
            failed |= {b.plan.id: reason for b, reason in first.failed if not isinstance(b.failure, OSError)}
        return summarise(
            manifest,
            [block.id for block in mine],
            [block for p in passes for block in p.committed],
            failed,
            images=sum(p.stored for p in passes),
            seconds=time.monotonic() - began,
            device=str(backbone.device),
            interrupted=self._stop.is_set(),
        )

    def estimate(self) -> Estimate:
        """Measure a few frames and extrapolate; writes nothing."""
        from ditr_cache.pipelines.estimate import estimate

        return estimate(self.dataset, self.path, self.config, self._load_backbone(), self.shard)

    def _to_do(self, store: StoreWriter, blocks: Sequence[BlockPlan]) -> list[BlockState]:
        done = {r.block: r.generation for r in store.receipts()}
        if self.redo:
            return [BlockState(block, done.get(block.id, -1) + 1) for block in blocks]
        return [BlockState(block, 0) for block in blocks if block.id not in done]

    def _extract(self, store: StoreWriter, backbone: Backbone, todo: Sequence[BlockState]) -> Committer:
        """One pass over `todo`: starts the stages, runs the ViT here, and waits for the last commit."""
        run = self.config.run
        threads = run.threads or len(os.sched_getaffinity(0))
        settings = {block.plan.id: block_settings(block.plan, self.config, backbone) for block in todo}
        anywhere = block_settings(BlockPlan("", ()), self.config, backbone)
        # a batch at the ViT, the next one ready, and for every thread one being prepared and one being written
        capacity = 2 * run.batch_size
        permits = threading.Semaphore(capacity + 2 * threads)
        frames: queue.Queue[FrameJob | BeginSample | None] = queue.Queue()
        committer = Committer(
            store,
            settings,
            dataset_entry(self.dataset).model_dump(mode="json"),
            provenance(self.config, backbone),
            permits,
        )
        pool = ThreadPoolExecutor(threads, "frames", initializer=_one_thread)
        feeder = Feeder(
            self.dataset,
            (block for block in todo if not store.has_receipt(block.plan.id, block.generation)),
            self.config,
            backbone.patch_size,
            pool,
            frames,
            committer.emit,
            permits,
            # nobody may wait for a permit that a dead committer would have given back
            lambda: self._stop.is_set() or committer.error is not None,
        )
        stored = 0

        def tick() -> None:
            nonlocal stored
            while not committer.notes.empty():
                self.progress.note(committer.notes.get())
            images = committer.images
            self.progress.advance(images - stored)
            stored = images
            if committer.error is not None:
                raise committer.error
            if committer.disk_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        _settle_threads()
        _keep_pages()
        committer.start()
        feeder.start()
        try:
            FrameEncoder(backbone, run.batch_size, capacity, anywhere, pool).run(frames, tick)
        except BaseException:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            committer.abort()
            raise
        finally:
            feeder.join()
            pool.shutdown()
            committer.close()
            committer.join()
        tick()
        if feeder.error is not None:
            raise feeder.error
        return committer

    def _load_backbone(self) -> Backbone:
        if self._backbone is None:
            self._backbone = load_backbone(self.config.backbone, pick_device(self.config.run.device))
        return self._backbone


@contextmanager
def _full_disk(store: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        hint = "Free some space and run the same command."
        raise StoreError("the disk is full", where=store, hint=hint) from error


def _settle_threads() -> None:
    """Fix this thread's share of torch's threads before the pool's threads take one each."""
    torch.zeros(1).add_(torch.get_num_threads())


def _keep_pages() -> None:
    """Make glibc keep freed image buffers instead of giving their pages back and faulting them in again.

    Its threshold grows to the largest block freed so far: 3 of 25 core-ms an image with Pillow.
    """
    np.empty(30 << 20, np.uint8)


def _one_thread() -> None:
    # the setting belongs to the calling thread: every core decodes its own image, the ViT keeps its threads
    torch.set_num_threads(1)
