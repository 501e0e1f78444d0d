# SPDX-License-Identifier: Apache-2.0
"""Settings: one pydantic model a component, YAML files, `a.b=c` overrides, a fingerprint."""

from ditr_cache.config.extract import (
    BackboneConfig,
    ExtractConfig,
    FramesConfig,
    ImagesConfig,
    RunConfig,
    StoreConfig,
    VariantsConfig,
    VisibilityConfig,
)
from ditr_cache.config.load import canonical_json, config_names, fingerprint, load_config, merge, read_named_yaml
from ditr_cache.config.model import ModelConfig

__all__ = [
    "BackboneConfig",
    "ExtractConfig",
    "FramesConfig",
    "ImagesConfig",
    "ModelConfig",
    "RunConfig",
    "StoreConfig",
    "VariantsConfig",
    "VisibilityConfig",
    "canonical_json",
    "config_names",
    "fingerprint",
    "load_config",
    "merge",
    "read_named_yaml",
]
