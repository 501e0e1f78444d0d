# SPDX-License-Identifier: Apache-2.0
"""The few durable operations that the commit protocol is made of. Tests replace this class to crash between any two."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

__all__ = ["Filesystem"]

_LOCKS = threading.Lock()


class Filesystem:
    """POSIX files. Whatever a method has returned from survives a power cut."""

    def make_folder(self, path: Path) -> None:
        """Create a folder and its parents; existing ones are fine."""
        path.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, data: bytes) -> None:
        """Write a new file and flush it to the medium."""
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def open_new(self, path: Path) -> FileIO:
        """A new file to be written piece by piece; flushed by `sync_file` only."""
        return FileIO(path, "xb")

    def sync_file(self, file: FileIO) -> None:
        """Flush what was written to the medium."""
        os.fsync(file.fileno())

    def sync_folder(self, path: Path) -> None:
        """Flush a folder's entries to the medium."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def create_exclusively(self, path: Path, data: bytes) -> bool:
        """Create `path` with all of `data`, or not at all. False if it exists already with other bytes.

        link(2) is atomic on local file systems and NFS. A reply can get lost there, so that our own success looks like
        a conflict: the bytes that stand there decide.
        """
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            self.write(temporary, data)
            try:
                self.link(temporary, path)
            except FileExistsError:
                return path.read_bytes() == data
        finally:
            self.remove(temporary)
        self.sync_folder(path.parent)
        return True

    def link(self, source: Path, target: Path) -> None:
        """Hard link. Raises FileExistsError if `target` exists."""
        os.link(source, target)

    def replace(self, path: Path, data: bytes) -> None:
        """Swap the contents of `path` atomically."""
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            self.write(temporary, data)
            self.rename(temporary, path)
        finally:
            self.remove(temporary)
        self.sync_folder(path.parent)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic rename over an existing file."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file; a missing one is fine."""
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder with all it holds, without following links out of it; a missing one is fine.

        What another process adds or removes meanwhile is left to the next collection.
        """
        if path.is_symlink():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """Hold an advisory lock on a file; released by the kernel when the process dies. Not re-entrant."""
        # a process owns its POSIX locks as a whole: threads have to take turns by themselves
        with _LOCKS:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)
