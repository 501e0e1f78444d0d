# SPDX-License-Identifier: Apache-2.0
"""What kinds of things there are: two styles, each with its own classes, as two data sets would have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ANY_PATTERN", "STYLES", "Style", "Thing"]

ANY_PATTERN = ("plain", "grain", "wood", "planks", "marble", "fabric", "plaid")
"""What a thing of untypical texture may wear."""


@dataclass(frozen=True, slots=True)
class Thing:
    """How a class looks."""

    shape: str
    """Key of `furniture.BUILDERS`."""
    patterns: tuple[str, ...]
    """Patterns it is drawn from."""
    typical: float = 1.0
    """Share of instances that take one of `patterns`; the others take any of `ANY_PATTERN`."""


@dataclass(frozen=True, slots=True)
class Style:
    """One data set's classes."""

    families: Mapping[str, Mapping[str, Thing]]
    """Family -> class name -> look. `structure` is the room itself."""
    floors: tuple[str, ...]
    walls: tuple[str, ...]
    per_room: Mapping[str, tuple[int, int]]
    """Family -> fewest and most things a room, inclusive."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Every class, in label order."""
        return ("floor", "wall", *(name for family in self.families.values() for name in family))

    @property
    def class_families(self) -> dict[str, tuple[str, ...]]:
        """Family -> its classes, `structure` included."""
        return {"structure": ("floor", "wall"), **{name: tuple(things) for name, things in self.families.items()}}


_PLAIN = ("plain", "grain")
_PER_ROOM = {"shape": (2, 4), "texture": (4, 5), "typical": (3, 4)}


def _panels(**patterns: str) -> dict[str, Thing]:
    return {f"{look} panel": Thing("panel", (pattern,)) for look, pattern in patterns.items()}


STYLES: Mapping[str, Style] = {
    "a": Style(
        {
            "shape": {name: Thing(name, _PLAIN) for name in ("crate", "pillar", "ball", "cone")},
            "texture": _panels(striped="stripes", checked="checks", dotted="dots", speckled="speckle"),
            "typical": {
                "table": Thing("table", ("wood",), 0.8),
                "chair": Thing("chair", ("planks", "wood"), 0.8),
                "shelf": Thing("shelf", ("planks",), 0.8),
                "sofa": Thing("sofa", ("fabric", "plaid"), 0.8),
            },
        },
        floors=("planks", "tiles", "grain"),
        walls=("grain", "plain"),
        per_room=_PER_ROOM,
    ),
    "b": Style(
        {
            "shape": {name: Thing(name, _PLAIN) for name in ("ball", "steps", "arch", "pyramid")},
            "texture": _panels(zigzag="zigzag", woven="weave", brick="bricks", ringed="rings"),
            "typical": {
                "table": Thing("table", ("marble",), 0.8),
                "bench": Thing("bench", ("wood",), 0.8),
                "cabinet": Thing("cabinet", ("planks", "wood"), 0.8),
                "bed": Thing("bed", ("plaid", "fabric"), 0.8),
                "lamp": Thing("lamp", ("fabric",), 0.8),
            },
        },
        floors=("tiles", "marble", "fabric"),
        walls=("plain", "grain"),
        per_room=_PER_ROOM,
    ),
}
"""Styles by letter."""
