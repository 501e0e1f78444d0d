# SPDX-License-Identifier: Apache-2.0
"""Runs the ViT over prepared frames, batched across scenes, and keeps of each patch map the rows that points see."""

from __future__ import annotations

import queue
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor

import numpy as np
import torch

from ditr_cache.backbones import Backbone
from ditr_cache.fusion import seen_rows
from ditr_cache.pipelines.events import BeginSample, FrameJob, Idle, PreparedFrame
from ditr_cache.store.encode import BlockSettings, encode_view

__all__ = ["FrameEncoder"]

_Ready = list[tuple[FrameJob, PreparedFrame]]
_Event = FrameJob | BeginSample | Idle
_Launched = tuple[_Ready, list[torch.Tensor], torch.Tensor | None]


class FrameEncoder:
    """The ViT's stage; runs in the main thread.

    Every forward pass has the same batch size: a batch that is not full is filled up with copies of its first image.
    The kernels that a device picks depend on shapes: so features do not depend on what an earlier run left to do, and
    compiled graphs are traced once a size.

    Args:
        backbone: The frozen network.
        batch_size: B.
        capacity: Events that a prepared frame may wait for others of its size; less than the permits.
        settings: How rows are kept.
        pool: Where rows are narrowed and hashed.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        capacity: int,
        settings: BlockSettings,
        pool: Executor,
    ) -> None:
        self._backbone, self._batch_size, self._capacity = backbone, batch_size, capacity
        self._settings, self._pool = settings, pool
        self._waiting: OrderedDict[tuple[int, int], _Ready] = OrderedDict()
        self._since: dict[tuple[int, int], int] = {}
        self._taken = 0
        self._launched: _Launched | None = None

    def run(self, events: queue.Queue[_Event | None], tick: Callable[[], None]) -> None:
        """Take what holds a permit, in order, until the end mark; `tick` is called between batches."""
        while (event := self._next(events)) is not None:
            if isinstance(event, Idle):
                # unless a block came meanwhile, whose frames fill the batch up
                if events.empty():
                    self._flush_all()
            else:
                self._taken += 1
                if isinstance(event, FrameJob):
                    self._accept(event)
                self._flush_overdue()
            tick()
        self._flush_all()
        self._collect()

    def _flush_all(self) -> None:
        while self._waiting:
            self._flush(next(iter(self._waiting)))

    def _next(self, events: queue.Queue[_Event | None]) -> _Event | None:
        if events.empty():
            # nothing to overlap with; and the feeder may be waiting for the permits of what has run
            self._collect()
        return events.get()

    def _flush_overdue(self) -> None:
        # a rare size holds up the commits of everything behind it, and those hold all of the feeder's permits
        while self._waiting and self._taken - self._since[oldest := next(iter(self._waiting))] >= self._capacity:
            self._flush(oldest)

    def _accept(self, job: FrameJob) -> None:
        if job.block.failure is not None:
            job.prepared.cancel()
            job.encoded.cancel()
            return
        try:
            prepared = job.prepared.result()
        except (Exception, CancelledError) as error:
            job.encoded.set_exception(error)
            return
        size = prepared.image_3hw.shape[1], prepared.image_3hw.shape[2]
        if size not in self._waiting:
            self._waiting[size], self._since[size] = [], self._taken
        self._waiting[size].append((job, prepared))
        if len(self._waiting[size]) == self._batch_size:
            self._flush(size)

    def _flush(self, size: tuple[int, int]) -> None:
        # the batch before is fetched only once this one runs, so that the device never waits for the host
        launched = self._launch(self._waiting.pop(size))
        self._collect()
        self._launched = launched

    @torch.inference_mode()
    def _launch(self, ready: _Ready) -> _Launched:
        maps = self._backbone(self._stack([prepared.image_3hw for _, prepared in ready]))
        cls = None if maps.cls is None else maps.cls[: len(ready)]
        if maps.rows.device.type == "cpu":
            # the pool's threads gather: one thread a frame costs half of what a parallel gather of the batch does
            return ready, list(maps.rows), cls
        patches = maps.rows.shape[1]
        wanted = [p.hits.row_patch.astype(np.int64) + i * patches for i, (_, p) in enumerate(ready)]
        index = torch.from_numpy(np.concatenate(wanted)).pin_memory()
        rows = maps.rows.flatten(0, 1).index_select(0, index.to(maps.rows.device, non_blocking=True))
        if self._settings.dtype == "float16":
            rows = rows.to(torch.float16)
        lengths = [len(p.hits.row_patch) for _, p in ready]
        return ready, list(torch.split(_to_host(rows), lengths)), None if cls is None else _to_host(cls)

    def _stack(self, images: list[torch.Tensor]) -> torch.Tensor:
        pinned = self._backbone.device.type == "cuda"
        batch_B3hw = torch.empty((self._batch_size, *images[0].shape), dtype=torch.uint8, pin_memory=pinned)
        target = batch_B3hw.numpy()
        # NumPy copies in this thread; torch would wake its own, and they spin while the pool needs the cores
        for i in range(self._batch_size):
            target[i] = images[i if i < len(images) else 0].numpy()
        return batch_B3hw

    def _collect(self) -> None:
        if self._launched is None:
            return
        (ready, rows, cls), self._launched = self._launched, None
        if self._backbone.device.type == "cuda":
            torch.cuda.current_stream(self._backbone.device).synchronize()
        for i, (job, prepared) in enumerate(ready):
            try:
                self._pool.submit(self._encode, job, prepared, rows[i], None if cls is None else cls[i])
            except RuntimeError:
                # the pool is shut down: the run is being stopped
                job.encoded.cancel()

    def _encode(self, job: FrameJob, prepared: PreparedFrame, rows: torch.Tensor, cls_D: torch.Tensor | None) -> None:
        hits = prepared.hits
        try:
            if rows.device.type == "cpu" and self._backbone.device.type == "cpu":
                # narrowed first: half the bytes to gather
                rows = seen_rows(rows.half() if self._settings.dtype == "float16" else rows, hits.row_patch)
            job.encoded.set_result(
                encode_view(
                    job.view.name,
                    job.variant,
                    job.view.camera,
                    prepared.grid,
                    rows,
                    cls_D,
                    (hits.row_patch, hits.hit_point, hits.hit_row),
                    self._settings,
                )
            )
        except Exception as error:
            # the committer decides what it means for the block
            job.encoded.set_exception(error)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
