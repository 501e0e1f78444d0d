# SPDX-License-Identifier: Apache-2.0
"""What in a store nothing refers to any more, and is old enough that nobody can be writing or reading it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Set as AbstractSet
from pathlib import Path

from ditr_cache.store.layout import is_block_folder

__all__ = ["ORPHAN_AGE_S", "changed", "rubbish"]

ORPHAN_AGE_S = 24 * 3600
"""How old a block without any receipt must be before it counts as abandoned."""


def rubbish(store: Path, done: AbstractSet[str], kept: AbstractSet[str], manifest: str, *, now: bool) -> list[Path]:
    """Paths to remove. To be called under the store's lock: temporary files beside it then belong to dead processes.

    Args:
        store: The store.
        done: File names of the committed blocks; other folders of theirs were beaten.
        kept: Block folders that a receipt names, or that this process is writing.
        manifest: Name of the current manifest.
        now: Do not wait for things to be 24 hours old.
    """
    horizon = time.time() - ORPHAN_AGE_S
    removed: list[Path] = [*store.glob(".*.tmp"), *(store / "plans").glob(".*.tmp")]
    removed += [
        path
        for path in sorted((store / "blocks").iterdir())
        if is_block_folder(path.name)
        and path.name not in kept
        and (path.name[:-33] in done or now or _newest(path) < horizon)
    ]
    for folder in ("receipts", "failures"):
        removed += [
            path
            for path in (store / folder).glob(".*.tmp")
            # .<block>.<g>.json.<uuid>.tmp
            if now or (folder == "receipts" and path.name[1:].rsplit(".", 4)[0] in done) or changed(path) < horizon
        ]
    removed += [p for p in (store / "failures").glob("[!.]*.json") if p.name[:-38] in done]
    removed += [p for p in store.glob("manifest-*.json") if p.name != manifest and (now or changed(p) < horizon)]
    return removed


def changed(path: Path) -> float:
    """When a file was last changed; never, if it is gone."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        # its writer is alive and has just cleaned up: nothing to collect
        return math.inf


def _newest(folder: Path) -> float:
    entries = ((parent, name) for parent, folders, files in os.walk(folder) for name in (".", *folders, *files))
    return max((changed(Path(parent, name)) for parent, name in entries), default=math.inf)
