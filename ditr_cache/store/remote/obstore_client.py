# SPDX-License-Identifier: Apache-2.0
"""S3, Google Cloud Storage, Azure and web servers through obstore."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from ditr_cache.errors import StoreError
from ditr_cache.store.remote.aws_profile import aws_settings
from ditr_cache.store.remote.client import public_url
from ditr_cache.store.storage import Entry

if TYPE_CHECKING:
    from obstore.store import ClientConfig

__all__ = ["TOKEN_VARIABLE", "ObstoreClient", "open_obstore", "plain_errors"]

TOKEN_VARIABLE = "DITR_CACHE_TOKEN"  # noqa: S105
"""Environment variable with a bearer token for web servers."""
_TIMEOUT = "30s"
"""Of one request. Ranges have some MiB at most, and what takes longer is asked for again."""
_REFUSED = re.compile(r"status code: 40[13]\b")


def open_obstore(url: str, *, timeout: str = _TIMEOUT, retries: int = 0, **config: Any) -> Any:
    """Obstore's own object for a URL. Credentials come from the environment and the usual configuration files.

    It does not try anything again by default: `retry` does, for all libraries alike.

    Args:
        url: Root of the keys.
        timeout: Of one request.
        retries: How often obstore itself tries a request again.
        config: Further settings of this kind of store.
    """
    options: ClientConfig = {"timeout": timeout, "connect_timeout": "5s"}
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        options["allow_http"] = scheme == "http"
        if token := os.environ.get(TOKEN_VARIABLE):
            options["default_headers"] = {"Authorization": f"Bearer {token}"}
    elif scheme in ("s3", "s3a"):
        config = aws_settings() | config
        variables = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
        endpoint = next(filter(None, variables), config.get("endpoint", ""))
        options["allow_http"] = endpoint.startswith("http://")
    # the overloads name every kind of store, and not "any of them"
    open_any: Callable[..., Any] = from_url
    return open_any(url, client_options=options, retry_config={"max_retries": retries}, **config)


class ObstoreClient:
    """See `Client`.

    Args:
        url: Root of the keys.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._store = open_obstore(url)

    def read(self, key: str) -> memoryview:
        """A whole object."""
        with plain_errors(key):
            return memoryview(obstore.get(self._store, key).bytes())

    def read_range(self, key: str, start: int, stop: int) -> memoryview:
        """Bytes start..stop of an object."""
        with plain_errors(key):
            return memoryview(obstore.get_range(self._store, key, start=start, end=stop))

    def size(self, key: str) -> int:
        """Bytes of an object."""
        with plain_errors(key):
            return int(obstore.head(self._store, key)["size"])

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects below `prefix`."""
        if urlsplit(self._url).scheme in ("http", "https"):
            raise StoreError("web servers cannot list what they have", where=public_url(self._url))
        with plain_errors(prefix):
            for batch in obstore.list(self._store, prefix.rstrip("/") or None):
                for meta in batch:
                    yield Entry(meta["path"], int(meta["size"]), meta["last_modified"].timestamp())


@contextmanager
def plain_errors(key: str) -> Iterator[None]:
    """Turn what obstore raises for missing and forbidden objects into what Python raises for files.

    Raises:
        StoreError: If there is not even a bucket.
    """
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        if "NoSuchBucket" in str(error):
            raise StoreError("there is no such bucket", hint="Make it first, or check its name.") from error
        if isinstance(error, NotFoundError | FileNotFoundError):
            raise FileNotFoundError(key) from error
        # refused listings are of no class of their own
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _REFUSED.search(str(error)):
            raise PermissionError(key) from error
        raise
