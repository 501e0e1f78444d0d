# SPDX-License-Identifier: Apache-2.0
"""Weights in and out, and what to say where they do not fit.

What names and shapes cannot tell: weights of Pointcept before v1.5.2 (the ones on the hub as
Pointcept/PointTransformerV3 are v1.5.1) have the same names and shapes, but belong to a block whose residual lost its
sparse half. They load without a complaint and cost about 20 mIoU (Pointcept issue 357). Know where weights are from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditr_cache.errors import WeightsError
from ditr_cache.models.weight_files import load_weights, save_official, save_weights, with_backbone

__all__ = [
    "FitReport",
    "Mismatch",
    "compare",
    "export_official",
    "fit",
    "initialise",
    "load_weights",
    "save_official",
    "save_weights",
]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A weight of the right name and the wrong shape."""

    name: str
    wanted: Shape
    """What the model has."""
    found: Shape
    """What the file has."""


@dataclass(frozen=True, slots=True)
class FitReport:
    """How the weights of a file fit a model."""

    fitting: int
    """Entries that fit by name and shape."""
    missing: tuple[str, ...]
    """The model has them, the file does not."""
    unexpected: tuple[str, ...]
    """The file has them, the model does not."""
    mismatched: tuple[Mismatch, ...]

    @property
    def ok(self) -> bool:
        """Whether all of the file fits all of the model."""
        return not (self.missing or self.unexpected or self.mismatched)

    def lines(self) -> list[str]:
        """What does not fit, one weight a line."""
        return [
            *(f"missing: {name}" for name in self.missing),
            *(f"unexpected: {name}" for name in self.unexpected),
            *(f"shape: {m.name} is {_x(m.found)} in the file, {_x(m.wanted)} in the model" for m in self.mismatched),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "ok": self.ok,
            "fitting": self.fitting,
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "mismatched": [{"name": m.name, "wanted": list(m.wanted), "found": list(m.found)} for m in self.mismatched],
        }


def compare(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> FitReport:
    """Compare two state dicts by names and shapes."""
    both = [name for name in wanted if name in found]
    bad = [n for n in both if wanted[n].shape != found[n].shape]
    return FitReport(
        fitting=len(both) - len(bad),
        missing=tuple(n for n in wanted if n not in found),
        unexpected=tuple(n for n in found if n not in wanted),
        mismatched=tuple(Mismatch(n, tuple(wanted[n].shape), tuple(found[n].shape)) for n in bad),
    )


def fit(model: nn.Module, state: Mapping[str, Tensor]) -> FitReport:
    """How `state` (as `load_weights` gives it) fits `model`, a `Segmentor` or its backbone alone. Loads nothing."""
    return compare(model.state_dict(), _for_model(model, state))


def initialise(model: nn.Module, path: str | os.PathLike[str], *, strict: bool = True) -> FitReport:
    """Load the weights in a file into a model.

    Args:
        model: A `Segmentor`, or its backbone alone, which takes the backbone's part.
        path: As `load_weights`.
        strict: Everything must fit; otherwise what fits is taken, and the rest of the model stays as it is.

    Returns:
        What fitted and what did not.

    Raises:
        WeightsError: As `load_weights`; if nothing fits; or, when `strict`, if anything does not, with the list.
    """
    state = _for_model(model, load_weights(path))
    own = model.state_dict()
    report = compare(own, state)
    if not report.fitting or (strict and not report.ok):
        raise WeightsError(
            "these weights do not fit the model:\n" + "\n".join(f"  {line}" for line in _shortened(report.lines())),
            where=path,
            hint="Classes, channels and injection of the model must be those of the weights; or take what fits, "
            "which leaves the rest of the model as it is.",
        )
    with torch.no_grad():
        for name, tensor in state.items():
            if name in own and own[name].shape == tensor.shape:
                own[name].copy_(tensor)
    return report


def export_official(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the weights of a `Segmentor`, or of a backbone alone, as Pointcept reads them."""
    save_official(with_backbone(model.state_dict()), path)


def _for_model(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A backbone alone takes its part."""
    if any(name.startswith("backbone.") for name in model.state_dict()):
        return state
    return {n.removeprefix("backbone."): tensor for n, tensor in state.items() if n.startswith("backbone.")}


def _shortened(lines: list[str], most: int = 20) -> list[str]:
    return lines if len(lines) <= most else [*lines[:most], f"... and {len(lines) - most} more"]


def _x(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
