# SPDX-License-Identifier: Apache-2.0
"""The commit protocol: any number of writers and finalisers on one store, killed at any moment, lose nothing.

A block is written under a never-reused name; creating its receipt, exclusively, is the commit. The manifest is computed
from plans and receipts, and LATEST names it. See docs/design/002-commit-protocol.md.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditr_cache.config import canonical_json
from ditr_cache.errors import IdentityMismatchError, MetadataError, StoreError, StoreNotFoundError
from ditr_cache.store.card import store_card
from ditr_cache.store.collect import changed, rubbish
from ditr_cache.store.documents import parse
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.layout import FORMAT_VERSION, block_file_name, group_document
from ditr_cache.store.manifest import Manifest, Plan, build_manifest
from ditr_cache.store.receipt import Receipt

if TYPE_CHECKING:
    from ditr_cache.store.block import BlockWriter
    from ditr_cache.store.encode import BlockSettings

__all__ = ["StoreWriter", "identity_difference", "read_identity", "root_document"]


def root_document(identity: Mapping[str, Any]) -> bytes:
    """The store's own `zarr.json`."""
    attributes = {"ditr_cache": {"format_version": FORMAT_VERSION, "identity": dict(identity)}}
    return json.dumps(group_document(attributes), indent=2, sort_keys=True, allow_nan=False).encode()


def read_identity(store: Path) -> dict[str, Any]:
    """The identity in a store's root.

    Raises:
        StoreNotFoundError: If there is no store.
        MetadataError: If the root is not that of a store of this format version.
    """
    where = store / "zarr.json"
    try:
        data = where.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreNotFoundError(
            "no store here", where=store, hint="Make one with: ditr-cache extract SOURCE STORE"
        ) from error
    try:
        attributes = json.loads(data)["attributes"]["ditr_cache"]
        version, identity = attributes["format_version"], attributes["identity"]
        # NaN, lone surrogates and what is nested too deeply cannot be written again
        root_document(identity)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MetadataError("not the root of a ditr-cache store", where=where) from error
    if version != FORMAT_VERSION or not isinstance(identity, dict):
        raise MetadataError(
            f"format version {version!r}, this program reads {FORMAT_VERSION}", where=where, hint="Upgrade ditr-cache."
        )
    return identity


def identity_difference(have: Any, want: Any, path: str = "") -> list[str]:
    """Lines `key: store has X, asked for Y` for everything in which two identities differ."""
    if isinstance(have, Mapping) and isinstance(want, Mapping):
        lines = []
        for key in sorted(have.keys() | want.keys()):
            lines += identity_difference(have.get(key), want.get(key), f"{path}.{key}" if path else str(key))
        return lines
    if have == want:
        return []
    return [f"{path}: the store has {json.dumps(have)}, asked for {json.dumps(want)}"]


