# SPDX-License-Identifier: Apache-2.0
"""What the processes do that tests start and kill. Real files, real flushing."""

import time
from pathlib import Path

from store_builder import random_block, run_extraction

from ditr_cache.errors import StoreNotFoundError
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.writer import StoreWriter

SETTINGS = BlockSettings(8, "int8", "zstd")
BLOCKS = [random_block(i, f"block {i}", points=200, views=3) for i in range(8)]


def extract(path: Path, order: list[int]) -> None:
    """An extraction that does the blocks in this order."""
    run_extraction(path, Filesystem(), [BLOCKS[i] for i in order], SETTINGS, planned=BLOCKS)


def extract_only(path: Path, order: list[int]) -> None:
    """The same, killed before it could finalise."""
    run_extraction(path, Filesystem(), [BLOCKS[i] for i in order], SETTINGS, planned=BLOCKS, finalize=False)


def finalise_again_and_again(path: Path) -> None:
    """A finaliser that never rests until all blocks are there."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if len(StoreWriter(path).finalize().blocks) == len(BLOCKS):
                return
        except StoreNotFoundError:
            time.sleep(0.001)
    raise TimeoutError
