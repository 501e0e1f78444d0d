# SPDX-License-Identifier: Apache-2.0
"""Writes finished views in the order of the plan and commits their blocks."""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any

from ditr_cache.errors import DitrCacheError, FrameError
from ditr_cache.pipelines.events import BeginBlock, BeginSample, BlockState, EndBlock, Event, FrameJob, LeaveOut
from ditr_cache.pipelines.outcome import BlockOutcome
from ditr_cache.store.block import BlockWriter
from ditr_cache.store.encode import BlockSettings, EncodedView
from ditr_cache.store.receipt import FrameNote
from ditr_cache.store.writer import StoreWriter
from ditr_cache.types import BlockPlan, Scene

__all__ = ["FINALIZE_EVERY_S", "Committer"]

FINALIZE_EVERY_S = 600


class Committer(threading.Thread):
    """The consumer thread.

    Args:
        store: Where blocks go.
        settings: How the features of a block are kept.
        dataset: Label names and maps, for the blocks' attributes.
        provenance: Recorded in every receipt.
        permits: Given back, one a frame or sample that is dealt with.
        note: Called in this thread with lines for people: what was dropped, which block failed.
        done: Called in this thread at the end of every block.
        finalizes: Whether to finalise every ten minutes; of many processes on one store, one does.
        tests_depth: Whether what a view sees is tested against its depth map, if it has one.
    """

    def __init__(
        self,
        store: StoreWriter,
        settings: Callable[[BlockPlan], BlockSettings],
        dataset: Mapping[str, Any],
        provenance: Mapping[str, str | int | float | bool | None],
        permits: threading.Semaphore,
        note: Callable[[str], None],
        done: Callable[[BlockOutcome], None],
        *,
        finalizes: bool = True,
        tests_depth: bool = True,
    ) -> None:
        super().__init__(name="committer", daemon=True)
        self._store, self._settings, self._dataset, self._provenance = store, settings, dataset, provenance
        self._permits, self._tell, self._done, self._finalizes = permits, note, done, finalizes
        self._tests_depth = tests_depth
        self._inbox: queue.Queue[tuple[int, Event | None]] = queue.Queue()
        self._writer: BlockWriter | None = None
        self._sample_failed = False
        self._left_out: set[str] = set()
        self._began = time.time()
        self._finalized = time.monotonic()
        self._aborted = False
        self._awaited: Future[EncodedView] | None = None
        self.disk_full = False
        self.images = 0
        """Images written so far, without those of blocks that were given up."""
        self.at: tuple[str, int] = ("", 0)
        """The block at hand, and how many of its images are written."""
        self.error: BaseException | None = None

    def emit(self, number: int, event: Event) -> None:
        """Hand over an event; any thread, any order."""
        self._inbox.put((number, event))

    def close(self) -> None:
        """No more events; the thread ends after those that are in order."""
        self._inbox.put((-1, None))

    def abort(self) -> None:
        """Wait for no view any more: nobody is left to encode it."""
        self._aborted = True
        if self._awaited is not None:
            self._awaited.cancel()

    def run(self) -> None:
        """Handle events by number."""
        early: dict[int, Event] = {}
        expected = 0
        try:
            while True:
                number, event = self._inbox.get()
                if event is None:
                    break
                early[number] = event
                while expected in early:
                    self._handle(early.pop(expected))
                    expected += 1
        except BaseException as error:
            self.error = error
        finally:
            if self._writer is not None:
                self._store.abandon(self._writer)

    def _handle(self, event: Event) -> None:
        block = event.block
        try:
            if self._aborted:
                # what is left of the block must not be committed as if it were all
                return
            if isinstance(event, FrameJob):
                self._frame(event)
            elif isinstance(event, EndBlock):
                self._end(block)
            elif block.failure is None:
                self._note(event)
        except (DitrCacheError, OSError) as error:
            block.fail(error)
            if isinstance(event, EndBlock):
                self._give_up(block)
        finally:
            if isinstance(event, FrameJob | BeginSample):
                self._permits.release()

    def _note(self, event: BeginBlock | BeginSample | LeaveOut) -> None:
        if isinstance(event, BeginBlock):
            self._began, self.at = time.time(), (event.block.plan.id, 0)
            self._writer = self._store.start_block(event.block.plan.id, self._settings(event.block.plan))
            return
        assert self._writer is not None
        if isinstance(event, LeaveOut):
            (self._writer.skipped if event.expected else self._writer.dropped).append(event.note)
            if not event.expected:
                self._tell_of(event.note)
            return
        scene = event.scene
        self._tell_of_untested(scene)
        self._sample_failed, self._left_out = False, set()
        try:
            self._writer.add_sample(scene.id, event.split, scene.points)
        except DitrCacheError as error:
            self._sample_failed = True
            self._drop(scene.id, None, error)

    def _tell_of_untested(self, scene: Scene) -> None:
        """Once a pass: identity and settings name a depth test that some views do not get."""
        lacking = sum(view.depth is None for view in scene.views)
        if lacking and self._tests_depth:
            self._tests_depth = False
            self._tell(
                f"{scene.id}: {lacking} of {len(scene.views)} views have no depth map, and see through things; "
                "further samples like it are not named (-s visibility.depth_margin=null says that none have one)"
            )

    def _frame(self, job: FrameJob) -> None:
        # in this order: whoever aborts sees what is awaited, or this thread sees that it was aborted
        self._awaited = job.encoded
        if self._aborted:
            return
        try:
            encoded = job.encoded.result()
            if job.block.failure is not None or self._sample_failed:
                return
            assert self._writer is not None
            if job.variant and job.view.name in self._left_out:
                # its base view was not finite, and variants are stored beside their base view only
                return
            self._writer.add_view(encoded)
            self.images += 1
            self.at = (self.at[0], self.at[1] + 1)
        except CancelledError:
            return
        except FrameError as error:
            if job.block.failure is None and self._writer is not None and job.view.name not in self._left_out:
                self._drop(job.sample, job.view.name, error)
                self._left_out |= {job.view.name} if job.variant == 0 else set()

    def _end(self, block: BlockState) -> None:
        writer = self._writer
        if block.failure is not None or writer is None:
            self._give_up(block)
            return
        if not writer.has_samples:
            reasons = "; ".join(note.reason for note in writer.dropped[:3]) or "nothing was planned"
            block.fail(FrameError(f"no usable sample: {reasons}"))
            self._give_up(block)
            return
        provenance = {
            **self._provenance,
            "started": round(self._began),
            "seconds": round(time.time() - self._began, 3),
        }
        receipt = writer.finish(block.generation, self._dataset, provenance)
        self._writer = None
        committed = self._store.commit(receipt)
        images, self.at = self.at[1], ("", 0)
        self._done(BlockOutcome(block.plan.id, committed, images if committed else 0))
        if self._finalizes and time.monotonic() - self._finalized > FINALIZE_EVERY_S:
            self._store.finalize(collect=False)
            self._finalized = time.monotonic()

    def _give_up(self, block: BlockState) -> None:
        if self._writer is not None:
            self._store.abandon(self._writer)
            self._writer = None
        self.images -= self.at[1]
        self.at = ("", 0)
        if self._store.has_receipt(block.plan.id, block.generation):
            # another writer was first, and its finaliser took our files
            self._done(BlockOutcome(block.plan.id))
            return
        reason = " ".join(str(block.failure).split()) or type(block.failure).__name__
        self._tell(f"block {block.plan.id} failed: {reason}")
        transient = isinstance(block.failure, OSError)
        if isinstance(block.failure, OSError) and block.failure.errno in (errno.ENOSPC, errno.EDQUOT):
            # not the block's fault, and records of it would fill the disk further with every attempt
            self.disk_full = True
        else:
            try:
                self._store.fail(block.plan.id, reason)
            except OSError as error:
                # the report names the block all the same
                self._tell(f"the failure of block {block.plan.id} could not be recorded: {error}")
        self._done(BlockOutcome(block.plan.id, failure=reason, transient=transient, disk_full=self.disk_full))

    def _drop(self, sample: str, view: str | None, error: DitrCacheError) -> None:
        assert self._writer is not None
        note = FrameNote(sample=sample, view=view, reason=" ".join(str(error).split()))
        self._writer.dropped.append(note)
        self._tell_of(note)

    def _tell_of(self, note: FrameNote) -> None:
        self._tell(f"{note.sample} {note.view or ''}: {note.reason}".replace(" :", ":"))
