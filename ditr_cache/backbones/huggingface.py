# SPDX-License-Identifier: Apache-2.0
"""Frozen ViTs of the transformers library.

Shape suffixes: B images, h and w their sides in pixels, P patches, T tokens (class and register tokens, then patches),
D channels.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ditr_cache.backbones.aimv2 import ResizablePositions
from ditr_cache.backbones.base import BackboneIdentity, PatchMaps
from ditr_cache.backbones.build import from_folder, from_seed
from ditr_cache.backbones.families import Family, Triple
from ditr_cache.backbones.fetch import WeightsFolder, config_sha256, read_json
from ditr_cache.config import BackboneConfig
from ditr_cache.errors import BackboneError

__all__ = ["HuggingFaceBackbone", "load_folder", "load_random"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class HuggingFaceBackbone:
    """A frozen ViT; see `Backbone` for the contract.

    A layer before the last is had by cutting the network behind it, so the blocks that nobody reads cost nothing.

    Args:
        model: The network, all of its blocks.
        family: What sets its architecture apart.
        mean_std: Normalisation of pixels in [0, 1].
        config: Layer, norm, dtype and compile option.
        device: Where it computes.
        origin: Name, revision, hash of weights and seed for the identity.

    Raises:
        BackboneError: If the layer does not exist, or compiling is asked for and there is no compiler.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        mean_std: tuple[Triple, Triple],
        config: BackboneConfig,
        device: torch.device,
        origin: Mapping[str, Any],
    ) -> None:
        settings: Any = model.config
        layers = int(settings.num_hidden_layers)
        self.device = device
        self.mean, self.std = mean_std
        self.has_class_token = family.class_token
        self.patch_size = int(settings.patch_size)
        self.dim = int(settings.hidden_size)
        self.identity = BackboneIdentity(
            architecture=str(settings.model_type),
            dim=self.dim,
            patch_size=self.patch_size,
            layer=_resolve_layer(config.layer, layers),
            layers=layers,
            norm=config.norm,
            registers=family.registers(settings),
            dtype=config.dtype,
            position_embedding="sinusoidal" if getattr(settings, "is_native", False) else family.positions,
            **origin,
        )
        self._inputs = family.inputs
        self._prefix = int(family.class_token) + self.identity.registers
        self._positions = _make_resizable(model)
        _cut(model, self.identity.layer, layers, None if config.norm else family.norm)
        self._mean_311, self._std_311 = (
            torch.tensor(values, dtype=torch.float32, device=device).reshape(3, 1, 1) for values in mean_std
        )
        self._autocast = _AUTOCAST.get(config.dtype)
        self._model: Any = model.eval().requires_grad_(False).to(device)
        if config.compile:
            _require_compiler(device)
            self._model = torch.compile(self._model)

    def __call__(self, images_B3hw: torch.Tensor) -> PatchMaps:
        """See `Backbone.__call__`."""
        rows, columns = self._grid(images_B3hw)
        with torch.inference_mode(), self._precision():
            # in float32 whatever the autocast type: pixels are cheap, and their rounding is not
            x_B3hw = images_B3hw.to(self.device, non_blocking=True).float()
            x_B3hw = x_B3hw.div_(255).sub_(self._mean_311).div_(self._std_311)
            if self._positions is not None:
                self._positions.grid = (rows, columns)
            tokens_BTD = self._model(**self._inputs(x_B3hw, self.patch_size)).last_hidden_state.float()
        if tokens_BTD.shape[1] != self._prefix + rows * columns:
            raise BackboneError(
                f"gave {tokens_BTD.shape[1]} tokens where {self._prefix} + {rows} x {columns} were expected",
                where=self.identity.name,
            )
        # copied outside of inference mode: plain tensors, which later code may change in place
        cls_BD = tokens_BTD[:, 0].clone() if self.has_class_token else None
        return PatchMaps(tokens_BTD[:, self._prefix :].clone(memory_format=torch.contiguous_format), cls_BD)

    def _grid(self, images_B3hw: torch.Tensor) -> tuple[int, int]:
        shape = tuple(images_B3hw.shape)
        if images_B3hw.dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3:
            raise BackboneError(f"images are uint8 [B, 3, h, w], these are {images_B3hw.dtype} {list(shape)}")
        rows, columns = shape[2] // self.patch_size, shape[3] // self.patch_size
        if not rows or not columns or shape[2] % self.patch_size or shape[3] % self.patch_size:
            raise BackboneError(f"{shape[2]}x{shape[3]} images are no whole number of patches of {self.patch_size}")
        return rows, columns

    def _precision(self) -> ExitStack:
        stack = ExitStack()
        if self.device.type == "cuda":
            # convolutions use TF32 unless told otherwise, and the patch embedding is one: fp32 shall mean fp32
            stack.enter_context(torch.backends.cudnn.flags(allow_tf32=False, deterministic=True))
        if self._autocast is not None:
            stack.enter_context(torch.autocast(self.device.type, self._autocast))
        return stack


