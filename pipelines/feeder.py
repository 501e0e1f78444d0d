# SPDX-License-Identifier: Apache-2.0
"""Walks through the plan ahead of the ViT: loads scenes, starts decoding and projecting, and numbers what comes out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np

from ditr_cache.config import ExtractConfig
from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import DatasetError, DitrCacheError, FrameError, SampleError
from ditr_cache.fusion import factor
from ditr_cache.geometry import check_camera, find_hits
from ditr_cache.images import augment, decode, resize, target_size, variants
from ditr_cache.pipelines.events import (
    BeginBlock,
    BeginSample,
    BlockState,
    EndBlock,
    Event,
    FrameJob,
    Idle,
    LeaveOut,
    PreparedFrame,
)
from ditr_cache.store.receipt import FrameNote
from ditr_cache.types import SamplePlan, Scene, View

__all__ = ["Feeder", "prepare_frame", "select_views"]

_POSE_REASONS = ("pose ", "last row of the pose ")
"""How `check_camera` begins what it says of poses; data sets are known to have such frames."""


def select_views(sample: SamplePlan, config: ExtractConfig) -> tuple[str, ...]:
    """The planned views that are extracted: every `frames.stride`-th, at most `frames.limit`, spread evenly."""
    views = sample.views[:: config.frames.stride]
    limit = config.frames.limit
    if limit is None or len(views) <= limit:
        return views
    return tuple(views[i * len(views) // limit] for i in range(limit))


def prepare_frame(scene: Scene, view: View, variant: int, patch_size: int, config: ExtractConfig) -> PreparedFrame:
    """Decode, resize and augment one image, and find which points fall into which of its patches.

    Raises:
        FrameError: If image or depth map cannot be used.
        OSError: If the medium fails.
    """
    camera = view.camera
    try:
        image_HW3 = decode(view.image.read(), camera.height, camera.width)
        depth = view.depth.read() if view.depth is not None and config.visibility.depth_margin is not None else None
    except FileNotFoundError as error:
        raise FrameError("the file does not exist", where=view.name) from error
    height, width = target_size(camera.height, camera.width, patch_size, config.images)
    image_3hw = augment(resize(image_HW3, (height, width), config.images.filter), variant, scene.id, view.name)
    grid = (height // patch_size, width // patch_size)
    points = scene.points
    hits = find_hits(points.coord, points.origin, [camera], [depth], [grid], config.visibility)[0]
    return PreparedFrame(image_3hw, grid, factor(hits, grid, flipped=bool(variant & 1)))


class Feeder(threading.Thread):
    """The producer thread.

    Args:
        dataset: Where scenes come from.
        blocks: What is to be done, in order; None where there is nothing to do at the moment.
        config: All settings.
        patch_size: Of the backbone.
        pool: Where frames are prepared.
        frames: Queue for the ViT of whatever holds a permit, in order, and of pauses; None marks the end.
        emit: Takes every event with its number, for the committer.
        permits: One for every frame and sample between here and the store: bounds memory whatever a scene's size.
        stopped: Whether to stop early.
    """

    def __init__(
        self,
        dataset: Dataset,
        blocks: Iterable[BlockState | None],
        config: ExtractConfig,
        patch_size: int,
        pool: Executor,
        frames: queue.Queue[FrameJob | BeginSample | Idle | None],
        emit: Callable[[int, Event], None],
        permits: threading.Semaphore,
        stopped: Callable[[], bool],
    ) -> None:
        super().__init__(name="feeder", daemon=True)
        self._dataset, self._blocks, self._config, self._patch_size = dataset, blocks, config, patch_size
        self._pool, self._frames, self._emit, self._permits, self._stopped = pool, frames, emit, permits, stopped
        self._number = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        """Feed all blocks."""
        try:
            for block in self._blocks:
                if self._stopped():
                    break
                if block is None:
                    self._frames.put(Idle())
                    continue
                self._send(BeginBlock(block))
                for sample in block.plan.samples:
                    self._feed_sample(block, sample)
                if self._stopped():
                    break
                self._send(EndBlock(block))
        except BaseException as error:
            self.error = error
        finally:
            self._frames.put(None)

    def _feed_sample(self, block: BlockState, sample: SamplePlan) -> None:
        if self._given_up(block):
            return
        try:
            scene = self._load(sample)
        except DatasetError as error:
            self._leave_out(block, sample.id, None, error, expected=False)
            return
        except OSError as error:
            block.fail(error)
            return
        chosen = frozenset(select_views(sample, self._config))
        usable = []
        for view in scene.views:
            if view.name not in chosen:
                continue
            reason = view.problem or check_camera(view.camera)
            if reason is None:
                usable.append(view)
            else:
                self._leave_out(block, sample.id, view.name, reason, expected=reason.startswith(_POSE_REASONS))
        if not self._permitted():
            return
        begin = BeginSample(block, scene, sample.split)
        self._send(begin)
        self._frames.put(begin)
        for variant in variants(self._config.variants):
            for view in usable:
                if self._given_up(block):
                    return
                self._feed_frame(block, scene, view, variant)

    def _feed_frame(self, block: BlockState, scene: Scene, view: View, variant: int) -> None:
        if not self._permitted():
            return
        prepared = self._pool.submit(_prepare_twice, scene, view, variant, self._patch_size, self._config)
        job = FrameJob(self._number, block, scene.id, view, variant, prepared)
        self._send(job)
        self._frames.put(job)

    def _permitted(self) -> bool:
        while not self._permits.acquire(timeout=0.5):
            if self._stopped():
                return False
        return True

    def _load(self, sample: SamplePlan) -> Scene:
        try:
            scene = self._dataset.load(sample.id)
        except FileNotFoundError as error:
            raise SampleError("the file does not exist", where=error.filename or sample.id) from error
        except DatasetError:
            raise
        except OSError:
            # transient on network file systems: once more, then the block fails and the next run tries it again
            scene = self._dataset.load(sample.id)
        if len(scene.points) == 0:
            raise SampleError("the point cloud is empty", where=sample.id)
        # column by column is how projection reads coordinates; once a scene is cheaper than once a view
        return replace(scene, points=replace(scene.points, coord=np.asfortranarray(scene.points.coord)))

    def _given_up(self, block: BlockState) -> bool:
        return block.failure is not None or self._stopped()

    def _leave_out(
        self, block: BlockState, sample: str, view: str | None, reason: str | DitrCacheError, *, expected: bool
    ) -> None:
        self._send(LeaveOut(block, FrameNote(sample=sample, view=view, reason=_one_line(reason)), expected))

    def _send(self, event: Event) -> None:
        self._emit(self._number, event)
        self._number += 1


def _prepare_twice(scene: Scene, view: View, variant: int, patch_size: int, config: ExtractConfig) -> PreparedFrame:
    try:
        return prepare_frame(scene, view, variant, patch_size, config)
    except DitrCacheError:
        raise
    except OSError:
        return prepare_frame(scene, view, variant, patch_size, config)


def _one_line(reason: str | DitrCacheError) -> str:
    return " ".join(str(reason).split())
