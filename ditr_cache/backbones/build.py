# SPDX-License-Identifier: Apache-2.0
"""Networks from folders or seeds, without running code or unpickling anything from them, and complete or not at all."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from ditr_cache.backbones.families import Family, Triple, family_of
from ditr_cache.backbones.fetch import WeightsFolder, read_json
from ditr_cache.errors import BackboneError

__all__ = ["from_folder", "from_seed"]

_LIMITS = {
    "hidden_size": 16_384,
    "intermediate_size": 131_072,
    "num_hidden_layers": 256,
    "num_attention_heads": 256,
    "patch_size": 128,
    "image_size": 4096,
    "num_patches": 65_536,
    "num_register_tokens": 1024,
    "mlp_ratio": 64,
}
"""Generous bounds on what a config.json may ask to have allocated."""
_SPREAD = 0.02


def from_folder(folder: WeightsFolder) -> tuple[nn.Module, Family, tuple[Triple, Triple]]:
    """The network of a folder in float32, its family, and mean and standard deviation of its pixels.

    Raises:
        BackboneError: If the architecture is not supported, or the weights do not fill it completely.
        WeightsUnavailableError: If there are no weights.
    """
    family, config = _configuration(read_json(folder.path / "config.json"))
    files = folder.weight_files()
    source: dict[str, Any] = {"pretrained_model_name_or_path": folder.path, "local_files_only": True}
    try:
        if family.convert is not None:
            converted = family.convert({key: value for file in files for key, value in load_file(file).items()})
            if converted is not None:
                config.is_native = "embeddings.position_embedding.weight" not in converted
                source = {"pretrained_model_name_or_path": None, "state_dict": converted}
        with _quiet():
            model, loading = getattr(transformers, family.model_class).from_pretrained(
                **source,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                output_loading_info=True,
                **family.options,
            )
    except MemoryError:
        raise
    except Exception as error:  # safetensors, torch and transformers each have their own ways to dislike a file
        raise BackboneError(
            f"these weights cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:300]})",
            where=folder.path,
        ) from error
    # what is missing would be filled with random numbers and a warning
    absent = sorted(key for key in loading["missing_keys"] if "mask_token" not in key)
    if absent or loading["mismatched_keys"]:
        raise BackboneError(
            f"these weights do not fill the network: {absent[0] if absent else loading['mismatched_keys']} "
            f"and {max(len(absent) - 1, 0)} others are missing or of another shape",
            where=folder.path,
            hint="config.json and the safetensors files do not belong together, or the layout is a foreign one.",
        )
    return model, family, _mean_std(folder, family)


def from_seed(settings: Mapping[str, Any], seed: int) -> tuple[nn.Module, Family, str]:
    """An untrained network, its family, and the sha256 of its parameters' bytes.

    Matrices and embeddings are uniform with standard deviation 0.02, norms and scales 1, biases 0. Uniform numbers of
    torch's generator, unlike normal ones, are made without a logarithm whose last bit depends on the processor.

    Raises:
        BackboneError: If the settings are not those of a supported architecture.
    """
    family, config = _configuration(settings)
    with torch.random.fork_rng(devices=[]), _quiet():
        config._attn_implementation = "sdpa"
        model: nn.Module = getattr(transformers, family.model_class)(config, **family.options)
    generator = torch.Generator().manual_seed(seed % 2**63)
    digest = hashlib.sha256()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1)
            else:
                parameter.copy_(
                    torch.rand(parameter.shape, generator=generator).sub_(0.5).mul_(_SPREAD * math.sqrt(12))
                )
            digest.update(parameter.numpy().tobytes())
    return model, family, digest.hexdigest()


def _configuration(settings: Mapping[str, Any]) -> tuple[Family, Any]:
    family = family_of(settings.get("model_type"))
    vision = settings.get("vision_config", settings)
    if not isinstance(vision, Mapping):
        raise BackboneError("vision_config is not a JSON object", where="config.json")
    for key, limit in _LIMITS.items():
        value = vision.get(key, 1)
        if key == "num_register_tokens" and value == 0:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= limit:
            raise BackboneError(f"{key} = {value!r} is not a number between 1 and {limit}", where="config.json")
    # a config.json may choose the class that reads it, or code to run; here the table chooses
    plain = {
        k: v for k, v in vision.items() if k not in ("model_type", "auto_map", "architectures", "torch_dtype", "dtype")
    }
    try:
        with _quiet():
            config = getattr(transformers, family.config_class)(**{**plain, **family.settings})
    except Exception as error:  # each version of transformers validates in its own way
        raise BackboneError(
            f"is not a configuration of {family.config_class} ({' '.join(str(error).split())[:300]})",
            where="config.json",
        ) from error
    return family, config


def _mean_std(folder: WeightsFolder, family: Family) -> tuple[Triple, Triple]:
    path = folder.path / "preprocessor_config.json"
    if not path.is_file():
        return family.default_mean_std
    found = read_json(path)
    values = [
        found.get(key, default)
        for key, default in zip(("image_mean", "image_std"), family.default_mean_std, strict=True)
    ]
    for value in values:
        numbers = isinstance(value, (list, tuple)) and all(
            isinstance(x, (int, float)) and math.isfinite(x) for x in value
        )
        if not numbers or len(value) != 3:
            raise BackboneError(f"image_mean and image_std are three numbers each, not {value!r}", where=path)
    if min(values[1]) <= 0:
        raise BackboneError(f"image_std must be positive, not {values[1]!r}", where=path)
    mean, std = (tuple(float(x) for x in value) for value in values)
    return mean, std  # type: ignore[return-value]


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers writes reports and progress bars to stderr; what matters of them is raised here as errors."""
    log: Any = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
