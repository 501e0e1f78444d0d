# SPDX-License-Identifier: Apache-2.0
"""Filling a store on object storage: conditional requests instead of locks, blocks written in a scratch folder first.

A request of which the reply is lost is made again, and meets its own success as a conflict. So whoever is told that
another was first reads what stands there, and decides by that.
"""

from __future__ import annotations

import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditr_cache.errors import ConfigError, CorruptStoreError, RemoteError, StoreError
from ditr_cache.store.commit_storage import Seen
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.remote.client import HINT_EXTRA, OBSTORE_SCHEMES
from ditr_cache.store.remote.retry import retrying
from ditr_cache.store.remote.scratch import ScratchFilesystem, scratch_folder, sweep
from ditr_cache.store.remote.storage import RemoteStorage
from ditr_cache.store.storage import Entry

if TYPE_CHECKING:
    from ditr_cache.store.remote.obstore_writer import ObstoreWriter

__all__ = ["WritableRemoteStorage"]

_SCHEMES = OBSTORE_SCHEMES - {"http", "https"}
_ALONE = "write with one process at a time, and say so with --single-writer."
_UPLOADS = 8
"""Objects at the same time."""
_REMOVALS = 1000
"""Objects a request."""


class WritableRemoteStorage(RemoteStorage):
    """See `CommitStorage`.

    Args:
        url: Root of the keys: `s3://`, `gs://`, `az://`.
        single_writer: Nobody else writes. Conditions, which the server may not know, are checked here instead.

    Raises:
        ConfigError: If URLs of that kind cannot be written here.
    """

    locks = False

    def __init__(self, url: str, *, single_writer: bool = False) -> None:
        scheme = url.partition("://")[0].lower()
        if scheme not in _SCHEMES:
            raise ConfigError(
                f"stores cannot be written to {scheme}:// URLs",
                hint="Write to a folder, or to s3://, gs:// or az:// with: pip install 'ditr-cache[s3]'",
            )
        if find_spec("obstore") is None:
            raise ConfigError(f"writing to {scheme}:// URLs needs obstore, which is not installed", hint=HINT_EXTRA)
        super().__init__(url)
        self._single_writer, self._swept = single_writer, False
        self._writing: tuple[int, ObstoreWriter] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self._url, "single_writer": self._single_writer}

    @property
    def writer(self) -> ObstoreWriter:
        """This process's connection for writing."""
        pid = os.getpid()
        if self._writing is None or self._writing[0] != pid:
            from ditr_cache.store.remote.obstore_writer import ObstoreWriter

            self._writing = (pid, ObstoreWriter(self._url))
        return self._writing[1]

    def create_exclusively(self, key: str, data: bytes) -> bool:
        """Create an object, or not at all; see `WritableStorage.create_exclusively`."""

        def ask() -> bool:
            if self._single_writer:
                return self._create_alone(key, data)
            if self.writer.create(key, data):
                return True
            stands = self.writer.look(key).data
            if stands is None:
                # another one is being created at this moment: not decided yet
                raise OSError("a conflict with nothing")
            return stands == data

        return retrying(ask, self._where(key))

    def replace(self, key: str, data: bytes) -> None:
        """Swap an object's bytes atomically."""
        retrying(lambda: self.writer.put(key, data), self._where(key))

    def write(self, key: str, pieces: Iterable[bytes], size: int) -> None:
        """A large object, a piece at a time; see `WritableStorage.write`.

        Raises:
            CorruptStoreError: If the pieces are not `size` bytes in all.
        """
        from ditr_cache.store.remote.obstore_writer import PART_BYTES

        source = _Counted(pieces, size, key)
        if size <= PART_BYTES:
            data = b"".join(source)
            self.replace(key, data)
            return
        try:
            # what has been taken from an iterator cannot be had again: only its parts are tried again
            retrying(lambda: self.writer.upload(key, iter(source), size), self._where(key), attempts=1)
        except Exception:
            if source.error is not None:
                raise source.error from None
            raise

    def remove(self, key: str) -> None:
        """Remove an object; a missing one is fine."""
        self._remove([key])

    def remove_tree(self, prefix: str) -> None:
        """Remove everything below a folder; a missing one is fine."""
        self._remove([entry.key for entry in self.list(prefix)])

    def lock(self) -> AbstractContextManager[None]:
        """Nothing can keep others out: `swap` fails instead."""
        return nullcontext()

    def prove(self) -> None:
        """Create and change an object under conditions that do not hold.

        Raises:
            StoreError: If the server does it, or answers neither.
        """
        if self._single_writer:
            return
        key = f".probe-{uuid.uuid4().hex}.tmp"
        try:
            self.create_exclusively(key, b"first")
            seen = self.look(key)
            overwrites = self.create_exclusively(key, b"second") or not self.swap(key, b"third", seen)
            if overwrites or self.swap(key, b"fourth", seen):
                raise StoreError(
                    "the server ignores If-None-Match or If-Match: two writers would overwrite each other's commits",
                    where=self.location,
                    hint=_ALONE.capitalize(),
                )
        except RemoteError as error:
            # some answer 501 to a condition
            hint = error.hint or f"If it knows no conditions: {_ALONE}"
            raise RemoteError(error.what, where=error.where, hint=hint) from error
        finally:
            self.remove(key)

    def prepare(self) -> None:
        """Object storage has no folders."""

    def entries(self, folder: str) -> list[Entry]:
        """What is directly in a folder."""
        return retrying(lambda: sorted(self.writer.entries(folder), key=lambda e: e.key), self._where(folder))

    def newest(self, prefix: str) -> float:
        """When anything below a folder was last changed, by the server's clock."""
        return max((entry.modified for entry in self.list(prefix)), default=math.inf)

    def flush(self, folder: str) -> None:
        """What a server lists is safe."""

    def look(self, key: str) -> Seen:
        """An object as it is now, with what the server calls this version."""
        return retrying(lambda: self.writer.look(key), self._where(key))

    def swap(self, key: str, data: bytes, seen: Seen) -> bool:
        """Replace an object, unless somebody else has since it was `seen`."""
        if seen.data is None:
            return self.create_exclusively(key, data)
        if self._single_writer:
            self.replace(key, data)
            return True

        def ask() -> bool:
            return self.writer.update(key, data, seen) or self.writer.look(key).data == data

        return retrying(ask, self._where(key))

    def workspace(self, folder: str) -> tuple[Path, Filesystem]:
        """A scratch folder."""
        if not self._swept:
            self._swept = True
            sweep()
        return scratch_folder(folder), ScratchFilesystem()

    def publish(self, folder: str, keys: Iterable[str]) -> None:
        """Upload a block from its scratch folder, and remove that; the group's `zarr.json` last.

        Raises:
            OSError: If the server does not take an object.
        """
        scratch, last = scratch_folder(folder), f"{folder}/zarr.json"
        if not scratch.is_dir():
            return
        pool = ThreadPoolExecutor(_UPLOADS, "upload")
        try:
            for _ in pool.map(lambda key: self._upload(key, scratch / key.removeprefix(f"{folder}/")), keys):
                pass
            self._upload(last, scratch / "zarr.json")
        finally:
            pool.shutdown(cancel_futures=True)
            shutil.rmtree(scratch, ignore_errors=True)

    def withdraw(self, folder: str, receipt: str) -> None:
        """Left to the collector: the request that made the receipt may still arrive."""

    def _upload(self, key: str, path: Path) -> None:
        from ditr_cache.store.remote.obstore_writer import PART_BYTES

        size = path.stat().st_size
        if size <= PART_BYTES:
            self.replace(key, path.read_bytes())
        else:
            retrying(lambda: self.writer.upload(key, path, size), self._where(key))

    def _create_alone(self, key: str, data: bytes) -> bool:
        stands = self.writer.look(key).data
        if stands is None:
            self.writer.put(key, data)
        return stands is None or stands == data

    def _remove(self, keys: list[str]) -> None:
        for start in range(0, len(keys), _REMOVALS):
            batch = keys[start : start + _REMOVALS]
            retrying(lambda batch=batch: self.writer.remove(batch), self._where(batch[0]))  # type: ignore[misc]

    def _where(self, key: str) -> str:
        return f"{self.location}/{key}"


class _Counted:
    """Pieces that must be so many bytes in all; remembers what went wrong with them, whoever takes them."""

    def __init__(self, pieces: Iterable[bytes], size: int, key: str) -> None:
        self._pieces, self._size, self._key = pieces, size, key
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        try:
            for piece in self._pieces:
                count += len(piece)
                if count > self._size:
                    break
                yield piece
        except Exception as error:
            self.error = error
            raise
        if count != self._size:
            self.error = CorruptStoreError(f"{count:,} bytes, the manifest says {self._size:,}", where=self._key)
            raise self.error
