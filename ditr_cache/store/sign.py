# SPDX-License-Identifier: Apache-2.0
"""Who vouches for a store: an Ed25519 signature (RFC 8032) over the version, which is the sha256 of its manifest.

The manifest holds the hash of everything else, so one signature covers all bytes. It lies beside the manifest, as
`manifest-<version>.sig`, and a store that changes has a new version, which is not signed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ditr_cache.config import canonical_json
from ditr_cache.errors import ConfigError, MetadataError, SignatureError
from ditr_cache.store.documents import Document, Sha256, parse
from ditr_cache.store.storage import Storage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["check_signature", "make_keys", "read_signature", "sign_version", "signature_key"]

_DOMAIN = b"ditr-cache manifest, format version 1\n"
"""What is signed begins with this, so that no signature of anything else fits."""
_MOST_BYTES = 4096
_BEWARE = "Do not use this store before you know why."
_INSTALL = "Install it: pip install 'ditr-cache[sign]'"


class _Signature(Document):
    """What lies beside a manifest."""

    algorithm: Literal["ed25519"]
    key: Sha256
    """sha256 of the public key's 32 bytes."""
    signature: str
    """base64."""
    version: Sha256


def signature_key(version: str) -> str:
    """Where the signature of a version is, relative to the store."""
    return f"manifest-{version}.sig"


def make_keys(private: Path, public: Path) -> str:
    """Make a pair of keys; returns the public one's fingerprint.

    Args:
        private: PEM file (PKCS #8) for who signs; nobody else can read it.
        public: PEM file for everybody.

    Raises:
        ConfigError: If a file is there already, or `cryptography` is missing.
        OSError: If it cannot be written.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise ConfigError("signing needs the package cryptography", hint=_INSTALL) from error
    for path in (private, public):
        if os.path.lexists(path):
            raise ConfigError("is there already; keys are not overwritten", where=path, hint="Name a new file.")
    key = Ed25519PrivateKey.generate()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _create(private, key.private_bytes(pem, pkcs8, serialization.NoEncryption()), 0o600)
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    _create(public, shown, 0o644)
    return _fingerprint(key.public_key())


def sign_version(version: str, private: Path) -> tuple[bytes, str]:
    """Sign a version.

    Args:
        version: sha256 of the manifest.
        private: PEM file.

    Returns:
        The document to put beside the manifest; the key's fingerprint.

    Raises:
        ConfigError: If there is no such key, or `cryptography` is missing.
    """
    key = _read_private(private)
    fingerprint = _fingerprint(key.public_key())
    signature = base64.b64encode(key.sign(_message(version))).decode()
    document = {"algorithm": "ed25519", "key": fingerprint, "signature": signature, "version": version}
    return canonical_json(document).encode(), fingerprint


def read_signature(storage: Storage, version: str) -> bytes | None:
    """What lies beside a manifest, whatever it is; None if there is nothing.

    Raises:
        MetadataError: If it is too large for a signature.
    """
    name = signature_key(version)
    return storage.read(name, limit=_MOST_BYTES) if storage.exists(name) else None


def check_signature(storage: Storage, version: str, public: Path) -> str:
    """Whether the owner of a key vouches for a version; returns the key's fingerprint.

    Args:
        storage: The store.
        version: sha256 of the manifest, which the caller has compared with the manifest's bytes.
        public: PEM file.

    Raises:
        SignatureError: If the version is not signed, or not by that key.
        ConfigError: If there is no such key, or `cryptography` is missing.
    """
    key = _read_public(public)
    from cryptography.exceptions import InvalidSignature

    where = f"{storage.location}/{signature_key(version)}"
    try:
        found = _stored(storage, version, where)
    except (MetadataError, ValueError) as error:
        raise SignatureError("is no signature", where=where, hint=_BEWARE) from error
    if found is None:
        raise SignatureError("this version of the store is not signed", where=storage.location, hint=_BEWARE)
    signer, signature = found
    try:
        key.verify(signature, _message(version))
    except InvalidSignature as error:
        other = signer != _fingerprint(key)
        what = f"signed with another key ({signer[:16]}...)" if other else "the signature is wrong"
        raise SignatureError(what, where=where, hint=_BEWARE) from error
    return _fingerprint(key)


def _stored(storage: Storage, version: str, where: str) -> tuple[str, bytes] | None:
    """Fingerprint and signature as they are stored; both anybody's word."""
    data = read_signature(storage, version)
    if data is None:
        return None
    document = parse(_Signature, data, where)
    return document.key, base64.b64decode(document.signature, validate=True)


def _message(version: str) -> bytes:
    assert re.fullmatch(r"[0-9a-f]{64}", version), version
    return _DOMAIN + bytes.fromhex(version)


def _fingerprint(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _read_private(path: Path) -> Ed25519PrivateKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise ConfigError("signing needs the package cryptography", hint=_INSTALL) from error
    try:
        key = load_pem_private_key(_read_key(path), password=None)
    except TypeError as error:
        raise ConfigError("keys with a passphrase cannot be used here", where=path) from error
    except Exception as error:
        # cryptography has several errors for what it cannot read, and the list grows
        if isinstance(error, OSError):
            raise
        raise ConfigError("no private key in PEM form", where=path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("this is not an Ed25519 key", where=path, hint="Make one with: ditr-cache sign --new-key")
    return key


def _read_public(path: Path) -> Ed25519PublicKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise ConfigError("checking a signature needs the package cryptography", hint=_INSTALL) from error
    try:
        key = load_pem_public_key(_read_key(path))
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise ConfigError(
            "no public key in PEM form", where=path, hint="The private key stays with who signs."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError("this is not an Ed25519 key", where=path)
    return key


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 16)


def _create(path: Path, data: bytes, mode: int) -> None:
    # the mode from the start: between creating and changing it anybody could read along
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
