# SPDX-License-Identifier: Apache-2.0
"""What travels through stage one, in the order of the plan: a numbered stream of events.

The feeder numbers them, pool threads and the ViT work on views in any order, the committer restores the order.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from ditr_cache.fusion import ViewHits
from ditr_cache.store.encode import EncodedView
from ditr_cache.store.receipt import FrameNote
from ditr_cache.types import BlockPlan, Scene, View

__all__ = [
    "BeginBlock",
    "BeginSample",
    "BlockState",
    "EndBlock",
    "Event",
    "FrameJob",
    "Idle",
    "LeaveOut",
    "PreparedFrame",
]


@dataclass(slots=True, eq=False)
class BlockState:
    """One block on its way through the pipeline, shared by all of its events."""

    plan: BlockPlan
    generation: int
    failure: BaseException | None = None
    """Why the block is given up; whoever sees it skips work on the block."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, error: BaseException) -> None:
        """Give the block up; the first reason counts."""
        with self.lock:
            self.failure = self.failure or error


@dataclass(frozen=True, slots=True, eq=False)
class BeginBlock:
    """A block starts."""

    block: BlockState


@dataclass(frozen=True, slots=True, eq=False)
class BeginSample:
    """A sample starts; its views follow."""

    block: BlockState
    scene: Scene
    split: str


@dataclass(frozen=True, slots=True, eq=False)
class LeaveOut:
    """A frame or sample that is not stored."""

    block: BlockState
    note: FrameNote
    expected: bool
    """True for frames without a valid pose, which data sets are known to have."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedFrame:
    """What the ViT and the store need of one image."""

    image_3hw: torch.Tensor
    """uint8 `[3, h, w]`."""
    grid: tuple[int, int]
    hits: ViewHits


@dataclass(slots=True, eq=False)
class FrameJob:
    """One image (view and variant) to store."""

    number: int
    block: BlockState
    sample: str
    view: View
    variant: int
    prepared: Future[PreparedFrame]
    encoded: Future[EncodedView] = field(default_factory=Future)


@dataclass(frozen=True, slots=True, eq=False)
class EndBlock:
    """A block is complete."""

    block: BlockState


@dataclass(frozen=True, slots=True)
class Idle:
    """No block is at hand at the moment; for the ViT's stage alone, without a number."""


Event = BeginBlock | BeginSample | LeaveOut | FrameJob | EndBlock
