# SPDX-License-Identifier: Apache-2.0
"""The stages of extraction in one process, put together: blocks go in, committed blocks come out.

feeder thread     scene -> views        loads points, starts the pool's work, numbers everything
pool threads      decode, project       image -> pixels, points -> hits
calling thread    ViT                   pixels -> patch maps -> seen rows
pool threads      narrow, hash          rows -> float16 or int8
committer thread  write, commit         in the order of the blocks; a receipt a block
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import torch

from ditr_cache.backbones import Backbone
from ditr_cache.config import ExtractConfig
from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import StoreError
from ditr_cache.pipelines.committer import Committer
from ditr_cache.pipelines.encoder import FrameEncoder
from ditr_cache.pipelines.events import BeginSample, BlockState, FrameJob, Idle
from ditr_cache.pipelines.feeder import Feeder
from ditr_cache.pipelines.intent import block_settings, dataset_entry, provenance
from ditr_cache.pipelines.outcome import BlockOutcome
from ditr_cache.store.writer import StoreWriter
from ditr_cache.training import distributed
from ditr_cache.types import BlockPlan

__all__ = ["Stages", "full_disk", "pick_device"]

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def pick_device(name: str) -> str:
    """`auto` is CUDA where there is one.

    Raises:
        ConfigError: If the device is asked for and not there.
    """
    return str(distributed.pick_device(name))


class Stages:
    """One pass over blocks.

    Args:
        dataset: Source of scenes.
        store: Where blocks go.
        config: All settings.
        backbone: The frozen network.
        note: Called in the committer's thread with lines for people.
        done: Called in the committer's thread at the end of every block.
        stopped: Whether to stop soon: the block at hand is given up.
        shared: Whether other processes fill the store for the same run. Then finalising is left to who distributes the
            blocks.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: StoreWriter,
        config: ExtractConfig,
        backbone: Backbone,
        *,
        note: Callable[[str], None],
        done: Callable[[BlockOutcome], None],
        stopped: Callable[[], bool],
        shared: bool = False,
    ) -> None:
        self._dataset, self._store, self._config, self._backbone = dataset, store, config, backbone
        self._note, self._done, self._stopped, self._shared = note, done, stopped, shared
        self._failing = threading.Event()

    def run(self, blocks: Iterable[BlockState | None], tick: Callable[[Committer], None]) -> None:
        """Start the stages, run the ViT here, and wait for the last commit.

        Args:
            blocks: What is to be done, in order, as it comes; None where there is nothing to do at the moment.
            tick: Called in this thread now and then.

        Raises:
            OSError: If the disk is full.
        """
        run, backbone = self._config.run, self._backbone
        threads = run.threads or len(os.sched_getaffinity(0))
        # a batch at the ViT, the next one ready, and for every thread one being prepared and one being written
        capacity = 2 * run.batch_size
        permits = threading.Semaphore(capacity + 2 * threads)
        frames: queue.Queue[FrameJob | BeginSample | Idle | None] = queue.Queue()
        committer = Committer(
            self._store,
            lambda block: block_settings(block, self._config, backbone),
            dataset_entry(self._dataset).model_dump(mode="json"),
            provenance(self._config, backbone),
            permits,
            self._note,
            self._done,
            finalizes=not self._shared,
            tests_depth=self._config.visibility.depth_margin is not None and not self._config.visibility.zbuffer,
        )
        pool = ThreadPoolExecutor(threads, "frames", initializer=_one_thread)
        feeder = Feeder(
            self._dataset,
            blocks,
            self._config,
            backbone.patch_size,
            pool,
            frames,
            committer.emit,
            permits,
            # nobody may wait for a permit that a dead committer would have given back
            lambda: self._failing.is_set() or self._stopped() or committer.error is not None or committer.disk_full,
        )
        anywhere = block_settings(BlockPlan("", ()), self._config, backbone)
        encoder = FrameEncoder(backbone, run.batch_size, capacity, anywhere, pool)

        def check() -> None:
            tick(committer)
            if committer.error is not None:
                raise committer.error
            if committer.disk_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        _settle_threads()
        _keep_pages()
        committer.start()
        feeder.start()
        try:
            encoder.run(frames, check)
        except BaseException:
            self._failing.set()
            pool.shutdown(cancel_futures=True)
            committer.abort()
            raise
        finally:
            feeder.join()
            pool.shutdown()
            committer.close()
            committer.join()
        check()
        if feeder.error is not None:
            raise feeder.error


@contextmanager
def full_disk(store: object) -> Iterator[None]:
    """Within, a full disk is an error that says so.

    Args:
        store: Where it is full.
    """
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

    That is 3 of 25 core-ms an image with Pillow. Left alone, glibc learns it from the first blocks that are freed, but
    not where MALLOC_TRIM_THRESHOLD_ is set, as Dask does for its workers: they took twice the processor time.
    """
    with suppress(OSError, AttributeError):  # other C libraries have no such setting
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def _one_thread() -> None:
    # the setting belongs to the calling thread: every core decodes its own image, the ViT keeps its threads
    torch.set_num_threads(1)
