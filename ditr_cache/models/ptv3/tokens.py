# SPDX-License-Identifier: Apache-2.0
"""Class tokens of views as further keys and values of attention (DITR, section 4.4 and last row of Table 5).

B clouds, V tokens of all clouds, T the most tokens of a cloud, D image channels, C channels, P patches, K points a
patch, H heads, E channels a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ditr_cache.errors import ConfigError
from ditr_cache.types import PointBatch

__all__ = ["ClassTokens", "Keys", "NoKeys", "NoTokens", "Tokens", "class_tokens"]


class Keys(Protocol):
    """What points of a patch attend to besides each other."""

    def join(
        self, k_PHKE: Tensor, v_PHKE: Tensor, bias: Tensor | None, cloud_N: Tensor, point_P: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append to the keys and values of patches.

        Args:
            k_PHKE: `[P, H, K, E]`.
            v_PHKE: `[P, H, K, E]`.
            bias: `[P, H, K, K]` of a query for a key, or None.
            cloud_N: `[N]` cloud of each point.
            point_P: `[P]` a point of each patch.

        Returns:
            The three, with T more keys.
        """
        ...


class Tokens(Protocol):
    """Tokens that belong to clouds."""

    def projected(self, layer: nn.Linear) -> Tokens:
        """To the width of a stage."""
        ...

    def keys(self, ask: Callable[[Tensor], Tensor], heads: int) -> Keys:
        """As keys and values of a block; `ask` maps `[V, C]` to queries, keys and values `[V, 3 C]`."""
        ...


@dataclass(frozen=True, slots=True)
class NoKeys:
    """Points attend to each other alone."""

    def join(
        self, k_PHKE: Tensor, v_PHKE: Tensor, bias: Tensor | None, cloud_N: Tensor, point_P: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Nothing."""
        return k_PHKE, v_PHKE, bias


@dataclass(frozen=True, slots=True)
class NoTokens:
    """A network without class tokens."""

    def projected(self, layer: nn.Linear) -> NoTokens:
        """Nothing."""
        return self

    def keys(self, ask: Callable[[Tensor], Tensor], heads: int) -> NoKeys:
        """Nothing."""
        return NoKeys()


@dataclass(frozen=True, slots=True, eq=False)
class ClassTokens:
    """Tokens of all clouds."""

    tokens: Tensor
    """`[V, D]` as the backbone gave them, or `[V, C]` at the width of a stage."""
    slot_BT: Tensor
    """`[B, T]` int64 tokens of each cloud; -1 where it has fewer than T."""
    even: bool
    """Whether all clouds have T."""

    def projected(self, layer: nn.Linear) -> ClassTokens:
        """To the width of a stage."""
        return replace(self, tokens=layer(self.tokens.to(layer.weight.dtype)))

    def keys(self, ask: Callable[[Tensor], Tensor], heads: int) -> _TokenKeys:
        """As keys and values of a block. They have no position, and nothing updates them from block to block."""
        qkv_VC = ask(self.tokens)
        # a row for the slots of clouds that have fewer tokens, which the bias then hides
        qkv_V3HE = torch.cat([qkv_VC, qkv_VC.new_zeros(1, qkv_VC.shape[1])]).view(len(qkv_VC) + 1, 3, heads, -1)
        _, k_BHTE, v_BHTE = qkv_V3HE[self.slot_BT].permute(2, 0, 3, 1, 4)
        hidden_BT = torch.zeros_like(self.slot_BT, dtype=qkv_VC.dtype).masked_fill_(self.slot_BT < 0, -torch.inf)
        return _TokenKeys(k_BHTE, v_BHTE, None if self.even else hidden_BT)


@dataclass(frozen=True, slots=True, eq=False)
class _TokenKeys:
    k_BHTE: Tensor
    v_BHTE: Tensor
    bias_BT: Tensor | None
    """0, or -inf for no token; None where all are."""

    def join(
        self, k_PHKE: Tensor, v_PHKE: Tensor, bias: Tensor | None, cloud_N: Tensor, point_P: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The tokens of a patch are those of its cloud."""
        cloud_P = cloud_N.index_select(0, point_P)
        k = torch.cat([k_PHKE, self.k_BHTE.to(k_PHKE.dtype).index_select(0, cloud_P)], 2)
        v = torch.cat([v_PHKE, self.v_BHTE.to(v_PHKE.dtype).index_select(0, cloud_P)], 2)
        if bias is None and self.bias_BT is None:
            return k, v, None
        if bias is None:
            bias = k.new_zeros(len(cloud_P), 1, 1, k_PHKE.shape[2])
        bias_BT = k.new_zeros(len(self.k_BHTE), self.k_BHTE.shape[2]) if self.bias_BT is None else self.bias_BT
        bias_P11T = bias_BT.to(bias.dtype).index_select(0, cloud_P)[:, None, None]
        return k, v, torch.cat([bias, bias_P11T.expand(*bias.shape[:3], -1)], 3)


def class_tokens(batch: PointBatch) -> ClassTokens:
    """The class tokens of a batch.

    Raises:
        ConfigError: If it has none, or not for its clouds.
    """
    if batch.cls is None or batch.cls_offset is None:
        raise ConfigError(
            "injection 'cls' needs class tokens, and the batch has none",
            hint="Extract with a backbone that has class tokens, or choose another model.injection.",
        )
    if len(batch.cls_offset) != len(batch.offset):
        raise ConfigError(f"class tokens of {len(batch.cls_offset)} clouds in a batch of {len(batch.offset)}")
    count_B = torch.diff(batch.cls_offset, prepend=batch.cls_offset.new_zeros(1))
    fewest, most = (int(n) for n in torch.aminmax(count_B))
    rank_T = torch.arange(most, device=count_B.device)
    slot_BT = (batch.cls_offset - count_B)[:, None] + rank_T
    return ClassTokens(batch.cls, slot_BT.masked_fill(rank_T >= count_B[:, None], -1), fewest == most)