class StoreWriter:
    """A store that is being filled.

    Args:
        path: Folder of the store.
        fs: Durable operations.
    """

    def __init__(self, path: Path, fs: Filesystem | None = None) -> None:
        self.path = path
        self.identity = read_identity(path)
        self._fs = fs or Filesystem()
        self._active: set[str] = set()

    @classmethod
    def create(cls, path: Path, identity: Mapping[str, Any], fs: Filesystem | None = None) -> StoreWriter:
        """Open a store of that identity, creating it if need be.

        Raises:
            IdentityMismatchError: If there is one of another identity; the message lists every difference.
            StoreError: If the folder holds something else.
        """
        fs = fs or Filesystem()
        if path.exists() and not path.is_dir():
            raise StoreError("this is a file, a store is a folder", where=path)
        if path.is_dir() and not (path / "zarr.json").exists():
            others = [p.name for p in path.iterdir() if not _is_ours(p.name)]
            # another process may have created the store since
            if others and not (path / "zarr.json").exists():
                raise StoreError(
                    f"the folder is not empty and not a store (it holds {sorted(others)[0]})",
                    where=path,
                    hint="Name a new folder.",
                )
        _make_folders(path, fs)
        with fs.lock(path / ".lock"):
            if not (path / "zarr.json").exists():
                fs.create_exclusively(path / "zarr.json", root_document(identity))
        writer = cls(path, fs)
        plain = json.loads(canonical_json(identity))
        if writer.identity != plain:
            raise IdentityMismatchError(
                "the store was made with other settings:\n  "
                + "\n  ".join(identity_difference(writer.identity, plain)),
                where=path,
                hint="Ask for the store's settings, or name a new store.",
            )
        return writer

    def add_plan(self, plan: Plan) -> None:
        """Record what a run intends. The same plan twice is one plan.

        Raises:
            StoreError: If it puts a sample into another block than an earlier plan, or into two.
        """
        data = plan.to_bytes()
        path = self.path / "plans" / f"{hashlib.sha256(data).hexdigest()}.json"
        with self._fs.lock(self.path / ".lock"):
            if path.exists():
                return
            block_of: dict[str, str] = {}
            for block in (block for known in (*self._plans(), plan) for block in known.blocks):
                for sample in block.samples:
                    if block_of.setdefault(sample.id, block.id) != block.id:
                        raise StoreError(
                            f"sample {sample.id} is planned in blocks {block_of[sample.id]} and {block.id}",
                            where=self.path,
                            hint="Name a new store for this data.",
                        )
            self._fs.create_exclusively(path, data)

    def receipt(self, block: str) -> Receipt | None:
        """The newest receipt of a block; None if it is not committed."""
        name = block_file_name(block)
        found = [p for p in (self.path / "receipts").glob("*.json") if p.name.rsplit(".", 2)[0] == name]
        receipts = [self._read_receipt(path) for path in found]
        return max(receipts, key=lambda r: r.generation, default=None)

    def has_receipt(self, block: str, generation: int = 0) -> bool:
        """Whether that generation of a block is committed; a look-up, not a listing."""
        return (self.path / "receipts" / f"{block_file_name(block)}.{generation}.json").exists()

    def committed(self) -> set[str]:
        """Ids of all committed blocks."""
        return {receipt.block for receipt in self.receipts()}

    def receipts(self) -> Iterator[Receipt]:
        """All receipts, of every generation, in the order of their names."""
        for path in sorted((self.path / "receipts").glob("[!.]*.json")):
            yield self._read_receipt(path)

    def start_block(self, block: str, settings: BlockSettings) -> BlockWriter:
        """Begin a block under a fresh name."""
        # it needs torch, for which those who only finalise or collect should not wait
        from ditr_cache.store.block import BlockWriter

        unique = uuid.uuid4().hex
        folder = self.path / "blocks" / f"{block_file_name(block)}-{unique}"
        self._active.add(folder.name)
        try:
            return BlockWriter(folder, block, unique, settings, self._fs)
        except OSError:
            self._active.discard(folder.name)
            raise

    def commit(self, receipt: Receipt) -> bool:
        """Make a finished block count. False if another writer was first; its block stands, ours is removed.

        Raises:
            StoreError: If a collector took the block's files.
        """
        # collectors take what is left of a block that is done, and cannot tell it from one that is being done again
        with self._fs.lock(self.path / ".lock") if receipt.generation else nullcontext():
            return self._commit(receipt)

    def _commit(self, receipt: Receipt) -> bool:
        name = f"{block_file_name(receipt.block)}.{receipt.generation}.json"
        path = self.path / "receipts" / name
        data = receipt.to_bytes()
        # in this order: whose files are gone because another was first finds that one's receipt
        if not all((self.path / name).is_file() for name in receipt.objects) and not path.exists():
            self._active.discard(receipt.folder.removeprefix("blocks/"))
            self._fs.remove_tree(self.path / receipt.folder)
            raise StoreError(
                "its files were collected while it was written",
                where=receipt.block,
                hint="Run the same command again, without `gc --now` or another run's finalising beside it.",
            )
        try:
            won = self._fs.create_exclusively(path, data)
        except FileNotFoundError:
            # a collector may take our temporary file only when the block has a receipt already
            won = path.exists() and path.read_bytes() == data
        except OSError:
            # a full disk must not keep the block as well; but a receipt that stands refers to it
            self._active.discard(receipt.folder.removeprefix("blocks/"))
            if not path.exists():
                self._fs.remove_tree(self.path / receipt.folder)
            raise
        self._active.discard(receipt.folder.removeprefix("blocks/"))
        if not won:
            self._fs.remove_tree(self.path / receipt.folder)
        return won

    def abandon(self, block: BlockWriter) -> None:
        """Remove an unfinished block."""
        self._active.discard(block.folder.name)
        block.abort()

    def fail(self, block: str, reason: str) -> None:
        """Record why a block has no receipt, in place of earlier records. The next run tries it again."""
        record = {"block": block, "reason": reason, "time": round(time.time())}
        body = canonical_json(record)
        document = canonical_json({"failure": record, "sha256": hashlib.sha256(body.encode()).hexdigest()})
        name = block_file_name(block)
        earlier = [p for p in (self.path / "failures").glob("[!.]*.json") if p.name[:-38] == name]
        self._fs.create_exclusively(self.path / "failures" / f"{name}-{uuid.uuid4().hex}.json", document.encode())
        for path in earlier:
            self._fs.remove(path)

    def failures(self) -> dict[str, str]:
        """Latest reason by block, for blocks that have no receipt."""
        done, found = self.committed(), {}
        for path in sorted((self.path / "failures").glob("[!.]*.json"), key=changed):
            try:
                record = json.loads(path.read_bytes())["failure"]
                block, reason = str(record["block"]), str(record["reason"])
            except FileNotFoundError:
                # its block was committed meanwhile
                continue
            except (ValueError, KeyError, TypeError) as error:
                raise MetadataError("not a failure record", where=path, hint="Remove the file.") from error
            if block not in done:
                found[block] = reason
        return found

    def finalize(self) -> Manifest:
        """Write the manifest of all receipts and point LATEST to it.

        Listing and swapping happen under one lock, and the receipts are listed again before it is let go: two naive
        finalisers lost 5 of 10 blocks when tried.
        """
        with self._fs.lock(self.path / ".lock"):
            manifest, name = self._point_latest()
            self._collect(manifest, now=False, keep=name)
        return manifest

    def collect(self, *, now: bool = False) -> list[str]:
        """Remove what no receipt refers to. Returns what was removed, relative to the store.

        Args:
            now: Also blocks without any receipt that are younger than 24 hours, and those that a newer generation
                replaced. Only when no writer is at work.
        """
        with self._fs.lock(self.path / ".lock"):
            # first, so that no reader is sent to what goes
            manifest, name = self._point_latest()
            return self._collect(manifest, now=now, keep=name)

    def _point_latest(self) -> tuple[Manifest, str]:
        # archives have no empty folders, and a power cut may take them
        _make_folders(self.path, self._fs)
        while True:
            names = self._receipt_names()
            # a receipt that is listed but not flushed would be in the manifest, and gone after a power cut
            self._fs.sync_folder(self.path / "receipts")
            manifest = build_manifest(self.identity, self._plans(), self.receipts())
            data = manifest.to_bytes()
            name = f"manifest-{hashlib.sha256(data).hexdigest()}.json"
            if not (self._fs.create_exclusively(self.path / name, data)):
                # one that was damaged since
                self._fs.replace(self.path / name, data)
            self._fs.replace(self.path / "STORE_CARD.md", store_card(manifest).encode())
            self._fs.replace(self.path / "LATEST", f"{name}\n".encode())
            if self._receipt_names() == names:
                return manifest, name

    def _collect(self, manifest: Manifest, *, now: bool, keep: str) -> list[str]:
        # called under the lock
        referred = manifest.blocks.values() if now else self.receipts()
        kept = self._active | {receipt.folder.removeprefix("blocks/") for receipt in referred}
        removed = rubbish(self.path, {block_file_name(b) for b in manifest.blocks}, kept, keep, now=now)
        for path in removed:
            if path.is_dir() and not path.is_symlink():
                self._fs.remove_tree(path)
            else:
                self._fs.remove(path)
        return [str(p.relative_to(self.path)) for p in removed]

    def _plans(self) -> Iterable[Plan]:
        for path in sorted((self.path / "plans").glob("[!.]*.json")):
            yield parse(Plan, path.read_bytes(), str(path))

    def _receipt_names(self) -> list[str]:
        return sorted(p.name for p in (self.path / "receipts").glob("[!.]*.json"))

    def _read_receipt(self, path: Path) -> Receipt:
        receipt = parse(Receipt, path.read_bytes(), str(path))
        if path.name != f"{block_file_name(receipt.block)}.{receipt.generation}.json":
            raise MetadataError(f"this receipt is for block {receipt.block}", where=path)
        return receipt


def _make_folders(store: Path, fs: Filesystem) -> None:
    for folder in ("plans", "blocks", "receipts", "failures"):
        fs.make_folder(store / folder)


def _is_ours(name: str) -> bool:
    return name in {"plans", "blocks", "receipts", "failures", ".lock"} or (
        name.startswith(".") and name.endswith(".tmp")
    )
