# SPDX-License-Identifier: Apache-2.0
"""The commit protocol: any number of writers and finalisers on one store, killed at any moment, lose nothing.

A block is written under a never-reused name; creating its receipt, exclusively, is the commit. The manifest is computed
from plans and receipts, and LATEST names it. See docs/design/002-commit-protocol.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditr_cache.config import canonical_json
from ditr_cache.errors import IdentityMismatchError, StoreError
from ditr_cache.store.card import store_card
from ditr_cache.store.collect import rubbish
from ditr_cache.store.commit_storage import CommitStorage
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.identity import identity_difference, read_identity, root_document
from ditr_cache.store.layout import block_file_name
from ditr_cache.store.locate import open_writable_storage
from ditr_cache.store.manifest import Manifest, Plan, build_manifest
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.records import (
    check_plan,
    list_documents,
    read_failures,
    read_plans,
    read_receipt,
    read_receipts,
    receipt_key,
    record_failure,
)

if TYPE_CHECKING:
    from ditr_cache.store.block import BlockWriter
    from ditr_cache.store.encode import BlockSettings

__all__ = ["StoreWriter"]


class StoreWriter:
    """A store that is being filled.

    Args:
        location: A folder or a URL, or what `open_writable_storage` made of it.
        fs: Durable operations of a folder.

    Raises:
        StoreNotFoundError: If there is no store.
        ConfigError: If URLs of that kind cannot be written here.
    """

    def __init__(self, location: str | os.PathLike[str] | CommitStorage, fs: Filesystem | None = None) -> None:
        self.storage = open_writable_storage(location, fs) if isinstance(location, str | os.PathLike) else location
        """Where its objects are."""
        self.identity = read_identity(self.storage)
        self._active: set[str] = set()

    @property
    def location(self) -> Path | str:
        """A path, or a URL without credentials."""
        return self.storage.location

    @classmethod
    def create(
        cls,
        location: str | os.PathLike[str],
        identity: Mapping[str, Any],
        fs: Filesystem | None = None,
        *,
        single_writer: bool = False,
    ) -> StoreWriter:
        """Open a store of that identity, creating it if need be.

        Args:
            location: A folder or a URL.
            identity: Compared with that of a store which is there.
            fs: Durable operations of a folder.
            single_writer: The caller sees to it that nobody else writes: take object storage without conditional
                requests, too.

        Raises:
            IdentityMismatchError: If there is one of another identity; the message lists every difference.
            StoreError: If the folder holds something else, or the server lets two writers overwrite each other.
            ConfigError: If URLs of that kind cannot be written here.
        """
        storage = open_writable_storage(location, fs, single_writer=single_writer)
        if not storage.exists("zarr.json"):
            others = [entry.key.rstrip("/") for entry in storage.entries("") if not _is_ours(entry.key)]
            # another process may have created the store since
            if others and not storage.exists("zarr.json"):
                raise StoreError(
                    f"the folder is not empty and not a store (it holds {sorted(others)[0]})",
                    where=storage.location,
                    hint="Name a new folder.",
                )
        storage.prove()
        storage.prepare()
        with storage.lock():
            if not storage.exists("zarr.json"):
                storage.create_exclusively("zarr.json", root_document(identity))
        writer = cls(storage)
        plain = json.loads(canonical_json(identity))
        if writer.identity != plain:
            raise IdentityMismatchError(
                "the store was made with other settings:\n  "
                + "\n  ".join(identity_difference(writer.identity, plain)),
                where=storage.location,
                hint="Ask for the store's settings, or name a new store.",
            )
        return writer

    def add_plan(self, plan: Plan) -> None:
        """Record what a run intends. The same plan twice is one plan.

        Raises:
            StoreError: If it puts a sample into another block than an earlier plan, or into two.
        """
        data = plan.to_bytes()
        key = f"plans/{hashlib.sha256(data).hexdigest()}.json"
        with self.storage.lock():
            if self.storage.exists(key):
                return
            check_plan(self.storage, plan)
            self.storage.create_exclusively(key, data)
            if self.storage.locks:
                return
        try:
            # another one may have come at the same time: of two that do not agree, at most one stays
            check_plan(self.storage, plan)
        except StoreError:
            self.storage.remove(key)
            raise

    def receipt(self, block: str) -> Receipt | None:
        """The newest receipt of a block; None if it is not committed."""
        return read_receipt(self.storage, block)

    def has_receipt(self, block: str, generation: int = 0) -> bool:
        """Whether that generation of a block is committed; a look-up, not a listing."""
        return self.storage.exists(receipt_key(block, generation))

    def committed(self) -> set[str]:
        """Ids of all committed blocks."""
        return {receipt.block for receipt in self.receipts()}

    def receipts(self) -> Iterator[Receipt]:
        """All receipts, of every generation, in the order of their names."""
        return read_receipts(self.storage)

    def start_block(self, block: str, settings: BlockSettings) -> BlockWriter:
        """Begin a block under a fresh name."""
        # it needs torch, for which those who only finalise or collect should not wait
        from ditr_cache.store.block import BlockWriter

        unique = uuid.uuid4().hex
        name = _folder_name(block, unique)
        folder, fs = self.storage.workspace(f"blocks/{name}")
        self._active.add(name)
        try:
            return BlockWriter(folder, block, unique, settings, fs)
        except OSError:
            self._active.discard(name)
            raise

    def commit(self, receipt: Receipt) -> bool:
        """Make a finished block count. False if another writer was first; its block stands, ours is removed.

        The block is what `start_block` began, or all its objects were put into `storage` by the caller.

        Raises:
            StoreError: If objects are missing: a collector took the block's files.
            OSError: If the medium or the server fails; the block does not count then, and may be done again.
        """
        # collectors take what is left of a block that is done, and cannot tell it from one that is being done again
        with self.storage.lock() if receipt.generation else nullcontext():
            try:
                return self._commit(receipt)
            finally:
                self._active.discard(receipt.folder.removeprefix("blocks/"))

    def _commit(self, receipt: Receipt) -> bool:
        storage, key = self.storage, receipt_key(receipt.block, receipt.generation)
        data = receipt.to_bytes()
        storage.publish(receipt.folder, receipt.objects)
        there = {entry.key: entry.size for entry in storage.list(f"{receipt.folder}/")}
        whole = all(there.get(name) == entry.size for name, entry in receipt.object_entries.items())
        # in this order: whose files are gone because another was first finds that one's receipt
        if not whole and not storage.exists(key):
            storage.withdraw(receipt.folder, key)
            raise StoreError(
                "its files were collected while it was written",
                where=receipt.block,
                hint="Run the same command again, without `gc --now` or another run's finalising beside it.",
            )
        try:
            won = storage.create_exclusively(key, data)
        except FileNotFoundError:
            # a collector may take our temporary file only when the block has a receipt already
            won = storage.exists(key) and storage.read(key) == data
        except OSError:
            storage.withdraw(receipt.folder, key)
            raise
        if not won and receipt.uuid.encode() not in storage.read(key):
            storage.remove_tree(receipt.folder)
        return won

    def abandon(self, block: BlockWriter) -> None:
        """Remove an unfinished block."""
        self._active.discard(_folder_name(block.block, block.uuid))
        block.abort()

    def fail(self, block: str, reason: str) -> None:
        """Record why a block has no receipt, in place of earlier records. The next run tries it again."""
        record_failure(self.storage, block, reason)

    def failures(self) -> dict[str, str]:
        """Latest reason by block, for blocks that have no receipt."""
        done = self.committed()
        return {block: reason for block, reason in read_failures(self.storage).items() if block not in done}

    def finalize(self, *, collect: bool = True) -> Manifest:
        """Write the manifest of all receipts and point LATEST to it.

        A slow finaliser must not take back what a fast one published: listing and swapping happen under one lock, or
        else the swap fails if LATEST is no longer what it was before the listing. Afterwards the receipts are listed
        again: two naive finalisers lost 5 of 10 blocks when tried.

        Args:
            collect: Also remove what nothing refers to. Not while other processes of one's own do blocks again: what
                they write looks like what is left of blocks that are done.
        """
        with self.storage.lock():
            manifest, name = self._point_latest()
            if collect:
                self._collect(manifest, now=False, keep=name)
        return manifest

    def collect(self, *, now: bool = False) -> list[str]:
        """Remove what no receipt refers to. Returns what was removed, relative to the store.

        Args:
            now: Also blocks without any receipt that are younger than 24 hours, and those that a newer generation
                replaced. Only when no writer is at work.
        """
        with self.storage.lock():
            # first, so that no reader is sent to what goes
            manifest, name = self._point_latest()
            return self._collect(manifest, now=now, keep=name)

    def _point_latest(self) -> tuple[Manifest, str]:
        storage = self.storage
        storage.prepare()
        while True:
            # before anything is listed: who swaps later has seen more
            latest = storage.look("LATEST")
            names = self._receipt_names()
            # a receipt that is listed but not flushed would be in the manifest, and gone after a power cut
            storage.flush("receipts/")
            manifest = build_manifest(self.identity, read_plans(storage), self.receipts())
            data = manifest.to_bytes()
            name = f"manifest-{hashlib.sha256(data).hexdigest()}.json"
            if not storage.create_exclusively(name, data):
                # one that was damaged since
                storage.replace(name, data)
            # before LATEST: whoever swaps last has then written the card last, too
            storage.replace("STORE_CARD.md", store_card(manifest).encode())
            if storage.swap("LATEST", f"{name}\n".encode(), latest) and self._receipt_names() == names:
                return manifest, name

    def _collect(self, manifest: Manifest, *, now: bool, keep: str) -> list[str]:
        # called under the lock
        referred = manifest.blocks.values() if now else self.receipts()
        kept = self._active | {receipt.folder.removeprefix("blocks/") for receipt in referred}
        removed = rubbish(self.storage, {block_file_name(b) for b in manifest.blocks}, kept, keep, now=now)
        for key in removed:
            if key.endswith("/"):
                self.storage.remove_tree(key)
            else:
                self.storage.remove(key)
        return [key.rstrip("/") for key in removed]

    def _receipt_names(self) -> list[str]:
        return [entry.key for entry in list_documents(self.storage, "receipts")]


def _folder_name(block: str, unique: str) -> str:
    return f"{block_file_name(block)}-{unique}"


def _is_ours(key: str) -> bool:
    return key in {"plans/", "blocks/", "receipts/", "failures/", ".lock"} or (
        key.startswith(".") and key.endswith(".tmp")
    )
