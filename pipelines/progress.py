# SPDX-License-Identifier: Apache-2.0
"""How a pipeline says how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Called from the pipeline's main thread only."""

    def begin(self, images: int) -> None:
        """Work starts: so many images (views x variants) are to be done."""
        ...

    def advance(self, images: int) -> None:
        """So many more images are stored; fewer, where a block was given up."""
        ...

    def note(self, text: str) -> None:
        """One line for people: what was guessed, which frame failed and why."""
        ...

    def end(self) -> None:
        """Work is over, however it went."""
        ...


class Silent:
    """Says nothing."""

    def begin(self, images: int) -> None:
        """Ignore."""

    def advance(self, images: int) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def end(self) -> None:
        """Ignore."""
