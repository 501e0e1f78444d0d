# SPDX-License-Identifier: Apache-2.0
"""Blocks of other stores are brought into one as the commit protocol has it: objects, receipts, manifest, LATEST.

A store that is being filled is complete or not visible at any moment, and the same call goes on where a killed one
stopped: blocks with a receipt are skipped, and so are the objects of the others that are there. Objects get their names
only when their hash was right; in folders they are hashed again all the same before a receipt vouches for them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ditr_cache.errors import CorruptStoreError, StoreError
from ditr_cache.store.documents import parse
from ditr_cache.store.layout import block_file_name
from ditr_cache.store.manifest import Manifest, Plan, block_items, receipt_name
from ditr_cache.store.receipt import ObjectEntry, Receipt
from ditr_cache.store.storage import Storage
from ditr_cache.store.transfer_objects import Tally, copy_object, is_whole
from ditr_cache.store.writer import StoreWriter

__all__ = ["Job", "Kept", "Transfer"]

Task = Callable[[], Receipt | None]

_AHEAD = 4
"""Blocks that are worked on at the same time: enough for all threads, and few to take up again after a kill."""
_TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class Kept:
    """A block that the target has from elsewhere: it was left as it is."""

    block: str
    reason: str


@dataclass(frozen=True, slots=True)
class Job:
    """One block to bring."""

    tasks: tuple[Task, ...]
    """Side by side, in any order; the one that makes the block returns its receipt."""
    size: int
    """Bytes that have to pass."""
    receipt: Receipt | None = None
    """Where it is known beforehand."""
    after: tuple[tuple[Storage, str, str], ...] = ()
    """Receipts that this one replaced: source, name, sha256."""


class Transfer:
    """A store that is being filled from others. A context manager: folders take one at a time.

    Args:
        location: Folder or URL of the store.
        identity: It is created with this one, if it is not there.
        jobs: Threads.
        advance: Called with bytes that passed since the last call, in the caller's thread.
        rehash: Read again what is there already, also of finished blocks.

    Raises:
        IdentityMismatchError: If there is a store of another identity.
        StoreError: If something else is there, or another process is bringing blocks into it.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        identity: Mapping[str, Any],
        *,
        jobs: int = 8,
        advance: Callable[[int], object] | None = None,
        rehash: bool = False,
    ) -> None:
        self.writer = StoreWriter.create(location, identity)
        self.storage = self.writer.storage
        self.tally = Tally()
        self.kept: list[Kept] = []
        self.committed = 0
        """Blocks that were brought."""
        self.there = 0
        """Blocks that were there already."""
        self._threads, self._advance, self._rehash = jobs, advance or (lambda _: None), rehash
        self._jobs: list[Job] = []
        self._lock = -1

    def __enter__(self) -> Self:
        if not self.storage.remote:
            self._lock = _lock(Path(self.storage.location))
        try:
            self._look()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _look(self) -> None:
        receipts = list(self.writer.receipts())
        self._names = {receipt_name(receipt) for receipt in receipts}
        self.have = {receipt.block: receipt for receipt in sorted(receipts, key=lambda r: r.generation)}
        """The newest receipt of every block that is there."""
        self._sizes = {entry.key: entry.size for entry in self.storage.list("blocks/")}

    def add_plan(self, plan: Plan) -> None:
        """Record what is to come; until it has, the store shows as incomplete, whoever finalises it."""
        self.writer.add_plan(plan)

    def add(self, job: Job) -> None:
        """A block to bring by other means than copying."""
        self._jobs.append(job)

    @property
    def size(self) -> int:
        """Bytes that have to pass."""
        return sum(job.size for job in self._jobs)

    def copy(self, source: Storage, receipt: Receipt, superseded: Mapping[str, str] | None = None) -> None:
        """A block to copy as it is.

        Args:
            source: Where its objects are.
            receipt: It, as the source's manifest has it.
            superseded: Receipts that the source's manifest says were replaced, to be copied as well.
        """
        block = block_file_name(receipt.block)
        older = {name: sha256 for name, sha256 in (superseded or {}).items() if name.rpartition(".")[0] == block}
        have = self.have.get(receipt.block)
        if have is not None and have.to_bytes() != receipt.to_bytes():
            replaced = older.get(receipt_name(have)) == hashlib.sha256(have.to_bytes()).hexdigest()
            if not (replaced and receipt.generation > have.generation):
                equal = have.samples == receipt.samples and block_items(have) == block_items(receipt)
                self.keep(receipt.block, "the store has it from elsewhere" + ", with equal content" * equal)
                return
            have = None
        done = have is not None
        entries = receipt.object_entries
        there = {key: entry for key, entry in entries.items() if self._sizes.get(key) == entry.size}
        missing = {key: entry for key, entry in entries.items() if key not in there}
        doubtful = there if self._rehash or not (done or self.storage.remote) else {}
        self.tally.add(skipped=sum(entry.size for key, entry in there.items() if key not in doubtful))
        if missing:
            self._sweep(receipt)
        tasks = [self._copier(source, key, entry) for key, entry in missing.items()]
        tasks += [self._checker(source, key, entry) for key, entry in doubtful.items()]
        size = sum(entry.size for entry in (*missing.values(), *doubtful.values()))
        after = tuple((source, name, sha256) for name, sha256 in older.items() if name not in self._names)
        self.there += done
        self._jobs.append(Job(tuple(tasks), size, None if done else receipt, after))

    def keep(self, block: str, reason: str = "the store has it from elsewhere") -> None:
        """Record that a block was left as it is."""
        self.kept.append(Kept(block, reason))

    def run(self) -> None:
        """Bring all blocks.

        Raises:
            CorruptStoreError: If a source gives other bytes than its manifest says.
            OSError: If a medium or a server fails. What is finished stays.
        """
        waiting: deque[tuple[Job, list[Future[Receipt | None]]]] = deque()
        with ThreadPoolExecutor(self._threads, "transfer") as pool:
            try:
                for job in self._jobs:
                    waiting.append((job, [pool.submit(task) for task in job.tasks]))
                    while len(waiting) > _AHEAD + self._threads:
                        self._settle(*waiting.popleft())
                while waiting:
                    self._settle(*waiting.popleft())
            except BaseException:
                self.tally.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self._advance(self.tally.take())

    def finish(self) -> tuple[Manifest, str]:
        """Write the manifest and point LATEST to it; returns it and its sha256."""
        manifest = self.writer.finalize()
        return manifest, hashlib.sha256(manifest.to_bytes()).hexdigest()

    def _settle(self, job: Job, futures: list[Future[Receipt | None]]) -> None:
        """Wait for a block's tasks and commit it."""
        left: Iterable[Future[Receipt | None]] = futures
        while left:
            done, left = wait(left, timeout=_TICK_S, return_when=FIRST_EXCEPTION)
            self._advance(self.tally.take())
            for future in done:
                future.result()
        made = [receipt for receipt in (future.result() for future in futures) if receipt is not None]
        receipt = made[0] if made else job.receipt
        if receipt is not None:
            if not made:
                self._flush(receipt)
            if self.writer.commit(receipt):
                self.committed += 1
            else:
                self.keep(receipt.block, "another writer was first")
        for source, name, sha256 in job.after:
            self._copy_receipt(source, name, sha256)

    def _copier(self, source: Storage, key: str, entry: ObjectEntry) -> Task:
        return lambda: copy_object(source, self.storage, key, entry, self.tally)

    def _checker(self, source: Storage, key: str, entry: ObjectEntry) -> Task:
        def check() -> None:
            if is_whole(self.storage, key, entry, self.tally):
                self.tally.add(skipped=entry.size)
            else:
                copy_object(source, self.storage, key, entry, self.tally)

        return check

    def _copy_receipt(self, source: Storage, name: str, sha256: str) -> None:
        """A receipt that was replaced. Not before its successor: a finaliser would take it for the current one."""
        key = f"receipts/{name}.json"
        data = source.read(key)
        where = f"{source.location}/{key}"
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptStoreError("sha256 is not that of the manifest", where=where)
        receipt = parse(Receipt, data, where)
        if receipt_name(receipt) != name:
            raise CorruptStoreError(f"is the receipt of block {receipt.block}", where=where)
        if not self.storage.create_exclusively(key, data):
            self.keep(receipt.block, f"the store has another receipt of generation {receipt.generation}")

    def _flush(self, receipt: Receipt) -> None:
        """The folders, down to the last one, before the receipt vouches for what is in them."""
        folders = {parent.as_posix() for key in receipt.object_entries for parent in Path(key).parents[:-1]}
        for folder in sorted(folders, reverse=True):
            self.storage.flush(folder)

    def _sweep(self, receipt: Receipt) -> None:
        """Remove what killed transfers left in a block's folder; nobody else writes there."""
        if not self.storage.remote:
            for path in (Path(self.storage.location) / receipt.folder).rglob(".*.tmp"):
                path.unlink(missing_ok=True)


def _lock(folder: Path) -> int:
    fd = os.open(folder / ".transfer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # not lockf: a process that closes any other descriptor of the file would let go of it
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise StoreError(
            "another push, pull or merge is writing here", where=folder, hint="Wait until it is done."
        ) from error
    return fd
