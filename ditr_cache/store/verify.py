# SPDX-License-Identifier: Apache-2.0
"""Is every byte of a store the one that was written, and does it all fit together?

Damage is never an exception here: everything that is wrong is listed. Memory: one view's hits and one chunk of rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ditr_cache.config import canonical_json
from ditr_cache.errors import MetadataError, StoreNotFoundError
from ditr_cache.store.card import store_card
from ditr_cache.store.documents import parse
from ditr_cache.store.layout import block_file_name
from ditr_cache.store.manifest import Manifest, Plan, build_manifest
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.verify_array import Findings, Problem, read_document
from ditr_cache.store.verify_block import check_block
from ditr_cache.store.writer import read_identity, root_document

__all__ = ["Problem", "VerifyReport", "verify_store"]

T = TypeVar("T")

_MANIFEST = re.compile(r"manifest-([0-9a-f]{64})\.json")


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


def verify_store(root: Path, *, progress: Callable[[int], object] | None = None, deep: bool = True) -> VerifyReport:
    """Check every object of a store.

    Documents: canonical, named by their hash, and the manifest is what identity, plans and receipts give. Data: sizes,
    sha256, crc32c of every chunk and index, content digests, and that tables, rows and hits point at what exists.

    Args:
        root: Folder of the store.
        progress: Called with the number of bytes read since the last call.
        deep: Read and decode all data. False: documents and the sizes of data objects only.

    Raises:
        StoreNotFoundError: If there is no store. Nothing else: damage is reported.
    """
    if not root.is_dir() or not any(os.path.lexists(root / name) for name in ("zarr.json", "LATEST", "receipts")):
        raise StoreNotFoundError("no store here", where=root, hint="Make one with: ditr-cache extract SOURCE STORE")
    found = Findings(root, progress)
    _check_tree(found)
    identity = found.attempt("zarr.json", lambda: _read_root(found))
    plans = _read_all(found, "plans", _read_plan)
    receipts = _read_all(found, "receipts", _read_receipt)
    _read_all(found, "failures", _read_failure)
    manifest = _check_latest(found)
    if manifest is not None:
        _check_derived(found, manifest, identity, plans, receipts)
    blocks = {receipt.folder: receipt for receipt in receipts}
    blocks |= {receipt.folder: receipt for receipt in manifest.blocks.values()} if manifest is not None else {}
    newest = {r.block: r for r in sorted(blocks.values(), key=lambda r: r.generation)}
    for folder, receipt in sorted(blocks.items()):
        # one that a newer generation replaced may have been collected
        if newest[receipt.block] is receipt or (root / folder).is_dir():
            check_block(found, receipt, deep=deep)
    _note_orphans(found, blocks.keys())
    return VerifyReport(tuple(found.problems), tuple(found.notes), found.objects, found.bytes, len(newest))


def _check_tree(found: Findings) -> None:
    """Plain files and folders only, whatever they are."""
    for parent, folders, files in os.walk(found.root):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            mode = os.lstat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "a special file"
                found.problem(os.path.relpath(path, found.root), f"is {kind}; stores hold plain files only")


def _documents(found: Findings, folder: str) -> list[str]:
    if not (found.root / folder).exists():
        # archives and object stores have no empty folders; what is missing from it shows in the manifest
        return []
    names = found.attempt(folder, lambda: os.listdir(found.root / folder)) or []
    return [f"{folder}/{name}" for name in sorted(names) if not name.startswith(".")]


def _read_all(found: Findings, folder: str, read: Callable[[Findings, str], T | None]) -> list[T]:
    documents = (found.attempt(path, partial(read, found, path)) for path in _documents(found, folder))
    return [document for document in documents if document is not None]


def _read_root(found: Findings) -> dict[str, Any]:
    data, identity = read_document(found, "zarr.json"), read_identity(found.root)
    if data is not None and root_document(identity) != data:
        raise MetadataError("is not in the form in which it was written")
    return identity


def _read_plan(found: Findings, path: str) -> Plan | None:
    data = read_document(found, path)
    if data is None:
        return None
    if f"plans/{hashlib.sha256(data).hexdigest()}.json" != path:
        raise MetadataError("its name is not the sha256 of its bytes")
    plan = parse(Plan, data, path)
    _check_canonical(plan.to_bytes(), data)
    return plan


def _read_receipt(found: Findings, path: str) -> Receipt | None:
    data = read_document(found, path)
    if data is None:
        return None
    receipt = parse(Receipt, data, path)
    _check_canonical(receipt.to_bytes(), data)
    if f"receipts/{block_file_name(receipt.block)}.{receipt.generation}.json" != path:
        raise MetadataError(f"is the receipt of block {receipt.block}")
    return receipt


def _read_failure(found: Findings, path: str) -> None:
    data = read_document(found, path)
    if data is None:
        return
    try:
        record = json.loads(data)["failure"]
        body = canonical_json(record).encode()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MetadataError("is not a failure record") from error
    document = {"failure": record, "sha256": hashlib.sha256(body).hexdigest()}
    _check_canonical(canonical_json(document).encode(), data)


def _check_canonical(canonical: bytes, data: bytes) -> None:
    if canonical != data:
        raise MetadataError("is not in the form in which it was written")


def _check_latest(found: Findings) -> Manifest | None:
    """The manifest that LATEST names; older ones must have the bytes of their names as well."""
    if not (found.root / "LATEST").exists():
        found.problem("LATEST", "is missing: nothing has been finalised; do it with: ditr-cache finalize STORE")
        return None
    data = read_document(found, "LATEST") or b""
    latest = data.decode("ascii", "replace").removesuffix("\n")
    if not _MANIFEST.fullmatch(latest) or not data.endswith(b"\n"):
        found.problem("LATEST", "does not name a manifest; write it again with: ditr-cache finalize STORE")
    elif not os.path.lexists(found.root / latest):
        found.problem("LATEST", f"names {latest}, which is missing; write it again with: ditr-cache finalize STORE")
    manifest = None
    for name in sorted(os.listdir(found.root)):
        match = _MANIFEST.fullmatch(name)
        content = read_document(found, name) if match else None
        if match is None or content is None:
            continue
        if hashlib.sha256(content).hexdigest() != match[1]:
            found.problem(name, "its name is not the sha256 of its bytes")
        elif name == latest:
            with found.guard(name):
                manifest = parse(Manifest, content, name)
                _check_canonical(manifest.to_bytes(), content)
    return manifest


def _check_derived(
    found: Findings,
    manifest: Manifest,
    identity: dict[str, Any] | None,
    plans: Iterable[Plan],
    receipts: Iterable[Receipt],
) -> None:
    """The manifest is a function of identity, plans and receipts; the card is one of the manifest."""
    if identity is not None:
        with found.guard("LATEST"):
            expected = build_manifest(identity, plans, receipts)
            if expected.to_bytes() != manifest.to_bytes():
                absent = sorted(set(expected.blocks) - set(manifest.blocks))
                what = f"{len(absent)} blocks are not in it" if absent else "they say something else"
                raise MetadataError(
                    f"its manifest is not the one of root, plans and receipts: {what}; "
                    "write it again with: ditr-cache finalize STORE"
                )
    card = read_document(found, "STORE_CARD.md")
    if card is not None and card != store_card(manifest).encode():
        found.problem("STORE_CARD.md", "is not the card of the manifest; write it with: ditr-cache finalize STORE")


def _note_orphans(found: Findings, folders: Iterable[str]) -> None:
    for path in sorted(set(_documents(found, "blocks")) - set(folders)):
        found.note(path, "is no committed block: being written, or left by a run that was killed")
