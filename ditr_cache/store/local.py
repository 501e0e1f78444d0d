# SPDX-License-Identifier: Apache-2.0
"""A store in a folder."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ditr_cache.errors import CorruptStoreError, MetadataError
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.layout import MAX_DOCUMENT_BYTES
from ditr_cache.store.storage import Entry, Range

__all__ = ["LocalFile", "LocalStorage", "open_inside"]

_IOV_MAX = 1024
_HINT = "Find all damage with: ditr-cache verify STORE"


def open_inside(folder: Path, relative: str) -> int:
    """A file descriptor for an object under `folder`, refusing symbolic links on the way.

    Raises:
        CorruptStoreError: If it is missing.
        MetadataError: If the path goes through a symbolic link, or ends in something else than a plain file.
    """
    # O_NONBLOCK: opening a named pipe would wait for its writer
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        parts = relative.split("/")
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            inner = os.open(part, flags if last else flags | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise MetadataError("a symbolic link; stores hold plain files only", where=folder / relative) from error
        if isinstance(error, FileNotFoundError):
            raise CorruptStoreError("missing", where=folder / relative, hint=_HINT) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise MetadataError("not a plain file", where=folder / relative)
    return fd


class LocalFile:
    """An open file.

    Args:
        fd: Owned by this object from now on.
        where: For messages.
    """

    def __init__(self, fd: int, where: str) -> None:
        self._fd, self._where = fd, where
        self.size = os.fstat(fd).st_size

    def read(self, start: int, n: int) -> bytes:
        """At most `n` bytes from `start` on; fewer only at the end."""
        data = os.pread(self._fd, n, start)
        while len(data) < n and (more := os.pread(self._fd, n - len(data), start + len(data))):
            data += more
        return data

    def read_into(self, buffers: list[Any], n: int, start: int) -> None:
        """Fill `buffers`, which hold `n` bytes, with those from `start` on.

        Raises:
            CorruptStoreError: If the file ends before.
        """
        if len(buffers) <= _IOV_MAX and os.preadv(self._fd, buffers, start) == n:
            return
        # a short read (2 GiB limit, signals) or too many pieces
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                got = os.preadv(self._fd, [view], start)
                if got == 0:
                    raise CorruptStoreError("ends too early", where=self._where, hint=_HINT)
                view, start = view[got:], start + got

    def close(self) -> None:
        """Close it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def _fail_unless_gone(error: OSError) -> None:
    """A folder that cannot be listed is not an empty one."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


class LocalStorage:
    """A folder, on a disk or a network file system.

    Args:
        root: The folder.
        fs: Durable operations.
    """

    remote = False
    listable = True

    def __init__(self, root: Path, fs: Filesystem | None = None) -> None:
        self.location = root
        self._fs = fs or Filesystem()

    def open(self, key: str, size: int | None = None) -> LocalFile:
        """A file for ranged reads; see `Storage.open`."""
        return LocalFile(open_inside(self.location, key), key)

    def read(self, key: str, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
        """A whole file; see `Storage.read`."""
        file = self.open(key)
        try:
            if file.size > limit:
                raise MetadataError(f"{file.size:,} bytes are too many for a document", where=self.location / key)
            return file.read(0, file.size)
        finally:
            file.close()

    def exists(self, key: str) -> bool:
        """Whether there is such a file, or something else that reading it will refuse."""
        return os.path.lexists(self.location / key)

    def list(self, prefix: str) -> Iterator[Entry]:
        """All files below a folder, temporary ones (`.*`) aside; those that go meanwhile are left out."""
        for parent, _, names in os.walk(self.location / prefix, onerror=_fail_unless_gone):
            folder = Path(parent)
            for name in sorted(names):
                if name.startswith("."):
                    continue
                try:
                    status = (folder / name).lstat()
                except FileNotFoundError:
                    continue
                key = (folder / name).relative_to(self.location).as_posix()
                yield Entry(key, status.st_size, status.st_mtime)

    def fetch(self, ranges: Sequence[Range]) -> AbstractContextManager[None]:
        """Nothing to do: a read costs no round trip."""
        return nullcontext()

    def forget(self, prefix: str) -> None:
        """Nothing to do: a folder gives the same bytes again."""

    def close(self) -> None:
        """Nothing is held."""

    def create_exclusively(self, key: str, data: bytes) -> bool:
        """Create a file with all of `data`, or not at all; see `WritableStorage.create_exclusively`."""
        return self._fs.create_exclusively(self._parent(key), data)

    def replace(self, key: str, data: bytes) -> None:
        """Swap a file's bytes atomically."""
        self._fs.replace(self._parent(key), data)

    def write(self, key: str, pieces: Iterable[bytes], size: int) -> None:
        """A large file, a piece at a time, under a temporary name until it is whole.

        Raises:
            CorruptStoreError: If the pieces are not `size` bytes in all.
        """
        path = self._parent(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with self._fs.open_new(temporary) as file:
                written = 0
                for piece in pieces:
                    view = memoryview(piece)
                    while view:
                        view = view[file.write(view) :]
                    written += len(piece)
                if written != size:
                    raise CorruptStoreError(f"{written:,} bytes, the manifest says {size:,}", where=key)
                self._fs.sync_file(file)
            self._fs.rename(temporary, path)
        finally:
            self._fs.remove(temporary)
        self._fs.sync_folder(path.parent)

    def remove(self, key: str) -> None:
        """Remove a file; a missing one is fine."""
        self._fs.remove(self.location / key)

    def remove_tree(self, prefix: str) -> None:
        """Remove a folder with all it holds; a missing one is fine."""
        self._fs.remove_tree(self.location / prefix)

    def _parent(self, key: str) -> Path:
        path: Path = self.location / key
        self._fs.make_folder(path.parent)
        return path
