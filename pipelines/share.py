# SPDX-License-Identifier: Apache-2.0
"""What pushing, pulling, merging and attaching have in common: a source that was looked at, and a report."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ditr_cache.errors import CorruptStoreError, MetadataError
from ditr_cache.pipelines.progress import Progress
from ditr_cache.store.locate import open_storage
from ditr_cache.store.manifest import Manifest, content_digest
from ditr_cache.store.sign import check_signature, read_signature, signature_key
from ditr_cache.store.storage import Storage
from ditr_cache.store.transfer import Kept, Transfer
from ditr_cache.store.versions import read_manifest, split_version

__all__ = ["DEFAULT_JOBS", "ShareReport", "Source", "move", "open_source", "report"]

DEFAULT_JOBS = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A store to take from, as it was at one moment."""

    storage: Storage
    manifest: Manifest
    version: str
    """sha256 of the manifest."""
    signer: str | None = None
    """Fingerprint of the key that vouches for it, where one was asked for."""


def open_source(location: str | os.PathLike[str], key: Path | None = None) -> Source:
    """Look at a store.

    Args:
        location: A folder or a URL; `@sha256:<version>` behind it pins that version.
        key: Public key of who must have signed it.

    Raises:
        StoreNotFoundError: If there is no store, or not that version of it.
        MetadataError: If its manifest makes no sense.
        SignatureError: If it is not signed with that key.
    """
    where, pinned = split_version(location)
    storage = open_storage(where)
    manifest, version = read_manifest(storage, pinned)
    signer = None if key is None else check_signature(storage, version, key)
    if manifest.digest != content_digest(manifest.identity, manifest.blocks.values()):
        raise MetadataError("its content digest is not that of its blocks", where=f"{where}/manifest-{version}.json")
    return Source(storage, manifest, version, signer)


@dataclass(frozen=True, slots=True)
class ShareReport:
    """A store after something was brought into it."""

    store: str
    manifest: str
    """sha256 of its manifest."""
    digest: str
    blocks: int
    """Present."""
    missing: int
    """Planned and not present."""
    blocks_copied: int
    """Brought by this run."""
    blocks_there: int
    """There before."""
    kept: tuple[Kept, ...]
    """Blocks that the store has from elsewhere, and that were left as they are."""
    differs: tuple[str, ...]
    """Parts of the manifest in which a whole copy is not what its source is: it holds more, or something else."""
    objects: int
    """Brought by this run."""
    bytes_copied: int
    bytes_skipped: int
    """Were there already."""
    seconds: float
    signer: str | None
    """Fingerprint of the key that vouches for the source, where one was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def move(transfer: Transfer, progress: Progress) -> float:
    """Bring what was added to a transfer; returns seconds."""
    began = time.monotonic()
    progress.begin(transfer.size)
    try:
        transfer.run()
    finally:
        progress.end()
    return time.monotonic() - began


def report(transfer: Transfer, seconds: float, source: Source | None = None, signer: str | None = None) -> ShareReport:
    """Finish a store and describe it.

    Args:
        transfer: All of it has been moved.
        seconds: What that took.
        source: Where the store is meant to be a whole copy of one; its signature comes along.
        signer: For the report.

    Raises:
        CorruptStoreError: If a fresh copy is not what its source is.
    """
    fresh = not transfer.have
    if source is not None:
        signature = read_signature(source.storage, source.version)
        if signature is not None:
            # before LATEST names the version: who looks for it then finds it
            transfer.storage.replace(signature_key(source.version), signature)
    manifest, version = transfer.finish()
    differs: tuple[str, ...] = ()
    if source is not None and version != source.version:
        fields = type(manifest).model_fields
        differs = tuple(name for name in fields if getattr(manifest, name) != getattr(source.manifest, name))
        if fresh and not transfer.kept and not differs:
            raise CorruptStoreError("its manifest is not in the form in which it was written", where=source.version)
    tally = transfer.tally
    return ShareReport(
        store=str(transfer.storage.location),
        manifest=version,
        digest=manifest.digest,
        blocks=len(manifest.blocks),
        missing=len(manifest.planned),
        blocks_copied=transfer.committed,
        blocks_there=transfer.there,
        kept=tuple(transfer.kept),
        differs=differs,
        objects=tally.objects,
        bytes_copied=tally.copied,
        bytes_skipped=tally.skipped,
        seconds=round(seconds, 3),
        signer=signer,
    )
