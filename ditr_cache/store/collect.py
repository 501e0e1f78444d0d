# SPDX-License-Identifier: Apache-2.0
"""What in a store nothing refers to any more, and is old enough that nobody can be writing or reading it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from ditr_cache.store.commit_storage import CommitStorage
from ditr_cache.store.layout import is_block_folder
from ditr_cache.store.storage import Entry

__all__ = ["ORPHAN_AGE_S", "rubbish"]

ORPHAN_AGE_S = 24 * 3600
"""How old a block without any receipt must be before it counts as abandoned."""


def rubbish(
    storage: CommitStorage, done: AbstractSet[str], kept: AbstractSet[str], manifest: str, *, now: bool
) -> list[str]:
    """Keys to remove; those of folders end with `/`. To be called under the store's lock.

    Where that keeps others out, temporary files belong to dead processes, and blocks that were beaten to nobody.

    Args:
        storage: The store, in which something has just been written.
        done: File names of the committed blocks; other folders of theirs were beaten.
        kept: Block folders that a receipt names, or that this process is writing.
        manifest: Name of the current manifest.
        now: Do not wait for things to be 24 hours old.
    """
    root = storage.entries("")
    # a server's clock and ours may differ: what has just been written tells what time it is there
    clock = min(time.time(), max(entry.modified for entry in root if not entry.key.endswith("/")))
    horizon = clock - ORPHAN_AGE_S

    def goes(entry: Entry, *, at_once: bool) -> bool:
        return now or at_once or _last_change(storage, entry) < horizon

    removed = [e for e in _temporary([*root, *storage.entries("plans/")]) if goes(e, at_once=storage.locks)]
    blocks = [e for e in storage.entries("blocks/") if is_block_folder(_name(e)) and _name(e) not in kept]
    removed += [e for e in blocks if goes(e, at_once=storage.locks and _name(e)[:-33] in done)]
    # .<block>.<g>.json.<uuid>.tmp
    receipts = _temporary(storage.entries("receipts/"))
    removed += [e for e in receipts if goes(e, at_once=_name(e)[1:].rsplit(".", 4)[0] in done)]
    failures = storage.entries("failures/")
    removed += [e for e in _temporary(failures) if goes(e, at_once=False)]
    removed += [e for e in failures if not _name(e).startswith(".") and _name(e)[:-38] in done]
    current = (manifest, manifest.removesuffix(".json") + ".sig")
    removed += [e for e in root if _is_manifest(_name(e)) and _name(e) not in current and goes(e, at_once=False)]
    return [entry.key for entry in removed]


def _last_change(storage: CommitStorage, entry: Entry) -> float:
    return storage.newest(entry.key) if entry.key.endswith("/") else entry.modified


def _temporary(entries: list[Entry]) -> Iterator[Entry]:
    return (entry for entry in entries if _name(entry).startswith(".") and _name(entry).endswith(".tmp"))


def _is_manifest(name: str) -> bool:
    """Or the signature of one, which goes with it."""
    return name.startswith("manifest-") and name.endswith((".json", ".sig"))


def _name(entry: Entry) -> str:
    return entry.key.rstrip("/").rpartition("/")[2]
