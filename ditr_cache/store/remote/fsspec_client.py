# SPDX-License-Identifier: Apache-2.0
"""Everything that fsspec knows: `hf://`, `sftp://`, `memory://`, and clouds where obstore is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import fsspec

from ditr_cache.errors import StoreError
from ditr_cache.store.remote.client import public_url
from ditr_cache.store.storage import Entry

__all__ = ["FsspecClient"]

_MODIFIED = ("LastModified", "last_modified", "mtime", "updated", "created", "last_commit")


class FsspecClient:
    """See `Client`.

    Args:
        url: Root of the keys.

    Raises:
        ValueError: If fsspec knows no such protocol.
        ImportError: If the package for it is not installed.
    """

    def __init__(self, url: str) -> None:
        # instances are shared by default, also with processes that are forked, where they hang
        self._fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=not url.startswith("memory://"))
        self._url, self._root = url, root.rstrip("/")

    def read(self, key: str) -> memoryview:
        """A whole object."""
        return memoryview(self._fs.cat_file(self._path(key)))

    def read_range(self, key: str, start: int, stop: int) -> memoryview:
        """Bytes start..stop of an object."""
        return memoryview(self._fs.cat_file(self._path(key), start=start, end=stop))

    def size(self, key: str) -> int:
        """Bytes of an object."""
        size = self._fs.info(self._path(key))["size"]
        if size is None:
            raise OSError("the server does not say how large it is")
        return int(size)

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects below `prefix`."""
        if self._url.startswith(("http://", "https://")):
            raise StoreError("web servers cannot list what they have", where=public_url(self._url))
        found: dict[str, dict[str, Any]] = self._fs.find(self._path(prefix.rstrip("/")), detail=True)
        for path, info in found.items():
            yield Entry(self._fs._strip_protocol(path)[len(self._root) :].lstrip("/"), info["size"], _modified(info))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")


def _modified(info: dict[str, Any]) -> float:
    """When an object was changed; now, which is never old enough to be collected, where nothing says so."""
    value = next((info[name] for name in _MODIFIED if info.get(name) is not None), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else datetime.now().timestamp()
