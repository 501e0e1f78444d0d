# SPDX-License-Identifier: Apache-2.0
"""Upkeep of a store: make finished blocks visible, remove what nothing refers to."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from ditr_cache.store.writer import StoreWriter

__all__ = ["CollectGarbage", "CollectGarbageReport", "Finalize", "FinalizeReport"]


@dataclass(frozen=True, slots=True)
class FinalizeReport:
    """A store after its manifest was written."""

    blocks: int
    """Present."""
    missing: int
    """Planned and not present."""
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Finalize:
    """Writes the manifest of all committed blocks.

    Args:
        store: A folder or a URL.

    Raises:
        StoreNotFoundError: If there is no store.
        ConfigError: If URLs of that kind cannot be written here.
    """

    def __init__(self, store: str | os.PathLike[str]) -> None:
        self._writer = StoreWriter(store)

    def run(self) -> FinalizeReport:
        """Do it. Safe while others write."""
        manifest = self._writer.finalize()
        return FinalizeReport(len(manifest.blocks), len(manifest.planned), manifest.digest)


@dataclass(frozen=True, slots=True)
class CollectGarbageReport:
    """What was removed."""

    removed: tuple[str, ...]
    """Relative to the store."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class CollectGarbage:
    """Removes what no receipt refers to.

    Args:
        store: A folder or a URL.
        now: Also what a run that is still going might own.

    Raises:
        StoreNotFoundError: If there is no store.
        ConfigError: If URLs of that kind cannot be written here.
    """

    def __init__(self, store: str | os.PathLike[str], *, now: bool = False) -> None:
        self._writer, self._now = StoreWriter(store), now

    def run(self) -> CollectGarbageReport:
        """Do it."""
        return CollectGarbageReport(tuple(self._writer.collect(now=self._now)))
