# SPDX-License-Identifier: Apache-2.0
"""Are the documents of a store the ones that were written, and does the manifest follow from the others?"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from ditr_cache.config import canonical_json
from ditr_cache.errors import MetadataError
from ditr_cache.store.card import known_cards
from ditr_cache.store.documents import parse
from ditr_cache.store.identity import read_identity, root_document
from ditr_cache.store.manifest import Manifest, Plan, build_manifest
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.records import receipt_key
from ditr_cache.store.verify_array import Findings, read_document

__all__ = [
    "check_card",
    "check_derived",
    "check_latest",
    "check_named",
    "check_version",
    "read_all",
    "read_failure",
    "read_plan",
    "read_receipt",
    "read_root",
]

T = TypeVar("T")

_MANIFEST = re.compile(r"manifest-([0-9a-f]{64})\.json")


def _documents(found: Findings, folder: str) -> list[str]:
    """What is in a folder, hidden files aside. None need be there: archives and object stores have no empty folders."""
    if found.storage.remote:
        return sorted(key for key in found.sizes if key.startswith(f"{folder}/"))
    listed = found.attempt(folder, lambda: list(found.storage.list(f"{folder}/"))) or []
    return sorted(entry.key for entry in listed)


def read_all(found: Findings, folder: str, read: Callable[[Findings, str], T | None]) -> list[T]:
    """All sound documents of a folder."""
    documents = (found.attempt(path, partial(read, found, path)) for path in _documents(found, folder))
    return [document for document in documents if document is not None]


def read_root(found: Findings) -> dict[str, Any]:
    """The identity in the root, which has the form in which it was written."""
    data, identity = read_document(found, "zarr.json"), read_identity(found.storage)
    if data is not None and root_document(identity) != data:
        raise MetadataError("is not in the form in which it was written")
    return identity


def read_plan(found: Findings, path: str) -> Plan | None:
    """A plan, named by its hash."""
    data = read_document(found, path)
    if data is None:
        return None
    if f"plans/{hashlib.sha256(data).hexdigest()}.json" != path:
        raise MetadataError("its name is not the sha256 of its bytes")
    plan = parse(Plan, data, path)
    _check_canonical(plan.to_bytes(), data)
    return plan


def read_receipt(found: Findings, path: str) -> Receipt | None:
    """A receipt, named by its block."""
    data = read_document(found, path)
    if data is None:
        return None
    receipt = parse(Receipt, data, path)
    _check_canonical(receipt.to_bytes(), data)
    if receipt_key(receipt.block, receipt.generation) != path:
        raise MetadataError(f"is the receipt of block {receipt.block}")
    return receipt


def read_failure(found: Findings, path: str) -> None:
    """A record of a failure, with the hash of itself."""
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


def check_latest(found: Findings) -> Manifest | None:
    """The manifest that LATEST names; older ones must have the bytes of their names as well."""
    storage = found.storage
    if not found.attempt("LATEST", lambda: storage.exists("LATEST")):
        found.problem("LATEST", "is missing: nothing has been finalised; do it with: ditr-cache finalize STORE")
        return None
    data = read_document(found, "LATEST") or b""
    latest = data.decode("ascii", "replace").removesuffix("\n")
    if not _MANIFEST.fullmatch(latest) or not data.endswith(b"\n"):
        found.problem("LATEST", "does not name a manifest; write it again with: ditr-cache finalize STORE")
        latest = ""
    elif not found.attempt(latest, lambda: storage.exists(latest)):
        found.problem("LATEST", f"names {latest}, which is missing; write it again with: ditr-cache finalize STORE")
        latest = ""
    manifest = None
    for name in sorted({*_manifests(found), latest} - {""}):
        content = _hashed(found, name)
        if content is not None and name == latest:
            manifest = _manifest(found, name, content)
    return manifest


def check_version(found: Findings, version: str) -> Manifest | None:
    """The manifest of that version."""
    name = f"manifest-{version}.json"
    content = _hashed(found, name)
    return None if content is None else _manifest(found, name, content)


def _hashed(found: Findings, name: str) -> bytes | None:
    content = read_document(found, name)
    if content is None or hashlib.sha256(content).hexdigest() == name[9:-5]:
        return content
    found.problem(name, "its name is not the sha256 of its bytes")
    return None


def _manifest(found: Findings, name: str, content: bytes) -> Manifest | None:
    manifest = None
    with found.guard(name):
        manifest = parse(Manifest, content, name)
        _check_canonical(manifest.to_bytes(), content)
    return manifest


def _manifests(found: Findings) -> list[str]:
    """Names of all manifests, where that can be known."""
    names = found.sizes if found.storage.remote else os.listdir(found.storage.location)
    return [name for name in names if _MANIFEST.fullmatch(name)]


def check_named(found: Findings, manifest: Manifest, identity: dict[str, Any] | None) -> None:
    """The documents from which the manifest was made, as far as their names and bytes follow from it."""
    if identity is not None and identity != manifest.identity:
        found.problem("LATEST", "its manifest has another identity than the root")
    expected = {f"receipts/{name}.json": sha256 for name, sha256 in manifest.superseded.items()}
    for receipt in manifest.blocks.values():
        expected[receipt_key(receipt.block, receipt.generation)] = hashlib.sha256(receipt.to_bytes()).hexdigest()
    for path, sha256 in sorted(expected.items()):
        data = read_document(found, path)
        if data is not None and hashlib.sha256(data).hexdigest() != sha256:
            found.problem(path, "is not the receipt that the manifest has")


def check_derived(
    found: Findings,
    manifest: Manifest,
    identity: dict[str, Any] | None,
    plans: Iterable[Plan],
    receipts: Iterable[Receipt],
) -> None:
    """The manifest is a function of identity, plans and receipts."""
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


def check_card(found: Findings, manifest: Manifest) -> None:
    """The card is that of the manifest."""
    card = read_document(found, "STORE_CARD.md")
    if card is not None and card not in [known.encode() for known in known_cards(manifest)]:
        found.problem("STORE_CARD.md", "is not the card of the manifest; write it with: ditr-cache finalize STORE")
