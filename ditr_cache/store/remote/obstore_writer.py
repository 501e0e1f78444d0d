# SPDX-License-Identifier: Apache-2.0
"""What obstore does to fill a bucket: conditional and plain PUTs, uploads in parts, listings with folders, removal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

from ditr_cache.store.commit_storage import Seen
from ditr_cache.store.remote.obstore_client import open_obstore, plain_errors
from ditr_cache.store.storage import Entry

__all__ = ["PART_BYTES", "ObstoreWriter"]

PART_BYTES = 8 << 20
"""Objects above this size go in parts."""
_PARTS = 9_000
"""S3 takes 10,000 at most."""
_PARTS_AT_ONCE = 4
_TIMEOUT = "300s"
"""Of one request: a part takes this long at 28 kB/s."""
_PART_RETRIES = 6
"""Of a part: to begin a large object anew would cost more than the other requests do."""


class ObstoreWriter:
    """Asks once, except for parts. All methods raise FileNotFoundError, PermissionError, or what obstore raises.

    Args:
        url: Root of the keys.
    """

    def __init__(self, url: str) -> None:
        # S3 compares what arrives with this checksum; Google and Azure have checksums of their own, which obstore knows
        config: dict[str, Any] = {"aws_checksum_algorithm": "SHA256"} if urlsplit(url).scheme in ("s3", "s3a") else {}
        self._store = open_obstore(url, timeout=_TIMEOUT, **config)
        self._uploads = open_obstore(url, timeout=_TIMEOUT, retries=_PART_RETRIES, **config)

    def create(self, key: str, data: bytes) -> bool:
        """Create an object; False if there is one."""
        with plain_errors(key):
            try:
                obstore.put(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def update(self, key: str, data: bytes, seen: Seen) -> bool:
        """Replace the object that was seen; False if it is another one now, or gone."""
        with plain_errors(key):
            try:
                obstore.put(self._store, key, data, mode=seen.tag)
            except (PreconditionError, AlreadyExistsError, NotFoundError, FileNotFoundError):
                return False
        return True

    def put(self, key: str, data: bytes) -> None:
        """Create or replace an object."""
        with plain_errors(key):
            obstore.put(self._store, key, data, use_multipart=False)

    def upload(self, key: str, source: Path | Iterable[bytes], size: int) -> None:
        """Create or replace a large object; readers see all of it or none."""
        with plain_errors(key):
            obstore.put(
                self._uploads,
                key,
                source,
                use_multipart=True,
                chunk_size=max(PART_BYTES, size // _PARTS),
                max_concurrency=_PARTS_AT_ONCE,
            )

    def look(self, key: str) -> Seen:
        """An object and its version."""
        with plain_errors(key):
            try:
                found = obstore.get(self._store, key)
                # Google goes by the version, the others by the tag
                tag = {name: found.meta[name] for name in ("e_tag", "version") if found.meta[name] is not None}
                return Seen(bytes(found.bytes()), tag)
            except (NotFoundError, FileNotFoundError):
                return Seen(None)

    def entries(self, folder: str) -> Iterator[Entry]:
        """What is directly in a folder; those of folders end with `/`."""
        with plain_errors(folder):
            found: Any = obstore.list_with_delimiter(self._store, folder.rstrip("/") or None)
        for name in found["common_prefixes"]:
            yield Entry(f"{name.rstrip('/')}/", 0, 0.0)
        for meta in found["objects"]:
            yield Entry(meta["path"], int(meta["size"]), meta["last_modified"].timestamp())

    def remove(self, keys: Sequence[str]) -> None:
        """Remove objects; missing ones are fine."""
        with plain_errors(keys[0]):
            try:
                obstore.delete(self._store, list(keys))
            except (NotFoundError, FileNotFoundError):
                # Google and Azure say so, and S3 does not
                return
