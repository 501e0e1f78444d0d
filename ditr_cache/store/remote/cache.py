# SPDX-License-Identifier: Apache-2.0
"""A bounded folder of what servers gave, shared by any number of processes.

An entry is written under a temporary name and renamed, with its crc32c behind it: whatever a crash leaves is found out
and counts as absent. Room is reserved, under a lock, before anything is written, so the folder never exceeds its size.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import numpy as np

__all__ = ["DiskCache"]

_LOG = logging.getLogger(__name__)
_CHECKSUM = 4
_KEEP = 0.9
"""Share of the size that is left when room is made, so that it is not made for every entry."""


class DiskCache:
    """Byte strings by name.

    Args:
        folder: Where they are kept; created, for this user only, if need be.
        size: Bytes that all entries together may take.

    Raises:
        OSError: If the folder cannot be made.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder / "ditr-cache-1", size
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._turns = threading.Lock()
        self._warned = False

    def get(self, name: str) -> memoryview | None:
        """The bytes of a name; None if they are not there, or damaged."""
        path = self._path(name)
        try:
            data = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        body = memoryview(data)[:-_CHECKSUM]
        if len(data) < _CHECKSUM or _crc32c(body) != int.from_bytes(data[-_CHECKSUM:], "little"):
            path.unlink(missing_ok=True)
            return None
        return body

    def put(self, name: str, data: memoryview) -> None:
        """Keep bytes. A disk that is full, or an entry larger than the cache, is no error: it is not kept."""
        size = len(data) + _CHECKSUM
        if size > self._size * _KEEP:
            return
        path = self._path(name)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        checksum = _crc32c(data).to_bytes(_CHECKSUM, "little")
        try:
            # writing too is under the lock: who makes room would not see what is reserved and not there yet
            with self._lock() as counter:
                self._reserve(counter, size)
                path.parent.mkdir(exist_ok=True)
                with temporary.open("xb") as file:
                    file.write(data)
                    file.write(checksum)
                temporary.replace(path)
        except OSError as error:
            self._warn(error)
            with contextlib.suppress(OSError):  # what could not be written may be impossible to remove, too
                temporary.unlink(missing_ok=True)

    def _reserve(self, counter: int, size: int) -> None:
        used = int.from_bytes(os.pread(counter, 8, 0), "little") + size
        if used > self._size:
            used = self._make_room(int(self._size * _KEEP) - size) + size
        os.pwrite(counter, used.to_bytes(8, "little"), 0)

    def _make_room(self, limit: int) -> int:
        """Remove what was used longest ago until `limit` bytes are left; returns how many there are."""
        found = []
        for path in self._folder.glob("??/*"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= limit:
                break
            path.unlink(missing_ok=True)
            used -= size
        return used

    @contextmanager
    def _lock(self) -> Iterator[int]:
        # a process owns its POSIX locks as a whole: threads have to take turns by themselves
        with self._turns:
            fd = os.open(self._folder / "used", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield fd
            finally:
                os.close(fd)

    def _path(self, name: str) -> Path:
        key = hashlib.sha256(name.encode()).hexdigest()
        return self._folder / key[:2] / key[2:]

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _LOG.warning("the cache in %s is not used: %s", self._folder.parent, error.strerror or error)


def _crc32c(data: memoryview) -> int:
    # the library takes bytes and arrays, no memoryview; an array costs no copy
    value: int = google_crc32c.value(np.frombuffer(data, np.uint8))
    return value
