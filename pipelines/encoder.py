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
from ditr_cache.errors import FrameError
from ditr_cache.pipelines.events import FrameJob, PreparedFrame
from ditr_cache.store.block import BlockSettings, encode_view

__all__ = ["FrameEncoder"]

_Ready = list[tuple[FrameJob, PreparedFrame]]
_Launched = tuple[_Ready, torch.Tensor, "torch.Tensor | None"]


class FrameEncoder:
    """The ViT's stage; runs in the main thread.

    Every forward pass has the same batch size: a batch that is not full is filled up with copies of its first image.
    The kernels that a device picks depend on shapes: so features do not depend on what an earlier run left to do, and
    compiled graphs are traced once a size.

    Args:
        backbone: The frozen network.
        batch_size: B.
        capacity: Prepared frames that may wait for others of their size.
        settings: How rows are kept.
        pool: Where rows are narrowed and hashed.
    """

    def __init__(
        self, backbone: Backbone, batch_size: int, capacity: int, settings: BlockSettings, pool: Executor
    ) -> None:
        self._backbone, self._batch_size, self._capacity = backbone, batch_size, capacity
        self._settings, self._pool = settings, pool
        self._waiting: OrderedDict[tuple[int, int], _Ready] = OrderedDict()
        self._launched: _Launched | None = None

    def run(self, frames: queue.Queue[FrameJob | None], tick: Callable[[], None]) -> None:
        """Take jobs in order until the end mark; `tick` is called between batches."""
        while (job := frames.get()) is not None:
            self._accept(job)
            tick()
        while self._waiting:
            self._flush(next(iter(self._waiting)))
        self._collect()

    def _accept(self, job: FrameJob) -> None:
        if job.block.failure is not None:
            job.encoded.cancel()
            return
        try:
            prepared = job.prepared.result()
        except (Exception, CancelledError) as error:
            job.encoded.set_exception(error)
            return
        size = prepared.image_3hw.shape[1], prepared.image_3hw.shape[2]
        ready = self._waiting.setdefault(size, [])
        ready.append((job, prepared))
        if len(ready) == self._batch_size:
            self._flush(size)
        elif sum(map(len, self._waiting.values())) >= self._capacity:
            # rare sizes must not hold up the rest for ever
            self._flush(next(iter(self._waiting)))

    def _flush(self, size: tuple[int, int]) -> None:
        # the batch before is fetched only once this one runs, so that the device never waits for the host
        launched = self._launch(self._waiting.pop(size))
        self._collect()
        self._launched = launched

    @torch.inference_mode()
    def _launch(self, ready: _Ready) -> _Launched:
        images = [prepared.image_3hw for _, prepared in ready]
        images += images[:1] * (self._batch_size - len(images))
        batch_B3hw = torch.stack(images)
        on_gpu = self._backbone.device.type == "cuda"
        if on_gpu:
            batch_B3hw = batch_B3hw.pin_memory()
        maps = self._backbone(batch_B3hw)
        patches = maps.rows.shape[1]
        wanted = [p.hits.row_patch.astype(np.int64) + i * patches for i, (_, p) in enumerate(ready)]
        index = torch.from_numpy(np.concatenate(wanted))
        if on_gpu:
            index = index.pin_memory().to(maps.rows.device, non_blocking=True)
        rows = maps.rows.flatten(0, 1).index_select(0, index)
        if self._settings.dtype == "float16":
            rows = rows.to(torch.float16)
        cls = None if maps.cls is None else maps.cls[: len(ready)]
        return ready, _to_host(rows), None if cls is None else _to_host(cls)

    def _collect(self) -> None:
        if self._launched is None:
            return
        (ready, rows, cls), self._launched = self._launched, None
        if self._backbone.device.type == "cuda":
            torch.cuda.current_stream(self._backbone.device).synchronize()
        start = 0
        for i, (job, prepared) in enumerate(ready):
            n = len(prepared.hits.row_patch)
            # clones: a view would keep the whole batch alive until its last frame is written
            self._encode(job, prepared, rows[start : start + n].clone(), None if cls is None else cls[i].clone())
            start += n

    def _encode(
        self, job: FrameJob, prepared: PreparedFrame, rows_RD: torch.Tensor, cls_D: torch.Tensor | None
    ) -> None:
        def work() -> None:
            try:
                hits = prepared.hits
                job.encoded.set_result(
                    encode_view(
                        job.view.name,
                        job.variant,
                        job.view.camera,
                        prepared.grid,
                        rows_RD,
                        cls_D,
                        (hits.row_patch, hits.hit_point, hits.hit_row),
                        self._settings,
                    )
                )
            except Exception as error:
                job.encoded.set_exception(error)

        try:
            self._pool.submit(work)
        except RuntimeError as error:
            # the pool is shut down: the run is being stopped
            job.encoded.set_exception(FrameError("stopped", where=str(error)))


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
