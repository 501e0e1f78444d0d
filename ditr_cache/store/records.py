# SPDX-License-Identifier: Apache-2.0
"""Plans, receipts and records of failures: the small documents that a manifest is computed from."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ditr_cache.config import canonical_json
from ditr_cache.errors import CorruptStoreError, MetadataError, StoreError
from ditr_cache.store.documents import parse
from ditr_cache.store.layout import MAX_DOCUMENT_BYTES, block_file_name
from ditr_cache.store.manifest import DatasetEntry, Plan
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.storage import Entry, Storage, WritableStorage

__all__ = [
    "check_plan",
    "documents",
    "list_documents",
    "read_failures",
    "read_plans",
    "read_receipt",
    "read_receipts",
    "receipt_key",
    "record_failure",
]

_SIDE_BY_SIDE = 16
"""Requests for documents at the same time: they are small, and what they cost is the way."""


def list_documents(storage: Storage, folder: str) -> list[Entry]:
    """The documents directly in a folder (`plans`, `receipts`, `failures`), by name."""
    found = [entry for entry in storage.list(f"{folder}/") if entry.key.endswith(".json") and entry.key.count("/") == 1]
    return sorted(found, key=lambda entry: entry.key)


def documents(storage: Storage, folder: str) -> Iterator[tuple[Entry, bytes]]:
    """The same with their bytes; those that others remove meanwhile are left out."""
    entries = list_documents(storage, folder)

    def read(entry: Entry) -> bytes | None:
        try:
            # what is known to be small is asked for at once
            return storage.read(entry.key, min(max(entry.size, 1), MAX_DOCUMENT_BYTES))
        except CorruptStoreError:
            if storage.exists(entry.key):
                raise
            return None

    if storage.remote and len(entries) > 1:
        with ThreadPoolExecutor(_SIDE_BY_SIDE, "documents") as pool:
            found = list(pool.map(read, entries))
        yield from ((entry, data) for entry, data in zip(entries, found, strict=True) if data is not None)
        return
    for entry in entries:
        data = read(entry)
        if data is not None:
            yield entry, data


def read_plans(storage: Storage) -> Iterator[Plan]:
    """What runs intend.

    Raises:
        MetadataError: If one is not a plan.
    """
    for entry, data in documents(storage, "plans"):
        yield parse(Plan, data, f"{storage.location}/{entry.key}")


def check_plan(storage: Storage, plan: Plan) -> None:
    """Compare a plan with those that are there.

    Raises:
        StoreError: If it puts a sample into another block than one of them, or into two, or its labels mean others.
    """
    block_of: dict[str, str] = {}
    plans = [*read_plans(storage), plan]
    for known in plans[:-1]:
        _check_labels(storage, known.dataset, plan.dataset)
    for block in (block for known in plans for block in known.blocks):
        for sample in block.samples:
            if block_of.setdefault(sample.id, block.id) != block.id:
                raise StoreError(
                    f"sample {sample.id} is planned in blocks {block_of[sample.id]} and {block.id}",
                    where=storage.location,
                    hint="Name a new store for this data.",
                )


def _check_labels(storage: Storage, there: DatasetEntry, new: DatasetEntry) -> None:
    """A store has one list of classes for a label set, whatever plan a block is from."""
    for field in ("class_names", "label_maps"):
        have, want = getattr(there, field), getattr(new, field)
        for name in sorted(have.keys() & want.keys()):
            if have[name] != want[name]:
                raise StoreError(
                    f"the classes of {name} are others than those of the blocks that are there",
                    where=storage.location,
                    hint="Name a new store for this data, or give both data sets the same classes in the same order.",
                )


def read_receipts(storage: Storage) -> Iterator[Receipt]:
    """All receipts, of every generation, in the order of their names.

    Raises:
        MetadataError: If one is not a receipt, or that of another block.
    """
    for entry, data in documents(storage, "receipts"):
        yield _receipt(storage, entry.key, data)


def read_receipt(storage: Storage, block: str) -> Receipt | None:
    """The newest receipt of a block; None if it is not committed.

    Raises:
        MetadataError: If it is not a receipt, or that of another block.
    """
    name = f"receipts/{block_file_name(block)}"
    keys = [e.key for e in list_documents(storage, "receipts") if e.key.rsplit(".", 2)[0] == name]
    receipts = [_receipt(storage, key, storage.read(key)) for key in keys]
    return max(receipts, key=lambda r: r.generation, default=None)


def receipt_key(block: str, generation: int) -> str:
    """Where a receipt is."""
    return f"receipts/{block_file_name(block)}.{generation}.json"


def record_failure(storage: WritableStorage, block: str, reason: str) -> None:
    """Say why a block has no receipt, in place of earlier records."""
    record = {"block": block, "reason": reason, "time": round(time.time())}
    digest = hashlib.sha256(canonical_json(record).encode()).hexdigest()
    name = f"failures/{block_file_name(block)}"
    earlier = [entry.key for entry in list_documents(storage, "failures") if entry.key[:-38] == name]
    document = canonical_json({"failure": record, "sha256": digest}).encode()
    storage.create_exclusively(f"{name}-{uuid.uuid4().hex}.json", document)
    for key in earlier:
        storage.remove(key)


def read_failures(storage: Storage) -> dict[str, str]:
    """Latest reason by block.

    Raises:
        MetadataError: If one is no record of a failure.
    """
    found = {}
    for entry, data in sorted(documents(storage, "failures"), key=lambda pair: pair[0].modified):
        try:
            record = json.loads(data)["failure"]
            block, reason = str(record["block"]), str(record["reason"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise MetadataError(
                "not a failure record", where=f"{storage.location}/{entry.key}", hint="Remove the file."
            ) from error
        found[block] = reason
    return found


def _receipt(storage: Storage, key: str, data: bytes) -> Receipt:
    where = f"{storage.location}/{key}"
    try:
        receipt = parse(Receipt, data, where)
    except MetadataError as error:
        hint = (
            "If no newer version of the program wrote it, it is damaged: remove the file and give the extract command "
            "again, which does this one block anew."
        )
        raise MetadataError(error.what, where=where, hint=hint) from error
    if key != receipt_key(receipt.block, receipt.generation):
        raise MetadataError(f"this receipt is for block {receipt.block}", where=where)
    return receipt
