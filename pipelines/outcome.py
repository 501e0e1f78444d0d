# SPDX-License-Identifier: Apache-2.0
"""How the work on one block ended. Small and plain: it travels between machines, blocks and arrays never do."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BlockOutcome"]


@dataclass(frozen=True, slots=True)
class BlockOutcome:
    """The end of one attempt at a block: committed, failed, or done by another writer."""

    block: str
    committed: bool = False
    """Whether this attempt committed it."""
    images: int = 0
    """Stored by this attempt, variants included."""
    failure: str | None = None
    """Why it was given up, on one line; None with `committed` False: another writer was first."""
    transient: bool = False
    """Whether a medium failed, so that a second attempt is worth its time."""
    disk_full: bool = False
    """Whether no attempt at any block can succeed."""
    notes: tuple[str, ...] = ()
    """For people: frames that were dropped, why the block failed."""
