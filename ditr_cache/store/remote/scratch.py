# SPDX-License-Identifier: Apache-2.0
"""Files of a block on its way to a server: for this user only, and not worth flushing."""

from __future__ import annotations

import shutil
import tempfile
import time
from io import FileIO
from pathlib import Path

from ditr_cache.store.collect import ORPHAN_AGE_S
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.layout import is_block_folder

__all__ = ["ScratchFilesystem", "scratch_folder", "sweep"]

_PREFIX = "ditr-cache-"


def scratch_folder(block_folder: str) -> Path:
    """Where a block is written; TMPDIR says on which disk."""
    return Path(tempfile.gettempdir()) / f"{_PREFIX}{block_folder.rpartition('/')[2]}"


def sweep() -> None:
    """Remove what killed processes have left here, once nobody has written to it for a day."""
    horizon = time.time() - ORPHAN_AGE_S
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if is_block_folder(folder.name.removeprefix(_PREFIX)) and _newest(folder) < horizon:
            shutil.rmtree(folder, ignore_errors=True)


def _newest(folder: Path) -> float:
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:
        # another one is sweeping, or it is another user's
        return time.time()


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
