# SPDX-License-Identifier: Apache-2.0
"""Is every byte of a store the one that was written, and does it all fit together?

Damage is never an exception here: everything that is wrong is listed. Memory: one view's hits and one chunk of rows.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ditr_cache.errors import StoreNotFoundError
from ditr_cache.store.locate import open_storage
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.storage import Storage
from ditr_cache.store.verify_array import Findings, Problem
from ditr_cache.store.verify_block import check_block
from ditr_cache.store.verify_documents import (
    check_card,
    check_derived,
    check_latest,
    check_named,
    check_version,
    read_all,
    read_failure,
    read_plan,
    read_receipt,
    read_root,
)

__all__ = ["Problem", "VerifyReport", "verify_store"]

_SIDE_BY_SIDE = 4
"""Blocks on a server."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify_store` found."""

    problems: tuple[Problem, ...]
    """Everything that is wrong; empty for a sound store."""
    notes: tuple[Problem, ...]
    """What is odd but loses nothing: blocks without a receipt, files of other programs."""
    objects: int
    """Objects read."""
    bytes: int
    """Bytes read."""
    blocks: int
    """Committed blocks."""

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def verify_store(
    store: Storage | str | os.PathLike[str],
    *,
    version: str | None = None,
    progress: Callable[[int], object] | None = None,
    deep: bool = True,
) -> VerifyReport:
    """Check every object of a store.

    Documents: canonical, named by their hash, and the manifest is what identity, plans and receipts give. Data: sizes,
    sha256, crc32c of every chunk and index, content digests, and that tables, rows and hits point at what exists.
    Web servers cannot tell what they have: there, all that follows from the manifest is checked.

    Args:
        store: A folder, a URL, or where its objects are.
        version: Check what the manifest of this sha256 names, and nothing else; None: the current one, and all objects.
        progress: Called with the number of bytes read since the last call.
        deep: Read and decode all data. False: documents and the sizes of data objects only.

    Raises:
        StoreNotFoundError: If there is no store.
        RemoteError: If its server cannot be reached. Nothing else: damage is reported.
        ConfigError: If URLs of that kind cannot be read here.
    """
    storage = open_storage(store) if isinstance(store, str | os.PathLike) else store
    if not _is_store(storage):
        raise StoreNotFoundError(
            "no store here", where=storage.location, hint="Make one with: ditr-cache extract SOURCE STORE"
        )
    found = Findings(storage, progress)
    if not storage.remote:
        _check_tree(found, Path(storage.location))
    elif storage.listable:
        found.sizes |= {entry.key: entry.size for entry in storage.list("")}
    identity = found.attempt("zarr.json", lambda: read_root(found))
    manifest = check_latest(found) if version is None else check_version(found, version)
    if manifest is not None and version is None:
        check_card(found, manifest)
    if storage.listable and version is None:
        plans = read_all(found, "plans", read_plan)
        receipts = read_all(found, "receipts", read_receipt)
        read_all(found, "failures", read_failure)
        if manifest is not None:
            check_derived(found, manifest, identity, plans, receipts)
    else:
        receipts = []
        if version is None:
            found.note("", "a web server cannot tell what it has: checked is what the manifest names")
        if manifest is not None:
            check_named(found, manifest, identity)
    blocks = {receipt.folder: receipt for receipt in receipts}
    blocks |= {receipt.folder: receipt for receipt in manifest.blocks.values()} if manifest is not None else {}
    newest = {r.block: r for r in sorted(blocks.values(), key=lambda r: r.generation)}
    # one that a newer generation replaced may have been collected
    there = [r for _, r in sorted(blocks.items()) if newest[r.block] is r or next(storage.list(f"{r.folder}/"), None)]
    _check_blocks(found, there, deep=deep)
    if storage.listable and version is None:
        _note_orphans(found, blocks.keys())
    return VerifyReport(tuple(found.problems), tuple(found.notes), found.objects, found.bytes, len(newest))


def _is_store(storage: Storage) -> bool:
    """Whether there is anything of a store, however damaged."""
    if not storage.remote:
        root = Path(storage.location)
        return root.is_dir() and any(os.path.lexists(root / name) for name in ("zarr.json", "LATEST", "receipts"))
    if storage.exists("zarr.json") or storage.exists("LATEST"):
        return True
    return storage.listable and next(storage.list("receipts/"), None) is not None


def _check_blocks(found: Findings, receipts: Sequence[Receipt], *, deep: bool) -> None:
    """One block after the other; on a server a few side by side, for most of the time is the way."""
    turns = threading.Lock()

    def progress(n: int) -> None:
        if found.progress is not None:
            with turns:
                found.progress(n)

    def check(receipt: Receipt) -> Findings:
        part = Findings(found.storage, progress)
        check_block(part, receipt, deep=deep)
        return part

    with ExitStack() as stack:
        parts: Iterable[Findings] = map(check, receipts)
        if found.storage.remote:
            pool = ThreadPoolExecutor(_SIDE_BY_SIDE, "verify")
            stack.callback(pool.shutdown, cancel_futures=True)
            parts = pool.map(check, receipts)
        for part in parts:
            found.problems += part.problems
            found.notes += part.notes
            found.objects += part.objects
            found.bytes += part.bytes


def _check_tree(found: Findings, root: Path) -> None:
    """Plain files and folders only, whatever they are."""
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "a special file"
                found.problem(os.path.relpath(path, root), f"is {kind}; stores hold plain files only")


def _note_orphans(found: Findings, folders: Iterable[str]) -> None:
    if found.storage.remote:
        there = {"/".join(key.split("/")[:2]) for key in found.sizes if key.startswith("blocks/")}
    else:
        folder = Path(found.storage.location, "blocks")
        there = {f"blocks/{name}" for name in os.listdir(folder) if name[0] != "."} if folder.is_dir() else set()
    for path in sorted(there - set(folders)):
        found.note(path, "is no committed block: being written, or left by a run that was killed")
