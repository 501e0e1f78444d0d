# SPDX-License-Identifier: Apache-2.0
"""What is asked of a library that talks to servers, and which one is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from ditr_cache.errors import ConfigError
from ditr_cache.store.storage import Entry

__all__ = ["OBSTORE_SCHEMES", "Client", "connect", "public_url", "scrub"]

OBSTORE_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https"})
"""Kinds of URL that obstore reads."""
HINT_EXTRA = "Install it with: pip install 'ditr-cache[s3]'"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\"'<>)]+", re.IGNORECASE)


class Client(Protocol):
    """A connection to one place on a server; keys are relative to it. Thread-safe, of one process, asks once."""

    def read(self, key: str) -> memoryview:
        """A whole object.

        Raises:
            FileNotFoundError: If there is none.
            PermissionError: If the server does not let us.
            Exception: Whatever the library raises for anything else; trying again may help.
        """

    def read_range(self, key: str, start: int, stop: int) -> memoryview:
        """Bytes start..stop of an object; raises what `read` raises."""

    def size(self, key: str) -> int:
        """Bytes of an object; raises what `read` raises."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects below `prefix`.

        Raises:
            StoreError: If this kind of server cannot list.
        """


def connect(url: str) -> Client:
    """A client for a URL: obstore where it can and is installed, otherwise fsspec.

    Raises:
        ConfigError: If nothing that is installed knows such URLs.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in OBSTORE_SCHEMES and find_spec("obstore") is not None:
        from ditr_cache.store.remote.obstore_client import ObstoreClient

        return ObstoreClient(url)
    from ditr_cache.store.remote.fsspec_client import FsspecClient

    try:
        return FsspecClient(url)
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// URLs need a package that is not installed ({scrub(str(error))})",
            hint=HINT_EXTRA if scheme in OBSTORE_SCHEMES else None,
        ) from error
    except ValueError as error:
        raise ConfigError(f"{scheme}:// is no kind of URL that can be read here ({scrub(str(error))})") from error


def public_url(url: str) -> str:
    """A URL as it may be shown and stored: without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def scrub(text: str) -> str:
    """What a library says, on one line, its URLs without credentials."""
    said = text.partition("Debug source:")[0]
    return " ".join(_URL.sub(lambda match: public_url(match[0]), said).split())[:300]
