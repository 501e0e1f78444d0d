# SPDX-License-Identifier: Apache-2.0
"""The root of a store, which holds its identity: all that decides what the features are."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ditr_cache.errors import MetadataError, StoreNotFoundError
from ditr_cache.store.layout import FORMAT_VERSION, group_document
from ditr_cache.store.locate import open_storage
from ditr_cache.store.storage import Storage

__all__ = ["identity_difference", "read_identity", "root_document"]


def root_document(identity: Mapping[str, Any]) -> bytes:
    """The store's own `zarr.json`."""
    attributes = {"ditr_cache": {"format_version": FORMAT_VERSION, "identity": dict(identity)}}
    return json.dumps(group_document(attributes), indent=2, sort_keys=True, allow_nan=False).encode()


def read_identity(store: Storage | str | os.PathLike[str]) -> dict[str, Any]:
    """The identity in a store's root.

    Raises:
        StoreNotFoundError: If there is no store.
        MetadataError: If the root is not that of a store of this format version.
        OSError: If it cannot be read for another reason.
    """
    storage = open_storage(store) if isinstance(store, str | os.PathLike) else store
    if not storage.exists("zarr.json"):
        raise StoreNotFoundError(
            "no store here", where=storage.location, hint="Make one with: ditr-cache extract SOURCE STORE"
        )
    where, data = f"{storage.location}/zarr.json", storage.read("zarr.json")
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
