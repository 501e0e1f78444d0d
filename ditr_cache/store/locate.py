# SPDX-License-Identifier: Apache-2.0
"""From what a person calls a store to where its objects are."""

from __future__ import annotations

import os
from pathlib import Path

from ditr_cache.store.commit_storage import CommitStorage
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.local import LocalStorage
from ditr_cache.store.local_commit import LocalCommitStorage
from ditr_cache.store.storage import Storage

__all__ = ["DEFAULT_CACHE_SIZE", "is_store", "local_path", "open_storage", "open_writable_storage"]

DEFAULT_CACHE_SIZE = 50 << 30


def local_path(location: str | os.PathLike[str]) -> Path | None:
    """The folder that a path or a `file://` URL names; None for any other URL."""
    text = os.fspath(location)
    scheme, found, rest = text.partition("://")
    if not found:
        return Path(text)
    return Path(rest) if scheme == "file" else None


def is_store(folder: Path) -> bool:
    """Whether a local folder is a store, be it unfinished."""
    return any((folder / name).exists() for name in ("zarr.json", "LATEST"))


def open_storage(
    location: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_size: int | None = None,
) -> Storage:
    """Where the objects of a store can be read.

    Args:
        location: A folder or a URL.
        cache_dir: Where to keep what a server gave; folders need none.
        cache_size: Bytes that the cache may take; None: 50 GiB.

    Raises:
        ConfigError: If URLs of that kind cannot be read here.
    """
    path = local_path(location)
    if path is not None:
        return LocalStorage(path)
    # URLs need libraries that folders should not wait for
    from ditr_cache.store.remote import RemoteStorage

    return RemoteStorage(os.fspath(location), cache_dir=cache_dir, cache_size=cache_size)


def open_writable_storage(
    location: str | os.PathLike[str], fs: Filesystem | None = None, *, single_writer: bool = False
) -> CommitStorage:
    """Where the objects of a store can be read and written.

    Args:
        location: A folder or a URL.
        fs: Durable operations of a folder.
        single_writer: Nobody else writes: object storage without conditional requests will do.

    Raises:
        ConfigError: If URLs of that kind cannot be written here.
    """
    path = local_path(location)
    if path is not None:
        return LocalCommitStorage(path, fs)
    from ditr_cache.store.remote.writable import WritableRemoteStorage

    return WritableRemoteStorage(os.fspath(location), single_writer=single_writer)
