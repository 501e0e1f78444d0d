# SPDX-License-Identifier: Apache-2.0
"""A store on a server: ranges that are wanted together are asked for together, and served from memory after that."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ditr_cache.errors import CorruptStoreError, MetadataError
from ditr_cache.store.layout import MAX_DOCUMENT_BYTES
from ditr_cache.store.remote.cache import DiskCache
from ditr_cache.store.remote.client import Client, connect, public_url
from ditr_cache.store.remote.retry import retrying
from ditr_cache.store.storage import Entry, Range

__all__ = ["RemoteFile", "RemoteStorage"]

_REQUESTS = 48
"""At the same time: one 10-view sample in one go."""
_GAP = 8 << 10
"""Bytes between two ranges that are read along rather than asked for apart. A request costs a server more."""
_PIECE = 4 << 20
"""Longer ranges are asked for in pieces of this size, side by side."""

_CACHE_SIZE = 50 << 30

Segments = dict[str, list[tuple[int, memoryview]]]
"""By key: pieces of the object, each with the place where it starts."""
Pieces = list[memoryview]


class RemoteFile:
    """One object.

    Args:
        storage: Where it is.
        key: Which one.
        size: Its bytes.
    """

    def __init__(self, storage: RemoteStorage, key: str, size: int) -> None:
        self._storage, self._key = storage, key
        self.size = size

    def read(self, start: int, n: int) -> bytes:
        """At most `n` bytes from `start` on; fewer only at the end."""
        return bytes(self._storage.read_range(Range(self._key, start, min(start + n, self.size))))

    def read_into(self, buffers: list[Any], n: int, start: int) -> None:
        """Fill `buffers`, which hold `n` bytes, with those from `start` on.

        Raises:
            CorruptStoreError: If the object ends before.
            RemoteError: If the server does not give them.
        """
        data, at = self._storage.read_range(Range(self._key, start, start + n)), 0
        for buffer in buffers:
            # buffers may overlap: later ones win, as they do when a kernel fills them one after the other
            view = memoryview(buffer)
            view[:] = data[at : at + len(view)]
            at += len(view)

    def close(self) -> None:
        """Nothing is held."""


class RemoteStorage:
    """Objects on a server. Cheap to make and to pickle; connects when it is first asked, once a process.

    Args:
        url: Root of the keys.
        cache_dir: Where to keep ranges that were fetched; None: nowhere.
        cache_size: Bytes that the cache may take; None: 50 GiB.
    """

    remote = True

    def __init__(
        self, url: str, *, cache_dir: str | os.PathLike[str] | None = None, cache_size: int | None = None
    ) -> None:
        self.location: Path | str = public_url(url)
        self._url, self._cache_dir = url, cache_dir
        self._cache_size = _CACHE_SIZE if cache_size is None else cache_size
        self._client: Client | None = None
        self._cache: DiskCache | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._suspect: set[str] = set()
        self._forget_process()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self._url, "cache_dir": self._cache_dir, "cache_size": self._cache_size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def client(self) -> Client:
        """This process's connection.

        Raises:
            ConfigError: If nothing that is installed knows such URLs.
        """
        if self._pid != os.getpid():
            self._forget_process()
        with self._lock:
            if self._client is None:
                self._client = connect(self._url)
                if self._cache_dir is not None:
                    self._cache = DiskCache(Path(self._cache_dir), self._cache_size)
            return self._client

    @property
    def listable(self) -> bool:
        """Whether `list` can; plain web servers cannot."""
        return not self._url.lower().startswith(("http://", "https://"))

    def open(self, key: str, size: int | None = None) -> RemoteFile:
        """An object for ranged reads; see `Storage.open`. Asks the server only where `size` is not known."""
        return RemoteFile(self, key, self._size(key) if size is None else size)

    def read(self, key: str, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
        """A whole object; see `Storage.read`."""
        where, client = f"{self.location}/{key}", self.client
        if limit <= _PIECE:
            # what is announced to be small is asked for at once, but never more of it than may be
            data = bytes(retrying(lambda: client.read(key), where))
            size = len(data)
        else:
            size = self._size(key)
            data = b"" if size > limit else b"".join(self._pieces(Range(key, 0, size)))
        if size > limit:
            raise MetadataError(f"{size:,} bytes are too many for a document", where=where)
        return data

    def read_range(self, wanted: Range) -> memoryview:
        """Bytes of an object, from what this thread has fetched or else from the server.

        Raises:
            CorruptStoreError: If the object is missing or ends before.
            RemoteError: If the server does not give them.
        """
        segments: Segments = getattr(self._fetched, "segments", {})
        for start, data in segments.get(wanted.key, ()):
            if start <= wanted.start and wanted.stop <= start + len(data):
                return data[wanted.start - start : wanted.stop - start]
        if wanted.stop - wanted.start <= _PIECE:
            return self._request(wanted)
        return memoryview(b"".join(self._pieces(wanted)))

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            self._size(key)
        except CorruptStoreError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects below `prefix`; see `Storage.list`."""
        client = self.client
        return iter(retrying(lambda: list(client.list(prefix)), f"{self.location}/{prefix}"))

    @contextmanager
    def fetch(self, ranges: Sequence[Range]) -> Iterator[None]:
        """Get `ranges` in one round trip; within the context this thread's reads of them cost nothing.

        Raises:
            CorruptStoreError: If an object is missing or ends before.
            RemoteError: If the server does not give them.
        """
        before = getattr(self._fetched, "segments", None)
        self._fetched.segments = self._get(ranges)
        try:
            yield
        finally:
            self._fetched.segments = before or {}

    def forget(self, prefix: str) -> None:
        """Look for these keys on the server from now on, not in the cache, which is brought up to date with it."""
        self._suspect.add(prefix)

    def close(self) -> None:
        """Let go of connections."""
        with self._lock:
            pool, self._pool, self._client = self._pool, None, None
        if pool is not None:
            pool.shutdown()

    def _get(self, ranges: Sequence[Range]) -> Segments:
        """The ranges, each as a segment of its own or as part of a longer one."""
        _ = self.client  # and with it the cache
        segments: Segments = {}
        missing: list[Range] = []
        for wanted in ranges:
            known = None if self._cache is None or self._is_suspect(wanted.key) else self._cache.get(self._name(wanted))
            if known is not None and len(known) == wanted.stop - wanted.start:
                segments.setdefault(wanted.key, []).append((wanted.start, known))
            else:
                missing.append(wanted)
        joined = list(_joined(missing))
        for span, data in zip(joined, self._request_all(joined), strict=True):
            segments.setdefault(span.key, []).append((span.start, data))
        if self._cache is not None:
            # the ranges that were asked for, and not the ones they were joined to: those will be asked for again
            for wanted in missing:
                start, data = next(
                    (start, data)
                    for start, data in segments[wanted.key]
                    if start <= wanted.start and wanted.stop <= start + len(data)
                )
                self._cache.put(self._name(wanted), data[wanted.start - start : wanted.stop - start])
        return segments

    def _request_all(self, spans: Sequence[Range]) -> Pieces:
        """Side by side; long spans in pieces."""
        cut = [list(_cut(span)) for span in spans]
        flat = [piece for pieces in cut for piece in pieces]
        if len(flat) == 1:
            return [self._request(flat[0])]
        found = iter(self._executor().map(self._request, flat))
        parts = [[next(found) for _ in pieces] for pieces in cut]
        return [part[0] if len(part) == 1 else memoryview(b"".join(part)) for part in parts]

    def _pieces(self, span: Range) -> Pieces:
        pieces = list(_cut(span))
        return [self._request(pieces[0])] if len(pieces) == 1 else list(self._executor().map(self._request, pieces))

    def _request(self, wanted: Range) -> memoryview:
        client, n = self.client, wanted.stop - wanted.start

        def ask() -> memoryview:
            data = client.read_range(wanted.key, wanted.start, wanted.stop)
            if len(data) != n:
                raise OSError(f"{len(data):,} bytes came where {n:,} were asked for")
            return data

        return retrying(ask, f"{self.location}/{wanted.key}")

    def _size(self, key: str) -> int:
        client = self.client
        return retrying(lambda: client.size(key), f"{self.location}/{key}")

    def _name(self, wanted: Range) -> str:
        return f"{self._url}\0{wanted.key}\0{wanted.start}-{wanted.stop}"

    def _is_suspect(self, key: str) -> bool:
        return any(key.startswith(prefix) for prefix in self._suspect)

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_REQUESTS, "ranges")
            return self._pool

    def _forget_process(self) -> None:
        """Begin anew: connections, threads and locks do not survive a fork."""
        self._pid, self._lock, self._fetched = os.getpid(), threading.Lock(), threading.local()
        self._client = self._cache = self._pool = None


def _joined(ranges: Sequence[Range]) -> Iterator[Range]:
    """Ranges of one object that touch, or almost, as one."""
    last: Range | None = None
    for wanted in sorted(ranges, key=lambda r: (r.key, r.start, r.stop)):
        if last is not None and wanted.key == last.key and wanted.start - last.stop <= _GAP:
            last = Range(last.key, last.start, max(last.stop, wanted.stop))
            continue
        if last is not None:
            yield last
        last = wanted
    if last is not None:
        yield last


def _cut(span: Range) -> Iterator[Range]:
    for start in range(span.start, span.stop, _PIECE):
        yield Range(span.key, start, min(start + _PIECE, span.stop))
