# SPDX-License-Identifier: Apache-2.0
"""Vouch for a store, and find out who does."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ditr_cache.store.locate import open_storage, open_writable_storage
from ditr_cache.store.sign import check_signature, make_keys, sign_version, signature_key
from ditr_cache.store.versions import read_manifest, split_version

__all__ = ["CheckSignature", "NewKeys", "Sign", "SignReport"]


@dataclass(frozen=True, slots=True)
class SignReport:
    """A version of a store and the key that vouches for it."""

    manifest: str
    """sha256 of the manifest."""
    key: str
    """Fingerprint: sha256 of the public key."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Sign:
    """Signs the current version of a store.

    Args:
        store: Folder or URL.
        key: Private key, a PEM file.
    """

    def __init__(self, store: str | os.PathLike[str], key: Path) -> None:
        self._store, self._key = store, key

    def run(self) -> SignReport:
        """Sign it; an earlier signature of this version is replaced.

        Raises:
            StoreNotFoundError: If there is no store, or nothing has been finalised.
            ConfigError: If there is no such key.
        """
        storage = open_writable_storage(self._store)
        _, version = read_manifest(storage)
        document, fingerprint = sign_version(version, self._key)
        storage.replace(signature_key(version), document)
        return SignReport(version, fingerprint)


class CheckSignature:
    """Finds out whether the owner of a key vouches for a store.

    Args:
        store: Folder or URL; `@sha256:<version>` behind it pins that version.
        key: Public key, a PEM file.
    """

    def __init__(self, store: str | os.PathLike[str], key: Path) -> None:
        self._store, self._key = store, key

    def run(self) -> SignReport:
        """Check it.

        Raises:
            SignatureError: If not.
            StoreError: If the store cannot be read.
            ConfigError: If there is no such key.
        """
        location, pinned = split_version(self._store)
        storage = open_storage(location)
        _, version = read_manifest(storage, pinned)
        return SignReport(version, check_signature(storage, version, self._key))


class NewKeys:
    """Makes a pair of keys.

    Args:
        private: File for who signs.
        public: File for everybody.
    """

    def __init__(self, private: Path, public: Path) -> None:
        self._private, self._public = private, public

    def run(self) -> str:
        """Make them; returns the fingerprint.

        Raises:
            ConfigError: If one of the files is there already.
        """
        return make_keys(self._private, self._public)
