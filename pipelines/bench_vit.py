# SPDX-License-Identifier: Apache-2.0
"""Which ViT the online network of `bench model` runs.

Time and memory do not depend on what weights are, so nothing is downloaded for them: where an architecture is known
without its weights, they are random, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ditr_cache.config import BackboneConfig
from ditr_cache.errors import ConfigError

__all__ = ["VitChoice", "choose_vit"]

Dtype = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class VitChoice:
    """How to load it, and how it was chosen."""

    config: BackboneConfig
    name: str
    why: str
    """`asked for`, `that of the store`, `stands in for ...`, `default`."""

    @property
    def random_weights(self) -> bool:
        """Whether they are drawn."""
        return self.config.random_seed is not None


def choose_vit(
    name: str | None, weights: Path | None, stored: Mapping[str, Any] | None, dtype: Dtype, *, cuda: bool
) -> VitChoice:
    """The one that is asked for, else that of the store, else a default.

    Args:
        name: A registered name or a hub repository.
        weights: A local folder; takes precedence.
        stored: Section `backbone` of a store's identity; None without a store.
        dtype: Of its forward pass.
        cuda: Whether it runs on CUDA: the default is ViT-L there, as in the paper, and ViT-S on a CPU.

    Raises:
        ConfigError: If the store's is not known here, and none of its width and patch size is.
        BackboneError: If there is none of that name.
    """
    if weights is not None:
        return VitChoice(BackboneConfig(weights=weights, dtype=dtype), weights.name, "asked for")
    if name is not None:
        return VitChoice(_config(name, dtype), name, "asked for")
    if stored is None:
        name = "dinov2-reg-large" if cuda else "dinov2-reg-small"
        return VitChoice(_config(name, dtype), name, "default")
    return _of_store(stored, dtype)


def _of_store(stored: Mapping[str, Any], dtype: Dtype) -> VitChoice:
    from ditr_cache.backbones.registry import BACKBONES

    name, dim, patch = str(stored.get("name")), stored.get("dim"), stored.get("patch_size")
    depth = {"layer": stored.get("layer"), "norm": stored.get("norm", True)}
    if name in BACKBONES and (BACKBONES[name].settings is not None or BACKBONES[name].repo is None):
        return VitChoice(_config(name, dtype, **depth), name, "that of the store")
    alike = [n for n, e in BACKBONES.items() if e.settings is not None and (e.dim, e.patch_size) == (dim, patch)]
    if not alike:
        raise ConfigError(
            f"the store's backbone, {name}, is not known here, and no other has {dim} channels and patches of {patch}",
            hint="Name one with --weights DIR or --backbone NAME.",
        )
    # as many register tokens, where there is a choice
    registers = bool(stored.get("registers"))
    chosen = next((n for n in alike if ("-reg-" in n) == registers), alike[0])
    return VitChoice(_config(chosen, dtype, **depth), chosen, f"stands in for {name}, to its layer")


def _config(name: str, dtype: Dtype, layer: int | None = None, norm: bool = True) -> BackboneConfig:
    from ditr_cache.backbones.registry import BACKBONES

    entry = BACKBONES.get(name)
    seed = 0 if entry is not None and entry.settings is not None else None
    return BackboneConfig(name=name, layer=layer, norm=norm, dtype=dtype, random_seed=seed)
