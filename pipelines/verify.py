# SPDX-License-Identifier: Apache-2.0
"""Is a store the one that was written?"""

from __future__ import annotations

import os

from ditr_cache.errors import StoreError
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.store.locate import open_storage
from ditr_cache.store.verify import VerifyReport, verify_store
from ditr_cache.store.versions import read_manifest, split_version

__all__ = ["Verify"]


class Verify:
    """Reads a whole store.

    Args:
        store: A folder or a URL; with `@sha256:<version>` behind it, what that version names.
        deep: All data, or only documents and the sizes of data objects.
        progress: Who listens; counts bytes.
    """

    def __init__(self, store: str | os.PathLike[str], *, deep: bool = True, progress: Progress | None = None) -> None:
        location, self._version = split_version(store)
        self._storage, self._deep = open_storage(location), deep
        self._progress: Progress = progress or Silent()

    def run(self) -> VerifyReport:
        """Check it. Damage is reported, not raised.

        Raises:
            StoreNotFoundError: If there is no store.
            RemoteError: If its server cannot be reached.
        """
        if self._deep:
            self._progress.begin(self._bytes_to_read())
        try:
            return verify_store(self._storage, version=self._version, progress=self._progress.advance, deep=self._deep)
        finally:
            self._progress.end()

    def _bytes_to_read(self) -> int:
        """Of the blocks; 0 where the manifest cannot tell, which verification will say better."""
        try:
            manifest, _ = read_manifest(self._storage, self._version)
        except (StoreError, OSError):
            return 0
        return sum(receipt.size for receipt in manifest.blocks.values())