def load_folder(folder: WeightsFolder, config: BackboneConfig, device: torch.device) -> HuggingFaceBackbone:
    """A trained backbone from a folder in Hugging Face layout.

    Raises:
        BackboneError: If the folder holds something else than a complete network of a supported architecture.
        WeightsUnavailableError: If it holds no safetensors files.
    """
    model, family, mean_std = from_folder(folder)
    origin = {
        "name": folder.name,
        "revision": folder.revision,
        "weights_sha256": folder.sha256(),
        "config_sha256": config_sha256(read_json(folder.path / "config.json")),
    }
    return HuggingFaceBackbone(model, family, mean_std, config, device, origin)


def load_random(
    settings: Mapping[str, Any], name: str, seed: int, config: BackboneConfig, device: torch.device
) -> HuggingFaceBackbone:
    """An untrained backbone, the same on every machine for one seed.

    Args:
        settings: Content of a config.json.
        name: For the identity, which is marked with the seed.
        seed: Any integer.
        config: Layer, norm, dtype and compile option.
        device: Where it computes.

    Raises:
        BackboneError: If the settings are not those of a supported architecture.
    """
    model, family, digest = from_seed(settings, seed)
    origin = {
        "name": name,
        "revision": None,
        "weights_sha256": digest,
        "random_seed": seed,
        "config_sha256": config_sha256(settings),
    }
    return HuggingFaceBackbone(model, family, family.default_mean_std, config, device, origin)


def _resolve_layer(layer: int | None, layers: int) -> int:
    resolved = layers if layer is None else layer if layer > 0 else layers + 1 + layer
    if layer == 0 or not 1 <= resolved <= layers:
        raise BackboneError(
            f"there is no layer {layer}: this network has {layers} blocks",
            hint=f"backbone.layer counts from 1 to {layers}, or from the end from -1 to -{layers}.",
        )
    return resolved


def _make_resizable(model: nn.Module) -> ResizablePositions | None:
    settings: Any = model.config
    if not settings.model_type.startswith("aimv2") or settings.is_native:
        return None
    embeddings: Any = model.embeddings
    positions = ResizablePositions(embeddings.position_embedding)
    embeddings.position_embedding = positions
    return positions


def _cut(model: nn.Module, layer: int, layers: int, norm_to_drop: str | None) -> None:
    """Remove the blocks behind `layer`, and the final norm if it is named."""
    stacks = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == layers]
    if len(stacks) != 1:
        raise BackboneError(f"cannot tell the blocks of this network: {len(stacks)} stacks of {layers}")
    parent, _, leaf = stacks[0].rpartition(".")
    holder = model.get_submodule(parent)
    setattr(holder, leaf, getattr(holder, leaf)[:layer])
    if norm_to_drop:
        setattr(getattr(model, "vision_model", model), norm_to_drop, nn.Identity())


def _require_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        found = importlib.util.find_spec("triton") is not None
    else:
        found = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "cl") if name)
    if not found:
        missing = "the package triton" if device.type == "cuda" else "a C++ compiler"
        raise BackboneError(
            f"backbone.compile needs {missing}, which this machine does not have",
            hint="Install it, or leave compiling off: -s backbone.compile=false",
        )
