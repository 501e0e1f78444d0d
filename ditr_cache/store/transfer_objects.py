# SPDX-License-Identifier: Apache-2.0
"""Objects on their way from one store to another: hashed as they stream by, and in place only if they are right."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import closing

from ditr_cache.errors import CorruptStoreError, MetadataError
from ditr_cache.store.receipt import ObjectEntry
from ditr_cache.store.storage import ObjectFile, Storage, WritableStorage

__all__ = ["ATTEMPTS", "Stopped", "Tally", "copy_object", "is_whole"]

ATTEMPTS = 3
"""How often an object is asked for before what arrives counts as what there is."""
_PIECE = 8 << 20


class Stopped(Exception):
    """Something else went wrong; this thread has nothing to say about it."""


class Tally:
    """What has been moved so far. Filled by many threads, and asked by one."""

    def __init__(self) -> None:
        self.objects = 0
        """Objects that were brought."""
        self.copied = 0
        """Bytes that were brought."""
        self.skipped = 0
        """Bytes that were there already."""
        self._moved = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def add(self, *, objects: int = 0, copied: int = 0, skipped: int = 0) -> None:
        """Count."""
        with self._lock:
            self.objects += objects
            self.copied += copied
            self.skipped += skipped

    def moved(self, n: int) -> None:
        """So many bytes passed by; fewer than none where they have to pass again."""
        with self._lock:
            self._moved += n

    def take(self) -> int:
        """Bytes that passed since the last call."""
        with self._lock:
            n, self._moved = self._moved, 0
            return n

    def stop(self) -> None:
        """Let all threads end."""
        self._stop.set()

    def go_on(self) -> None:
        """To be called by them now and then.

        Raises:
            Stopped: If they are to end.
        """
        if self._stop.is_set():
            raise Stopped


def copy_object(source: Storage, target: WritableStorage, key: str, entry: ObjectEntry, tally: Tally) -> None:
    """Bring one object. Whatever goes wrong, what is there under its name afterwards is whole and right, or nothing.

    Args:
        source: Where it is.
        target: Where it goes.
        key: Its name in both.
        entry: What the manifest says of it.
        tally: Counts, and says when to stop.

    Raises:
        CorruptStoreError: If what arrives is not what the manifest says, every time.
        OSError: If a medium or a server fails.
        Stopped: If another thread failed.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with closing(source.open(key, entry.size)) as file:
                target.write(key, _checked(file, key, entry, tally), entry.size)
        except CorruptStoreError as error:
            if attempt == ATTEMPTS:
                raise CorruptStoreError(
                    f"{error.what} ({ATTEMPTS} times)",
                    where=f"{source.location}/{key}",
                    hint="The source is damaged, or the way from it; nothing of this object was kept.",
                ) from error
            source.forget(key)
        else:
            tally.add(objects=1, copied=entry.size)
            return


def is_whole(storage: Storage, key: str, entry: ObjectEntry, tally: Tally) -> bool:
    """Whether an object is there with all its bytes: reads it."""
    try:
        with closing(storage.open(key)) as file:
            if file.size != entry.size:
                return False
            for _ in _checked(file, key, entry, tally):
                pass
    except (CorruptStoreError, MetadataError):
        return False
    return True


def _checked(file: ObjectFile, key: str, entry: ObjectEntry, tally: Tally) -> Iterator[bytes]:
    """Pieces of an object, counted; those of an attempt that fails do not count."""
    at = 0
    try:
        for piece in _pieces(file, key, entry):
            tally.go_on()
            at += len(piece)
            tally.moved(len(piece))
            yield piece
    except BaseException:
        tally.moved(-at)
        raise


def _pieces(file: ObjectFile, key: str, entry: ObjectEntry) -> Iterator[bytes]:
    """Pieces of an object; after the last one, an error rather than an end if they were not the right ones."""
    digest, at = hashlib.sha256(), 0
    if file.size != entry.size:
        raise CorruptStoreError(f"{file.size:,} bytes, the manifest says {entry.size:,}", where=key)
    while at < entry.size:
        piece = file.read(at, min(_PIECE, entry.size - at))
        if not piece:
            raise CorruptStoreError("ends too early", where=key)
        digest.update(piece)
        at += len(piece)
        yield piece
    if digest.hexdigest() != entry.sha256:
        raise CorruptStoreError("sha256 is not that of the manifest", where=key)
