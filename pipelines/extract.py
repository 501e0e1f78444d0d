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
import platform
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditr_cache.backbones import Backbone, load_backbone
from ditr_cache.config import ExtractConfig
from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import ConfigError, DatasetError, StoreError
from ditr_cache.images import decoder_name, target_size, variants
from ditr_cache.pipelines.committer import Committer
from ditr_cache.pipelines.encoder import FrameEncoder
from ditr_cache.pipelines.events import BeginSample, BlockState, FrameJob
from ditr_cache.pipelines.feeder import Feeder, select_views
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.pipelines.report import Estimate, ExtractReport, coverage
from ditr_cache.store.block import BlockSettings
from ditr_cache.store.layout import FORMAT_VERSION, block_file_name
from ditr_cache.store.manifest import DatasetEntry, Manifest, Plan, PlannedBlock, PlannedSample
from ditr_cache.store.writer import StoreWriter
from ditr_cache.types import BlockPlan

__all__ = ["Extract", "pick_device", "store_identity"]

DRAWN_VIEWS = 10
"""Views that the official training draws of a scene. Samples with more are read view by view, the others whole."""


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


def store_identity(config: ExtractConfig, dataset: Dataset, backbone: Backbone) -> dict[str, Any]:
    """Everything that decides what the features are. A store of another identity is refused, with the difference."""
    visibility = config.visibility.model_dump(mode="json")
    if not config.visibility.zbuffer:
        del visibility["zbuffer_margin"], visibility["zbuffer_cell"]
    images = config.images.model_dump(mode="json")
    del images["budget" if config.images.size else "size"]
    return {
        "format_version": FORMAT_VERSION,
        "dataset": {"name": dataset.name, "version": dataset.version},
        "backbone": backbone.identity.to_dict(),
        "images": {**images, "mean": list(backbone.mean), "std": list(backbone.std)},
        "variants": config.variants.model_dump(mode="json"),
        "frames": config.frames.model_dump(mode="json"),
        "visibility": visibility,
        "features": {"dtype": _dtype(config), "compress": config.store.compress, "points": config.store.points},
    }


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
        self._check_names(plan)
        backbone = self._load_backbone()
        self._check_size(backbone)
        store = StoreWriter.create(self.path, store_identity(self.config, self.dataset, backbone))
        store.add_plan(self._plan_document(plan))
        mine = plan[self.shard[0] :: self.shard[1]]
        todo = self._to_do(store, mine)
        self.progress.begin(sum(self._count_images(block.plan) for block in todo))
        try:
            first = self._extract(store, backbone, todo)
            again = [BlockState(b.plan, b.generation) for b, _ in first.failed if isinstance(b.failure, OSError)]
            retry = self._extract(store, backbone, again) if again and not self._stop.is_set() else None
            manifest = store.finalize()
        finally:
            self.progress.end()
        passes = [first] if retry is None else [first, retry]
        return self._report(manifest, mine, passes, backbone, time.monotonic() - began)

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
        settings = {block.plan.id: self._settings(block.plan, backbone) for block in todo}
        anywhere = self._settings(BlockPlan("", ()), backbone)
        # a batch at the ViT, the next one ready, and for every thread one being prepared and one being written
        capacity = 2 * run.batch_size
        permits = threading.Semaphore(capacity + 2 * threads)
        frames: queue.Queue[FrameJob | BeginSample | None] = queue.Queue()
        committer = Committer(
            store, settings, self._dataset_entry().model_dump(mode="json"), self._provenance(backbone), permits
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

    def _settings(self, block: BlockPlan, backbone: Backbone) -> BlockSettings:
        most = max((len(select_views(sample, self.config)) for sample in block.samples), default=0)
        return BlockSettings(
            dim=backbone.dim,
            dtype=_dtype(self.config),
            compress=self.config.store.compress,
            points=self.config.store.points,
            class_token=backbone.has_class_token,
            align_views=most > DRAWN_VIEWS,
        )

    def _check_names(self, plan: Sequence[BlockPlan]) -> None:
        """Block ids become file names, also on file systems that ignore case."""
        names = [block_file_name(block.id).lower() for block in plan]
        if len(set(names)) != len(names):
            twice = next(block.id for block, name in zip(plan, names, strict=True) if names.count(name) > 1)
            raise DatasetError(f"block {twice!r} appears twice once case is ignored", where=self.dataset.name)
        if not plan:
            raise DatasetError("the data set has no samples", where=self.dataset.name)

    def _check_size(self, backbone: Backbone) -> None:
        """Before there is a store of a size that suits no frame."""
        if self.config.images.size is not None:
            target_size(*self.config.images.size, backbone.patch_size, self.config.images)

    def _plan_document(self, plan: Sequence[BlockPlan]) -> Plan:
        return Plan(
            dataset=self._dataset_entry(),
            blocks=tuple(
                PlannedBlock(
                    id=block.id,
                    samples=tuple(
                        PlannedSample(id=s.id, split=s.split, views=select_views(s, self.config)) for s in block.samples
                    ),
                )
                for block in plan
            ),
        )

    def _dataset_entry(self) -> DatasetEntry:
        return DatasetEntry(
            class_names={k: tuple(v) for k, v in self.dataset.class_names.items()},
            label_maps={k: {str(a): b for a, b in m.items()} for k, m in self.dataset.label_maps.items()},
        )

    def _count_images(self, block: BlockPlan) -> int:
        return len(variants(self.config.variants)) * sum(len(select_views(s, self.config)) for s in block.samples)

    def _provenance(self, backbone: Backbone) -> dict[str, str | int | float | bool | None]:
        run = self.config.run
        device = str(backbone.device)
        return {
            "ditr_cache": version("ditr-cache"),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "device": torch.cuda.get_device_name(backbone.device) if backbone.device.type == "cuda" else device,
            "machine": platform.machine(),
            "decoder": decoder_name(),
            "batch_size": run.batch_size,
        }

    def _report(
        self,
        manifest: Manifest,
        mine: Sequence[BlockPlan],
        passes: Sequence[Committer],
        backbone: Backbone,
        seconds: float,
    ) -> ExtractReport:
        ids = {block.id for block in mine}
        receipts = [r for r in manifest.blocks.values() if r.block in ids]
        committed = [block for p in passes for block in p.committed]
        failed = {block.plan.id: reason for block, reason in passes[-1].failed}
        if len(passes) > 1:
            # the second pass repeats only what a medium's failure cost
            first = {b.plan.id: reason for b, reason in passes[0].failed if not isinstance(b.failure, OSError)}
            failed |= first
        skipped = {r.block for r in receipts} - {*committed, *failed}
        images = sum(p.stored for p in passes)
        total = coverage(manifest)
        errors = [r.int8_cosine_error_p99 for r in receipts if r.int8_cosine_error_p99 is not None]
        return ExtractReport(
            blocks_planned=len(mine),
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
            int8_cosine_error_p99=max(errors, default=None),
            digest=manifest.digest,
            device=str(backbone.device),
            interrupted=self._stop.is_set(),
        )


@contextmanager
def _full_disk(store: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        hint = "Free some space and run the same command."
        raise StoreError("the disk is full", where=store, hint=hint) from error


def _dtype(config: ExtractConfig) -> str:
    return {"f16": "float16", "int8": "int8"}[config.store.dtype]


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
