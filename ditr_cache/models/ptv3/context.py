# SPDX-License-Identifier: Apache-2.0
"""What one forward pass carries besides features: its source of randomness, its data set, its class tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ditr_cache.models.ptv3.tokens import NoTokens, Tokens

__all__ = ["Context"]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """One forward pass."""

    condition: str | None = None
    """Data set whose norm layers are meant, where data sets have norm layers of their own."""
    generator: torch.Generator | None = None
    """On the model's device; drives drop path."""
    cls: Tokens = field(default_factory=NoTokens)
    """Class tokens of the drawn views, as the backbone gave them."""
    tokens: Tokens = field(default_factory=NoTokens)
    """Those that attention sees, at the width of the stage that runs."""
