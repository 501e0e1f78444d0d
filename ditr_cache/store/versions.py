# SPDX-License-Identifier: Apache-2.0
"""Which manifest a store is read by: the one that LATEST names, or one that is asked for by its sha256."""

from __future__ import annotations

import hashlib
import os
import re

from ditr_cache.errors import ConfigError, CorruptStoreError, MetadataError, StoreNotFoundError
from ditr_cache.store.documents import parse
from ditr_cache.store.manifest import Manifest
from ditr_cache.store.storage import Storage

__all__ = ["read_manifest", "split_version"]

_LATEST = re.compile(rb"manifest-([0-9a-f]{64})\.json\n")


def split_version(path_or_url: str | os.PathLike[str]) -> tuple[str, str | None]:
    """A location and the version behind `@sha256:`, if there is one.

    Raises:
        ConfigError: If what follows is no sha256.
    """
    location, found, version = os.fspath(path_or_url).partition("@sha256:")
    if found and not re.fullmatch(r"[0-9a-f]{64}", version):
        raise ConfigError(
            f"{version!r} is no sha256: 64 digits of 0-9a-f", hint="`ditr-cache info STORE` prints it as `manifest`."
        )
    return location, version if found else None


def read_manifest(storage: Storage, version: str | None = None) -> tuple[Manifest, str]:
    """A manifest and its sha256.

    Args:
        storage: The store.
        version: Which; None: the current one.

    Raises:
        StoreNotFoundError: If there is no store, nothing in it yet, or not that version of it.
        CorruptStoreError: If the manifest is missing or its bytes are not those of its name.
        MetadataError: If it is not a valid manifest.
    """
    where = storage.location
    if version is not None:
        if not storage.exists(f"manifest-{version}.json"):
            raise StoreNotFoundError(
                f"no version {version[:12]}... of a store here", where=where, hint=f"See: ditr-cache info {where}"
            )
    else:
        version = _latest(storage)
    name = f"manifest-{version}.json"
    data = storage.read(name)
    if hashlib.sha256(data).hexdigest() != version:
        raise CorruptStoreError(
            "the manifest is damaged (sha256)",
            where=f"{where}/{name}",
            hint=f"Write it again: ditr-cache finalize {where}",
        )
    return parse(Manifest, data, f"{where}/{name}"), version


def _latest(storage: Storage) -> str:
    """The sha256 of the manifest that LATEST names."""
    where = storage.location
    if not storage.exists("LATEST"):
        if storage.exists("zarr.json"):
            raise StoreNotFoundError(
                "nothing has been finalised here yet", where=where, hint=f"Do it with: ditr-cache finalize {where}"
            )
        raise StoreNotFoundError("no store here", where=where, hint="Make one with: ditr-cache extract SOURCE STORE")
    match = _LATEST.fullmatch(storage.read("LATEST", limit=1024))
    if match is None:
        raise MetadataError(
            "does not name a manifest", where=f"{where}/LATEST", hint=f"Write it again: ditr-cache finalize {where}"
        )
    return match[1].decode()
