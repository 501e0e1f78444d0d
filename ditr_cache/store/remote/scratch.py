# SPDX-License-Identifier: Apache-2.0
"""Files of a block on its way to a server: for this user only, and not worth flushing."""

from __future__ import annotations

from io import FileIO
from pathlib import Path

from ditr_cache.store.filesystem import Filesystem

__all__ = ["ScratchFilesystem"]


class ScratchFilesystem(Filesystem):
    """After a crash nobody looks for what was here: the block is done again."""

    def make_folder(self, path: Path) -> None:
        """Create a folder that others cannot enter; existing ones are fine."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, path: Path, data: bytes) -> None:
        """Write a new file."""
        with path.open("xb") as file:
            file.write(data)

    def sync_file(self, file: FileIO) -> None:
        """Not needed."""

    def sync_folder(self, path: Path) -> None:
        """Not needed."""
