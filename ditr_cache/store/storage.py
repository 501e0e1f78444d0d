# SPDX-License-Identifier: Apache-2.0
"""Where the objects of a store are: a folder, a bucket, a web server. Keys are relative to the store's root, with `/`.

Readers need `Storage`; writers, pushing and collecting need `WritableStorage`. The commit protocol is the same on both
kinds; what differs is how a thing is made exclusive, and that is all that differs here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ditr_cache.store.layout import MAX_DOCUMENT_BYTES

__all__ = ["Entry", "ObjectFile", "Range", "Storage", "WritableStorage"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One object, as a listing shows it."""

    key: str
    size: int
    modified: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes start..stop of an object."""

    key: str
    start: int
    stop: int


class ObjectFile(Protocol):
    """One object, open for reading at any place. Thread-safe."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, start: int, n: int) -> bytes:
        """At most `n` bytes from `start` on; fewer only at the end."""

    def read_into(self, buffers: list[Any], n: int, start: int) -> None:
        """Fill `buffers`, which hold `n` bytes, with those from `start` on.

        Raises:
            CorruptStoreError: If the object ends before.
        """

    def close(self) -> None:
        """Release it."""


class Storage(Protocol):
    """Objects that can be read."""

    @property
    def location(self) -> Path | str:
        """What people call it: a path, or a URL without credentials."""

    @property
    def remote(self) -> bool:
        """Whether every request costs a round trip."""

    @property
    def listable(self) -> bool:
        """Whether `list` can; plain web servers cannot."""

    def open(self, key: str, size: int | None = None) -> ObjectFile:
        """An object for ranged reads.

        Args:
            key: Which one.
            size: What the manifest says, where it is known: saves asking a server.

        Raises:
            CorruptStoreError: If there is none.
            MetadataError: If it is not a plain object (a symbolic link, a pipe).
            OSError: If it cannot be had for another reason (`RemoteError` for servers).
        """

    def read(self, key: str, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
        """A whole object.

        Raises:
            CorruptStoreError: If there is none.
            MetadataError: If it has more than `limit` bytes, or is not a plain object.
            OSError: If it cannot be had for another reason.
        """

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """All objects whose key begins with `prefix` (which ends with `/`, or is empty), in any order.

        Raises:
            StoreError: If it is not `listable`.
        """

    def fetch(self, ranges: Sequence[Range]) -> AbstractContextManager[None]:
        """Get `ranges` in one round trip; within the context this thread's reads of them cost nothing. Local: no-op."""

    def forget(self, prefix: str) -> None:
        """Ask the server anew for what it gave of these keys, which turned out damaged. Local: no-op."""

    def close(self) -> None:
        """Release connections and memory."""


class WritableStorage(Storage, Protocol):
    """Objects that can be added. Whatever a method has returned from survives a power cut."""

    def create_exclusively(self, key: str, data: bytes) -> bool:
        """Create an object with all of `data`, or not at all. False if it exists already with other bytes.

        A lost reply makes our own success look like a conflict: the bytes that stand there decide.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Swap an object's bytes atomically."""

    def write(self, key: str, pieces: Iterable[bytes], size: int) -> None:
        """Create or replace a large object of `size` bytes, a piece at a time; readers see all of it or none."""

    def remove(self, key: str) -> None:
        """Remove an object; a missing one is fine."""

    def remove_tree(self, prefix: str) -> None:
        """Remove everything below a folder; a missing one is fine."""
