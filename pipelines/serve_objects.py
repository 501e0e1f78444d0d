# SPDX-License-Identifier: Apache-2.0
"""Which objects of a store a server may give away: those that its manifests list, and nothing else."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ditr_cache.errors import CorruptStoreError, MetadataError
from ditr_cache.store.layout import data_object
from ditr_cache.store.local import LocalStorage, open_inside
from ditr_cache.store.manifest import Manifest, receipt_name
from ditr_cache.store.receipt import ObjectEntry, Receipt
from ditr_cache.store.sign import signature_key
from ditr_cache.store.versions import read_manifest

__all__ = ["Listed", "ServedObjects"]

_log = logging.getLogger(__name__)

_SWAPS = 8
"""How often LATEST may change while it is looked at, before something must be wrong with it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What is known of an object that may be had."""

    sha256: str | None = None
    """Of its bytes; None: it may be replaced at any time."""
    size: int | None = None
    """Bytes; None: not known."""


class ServedObjects:
    """The objects that may be had; grows when a new manifest becomes the current one.

    What an earlier manifest listed stays, for as long as it exists: whoever began to read with it can go on.

    Args:
        root: Folder of the store.

    Raises:
        StoreNotFoundError: If there is no store, or none of its blocks has been finalised.
        CorruptStoreError: If the manifest is missing or damaged.
        MetadataError: If it is not a valid manifest.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._storage = root, LocalStorage(root)
        self._lock = threading.Lock()
        self._latest = b""
        self._listed: dict[str, Listed] = {"LATEST": Listed(), "STORE_CARD.md": Listed(), "zarr.json": Listed()}
        with self._lock:
            self._load()

    @property
    def version(self) -> str:
        """sha256 of the current manifest."""
        return self._latest.decode().removeprefix("manifest-").removesuffix(".json\n")

    def __len__(self) -> int:
        return len(self._listed)

    def open(self, key: str) -> tuple[int, Listed] | None:
        """A file descriptor of an object, and what is known of it; None if there is no such object to be had.

        Args:
            key: Path relative to the store, as the client gave it.

        Raises:
            StoreError: If LATEST has changed and names nothing that can be read.
            OSError: If the object is there and cannot be opened.
        """
        if key == "LATEST":
            return self._open_latest(), self._listed[key]
        if key not in self._listed:
            # a manifest may be known to the client and not yet to us: it may have LATEST from elsewhere
            os.close(self._open_latest())
        listed = self._listed.get(key)
        if listed is None:
            return None
        try:
            fd = open_inside(self._root, key)
        except (CorruptStoreError, MetadataError) as error:
            if listed.size is not None:
                _log.warning("not served: %s", error.args[0])
            return None
        size = os.fstat(fd).st_size
        if listed.size is not None and listed.size != size:
            os.close(fd)
            _log.warning("not served: %s/%s: %d bytes, the manifest says %d", self._root, key, size, listed.size)
            return None
        return fd, listed

    def _open_latest(self) -> int:
        """LATEST, once all that it names can be had."""
        with self._lock:
            for _ in range(_SWAPS):
                fd = open_inside(self._root, "LATEST")
                if os.pread(fd, len(self._latest) + 1, 0) == self._latest:
                    return fd
                os.close(fd)
                self._load()
        raise CorruptStoreError("changes all the time", where=self._root / "LATEST")

    def _load(self) -> None:
        manifest, version = read_manifest(self._storage)
        found = {f"manifest-{version}.json": Listed(version), signature_key(version): Listed()}
        # one assignment: other threads see the old table or the new one
        self._listed = self._listed | found | dict(_listed(manifest))
        self._latest = f"manifest-{version}.json\n".encode()


def _listed(manifest: Manifest) -> Iterator[tuple[str, Listed]]:
    for name, sha256 in manifest.superseded.items():
        yield f"receipts/{name}.json", Listed(sha256)
    for receipt in manifest.blocks.values():
        document = receipt.to_bytes()
        yield f"receipts/{receipt_name(receipt)}.json", Listed(hashlib.sha256(document).hexdigest(), len(document))
        for path, entry in _objects(receipt):
            yield f"{receipt.folder}/{path}", Listed(entry.sha256, entry.size)


def _objects(receipt: Receipt) -> Iterator[tuple[str, ObjectEntry]]:
    yield "zarr.json", receipt.metadata
    for name, array in receipt.arrays.items():
        yield f"{name}/zarr.json", array.metadata
        if array.data is not None:
            yield f"{name}/{data_object(array.shape)}", array.data
