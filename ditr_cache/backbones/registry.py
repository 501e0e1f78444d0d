# SPDX-License-Identifier: Apache-2.0
"""Backbones by name, and how a configuration becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ditr_cache.backbones.fetch import WeightsFolder, fetch_from_hub, open_folder, read_json
from ditr_cache.config import BackboneConfig
from ditr_cache.errors import BackboneError, WeightsUnavailableError

if TYPE_CHECKING:
    from ditr_cache.backbones.base import Backbone

__all__ = ["BACKBONES", "BackboneEntry", "load_backbone"]


@dataclass(frozen=True, slots=True)
class BackboneEntry:
    """What is known of a backbone before its weights are."""

    repo: str | None
    """Repository on the Hugging Face hub; None for weights that this package ships."""
    licence: str
    """Of the weights, for the store's card."""
    patch_size: int
    """Side of a patch, pixels."""
    dim: int
    """D, channels of a feature."""
    settings: Mapping[str, Any] | None = None
    """config.json, where seeded random weights may be asked for without a download."""


def _dinov2(size: str, dim: int, layers: int, heads: int, *, registers: bool) -> BackboneEntry:
    settings = {
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "mlp_ratio": 4,
        "use_swiglu_ffn": size == "giant",
        "image_size": 518,
        "patch_size": 14,
        "layer_norm_eps": 1e-6,
        **({"num_register_tokens": 4} if registers else {}),
    }
    infix = "-with-registers" if registers else ""
    return BackboneEntry(f"facebook/dinov2{infix}-{size}", "Apache-2.0", 14, dim, settings)


_DINOV2 = (("small", 384, 12, 6), ("base", 768, 12, 12), ("large", 1024, 24, 16), ("giant", 1536, 40, 24))
_DINOV3 = (
    ("small", "s16", 384),
    ("small-plus", "s16plus", 384),
    ("base", "b16", 768),
    ("large", "l16", 1024),
    ("huge-plus", "h16plus", 1280),
    ("7b", "7b16", 4096),
)
# the largest trained resolution of each: their positions are learned, and patches are what we are after
_SIGLIP2 = (
    ("base", "base-patch16-512", 768),
    ("large", "large-patch16-512", 1024),
    ("so400m", "so400m-patch16-512", 1152),
    ("giant", "giant-opt-patch16-384", 1536),
)
_AIMV2 = (
    ("large", "large-patch14-native", 1024),
    ("huge", "huge-patch14-448", 1536),
    ("1b", "1B-patch14-448", 2048),
    ("3b", "3B-patch14-448", 3072),
)

BACKBONES: Mapping[str, BackboneEntry] = {
    **{f"dinov2-reg-{row[0]}": _dinov2(*row, registers=True) for row in _DINOV2},
    **{f"dinov2-{row[0]}": _dinov2(*row, registers=False) for row in _DINOV2},
    **{
        f"dinov3-{size}": BackboneEntry(f"facebook/dinov3-vit{code}-pretrain-lvd1689m", "DINOv3 License", 16, dim)
        for size, code, dim in _DINOV3
    },
    **{
        f"siglip2-{size}": BackboneEntry(f"google/siglip2-{code}", "Apache-2.0", 16, dim)
        for size, code, dim in _SIGLIP2
    },
    **{f"aimv2-{size}": BackboneEntry(f"apple/aimv2-{code}", "Apple AMLR", 14, dim) for size, code, dim in _AIMV2},
    "vit-base-in21k": BackboneEntry("google/vit-base-patch16-224-in21k", "Apache-2.0", 16, 768),
    "vit-large-in21k": BackboneEntry("google/vit-large-patch16-224-in21k", "Apache-2.0", 16, 1024),
    "rooms-vit-tiny": BackboneEntry(None, "Apache-2.0", 14, 192),
}
"""By the name that `backbone.name` takes."""


def load_backbone(config: BackboneConfig, device: str) -> Backbone:
    """The backbone that a configuration names.

    `config.weights` takes precedence over `config.name`; a name with a slash is a hub repository. Random weights are
    made only where `config.random_seed` asks for them.

    Args:
        config: The backbone settings.
        device: For torch, e.g. `cpu` or `cuda:0`.

    Raises:
        WeightsUnavailableError: If the weights are not on this machine and cannot be fetched.
        BackboneError: If the name is unknown, or the weights, layer or options are unsuitable.
    """
    # transformers takes seconds to import: only those who extract pay for it
    from ditr_cache.backbones import huggingface

    if config.random_seed is not None:
        settings, name = _settings(config)
        return huggingface.load_random(settings, name, config.random_seed, config, torch.device(device))
    return huggingface.load_folder(_folder(config), config, torch.device(device))


def _folder(config: BackboneConfig) -> WeightsFolder:
    if config.weights is not None:
        folder = open_folder(config.weights)
        names = {entry.repo: name for name, entry in BACKBONES.items() if entry.repo}
        return WeightsFolder(folder.path, names.get(folder.name, folder.name), folder.revision)
    entry = _entry(config.name)
    if entry is None:
        names = {entry.repo: name for name, entry in BACKBONES.items() if entry.repo}
        return fetch_from_hub(config.name, names.get(config.name, config.name))
    if entry.repo is not None:
        return fetch_from_hub(entry.repo, config.name)
    packaged = Path(str(files("ditr_cache.backbones"))) / "weights" / config.name
    if not packaged.is_dir():
        raise WeightsUnavailableError(
            "the weights that come with the package are missing", where=packaged, hint="Install ditr-cache again."
        )
    return open_folder(packaged)


def _settings(config: BackboneConfig) -> tuple[Mapping[str, Any], str]:
    if config.weights is not None:
        path = config.weights / "config.json"
        if not path.is_file():
            raise WeightsUnavailableError("there is no config.json in this folder", where=config.weights)
        return read_json(path), config.weights.resolve().name
    entry = _entry(config.name)
    if entry is not None and entry.settings is not None:
        return entry.settings, config.name
    if entry is not None and entry.repo is None:
        return read_json(_folder(config).path / "config.json"), config.name
    raise BackboneError(
        "random weights need the architecture, which is not known without its config.json",
        where=config.name,
        hint="Pass a folder that has one: --weights DIR. Known without: dinov2-*, dinov2-reg-*.",
    )


def _entry(name: str) -> BackboneEntry | None:
    """The entry of a name; None for a hub repository."""
    if name in BACKBONES:
        return BACKBONES[name]
    if "/" in name:
        return None
    raise BackboneError(
        f"there is no backbone named {name!r}",
        hint=f"Known: {', '.join(BACKBONES)}. Or a hub repository (owner/name), or --weights DIR.",
    )
