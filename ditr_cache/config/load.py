# SPDX-License-Identifier: Apache-2.0
"""YAML files and `a.b=c` overrides to a validated model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ditr_cache.errors import ConfigError

__all__ = ["canonical_json", "config_names", "fingerprint", "load_config", "merge", "read_named_yaml"]

M = TypeVar("M", bound=BaseModel)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        ValueError: On NaN or infinity, which JSON cannot hold.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: BaseModel | Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON, as hex."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def config_names(kind: str) -> list[str]:
    """Names of the installed configurations of one kind (`extract`, `train`)."""
    folder = files("ditr_cache.configs") / kind
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def read_named_yaml(kind: str, name_or_path: str) -> dict[str, Any]:
    """The mapping in an installed configuration (by name) or a YAML file (by path).

    Raises:
        ConfigError: If there is no such configuration or it is not a YAML mapping.
    """
    if name_or_path in config_names(kind):
        text, where = (files("ditr_cache.configs") / kind / f"{name_or_path}.yaml").read_text("utf-8"), name_or_path
    else:
        path = Path(name_or_path)
        try:
            text, where = path.read_text("utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"no configuration of that name and no readable file ({type(error).__name__})",
                where=name_or_path,
                hint=f"Installed: {', '.join(config_names(kind))}. Or give the path of a YAML file.",
            ) from error
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}", where=where) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError("a configuration is a YAML mapping", where=where)
    return value


def merge(layers: Iterable[Mapping[str, Any]], overrides: Iterable[str] = ()) -> dict[str, Any]:
    """`layers` (later wins, key by key), then `a.b=c` overrides, as one mapping.

    Raises:
        ConfigError: If an override is none.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        _merge(merged, layer)
    for override in overrides:
        _merge(merged, _parse_override(override))
    return merged


def load_config(model: type[M], layers: Iterable[Mapping[str, Any]], overrides: Iterable[str] = ()) -> M:
    """`merge`, and validate.

    Raises:
        ConfigError: With every problem at once.
    """
    merged = merge(layers, overrides)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or model.__name__}: {_message(e)}" for e in error.errors()]
        kind = model.__name__.removesuffix("Config").lower()
        raise ConfigError(
            "these settings are not valid:\n" + "\n".join(lines),
            hint=f"See them all with: ditr-cache config show {kind}",
        ) from error


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping):
            # copied at every depth: later layers are merged into it, and `other` is somebody else's
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value)
        else:
            into[key] = value


def _message(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such setting"
    return str(error["msg"]).removeprefix("Value error, ")


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in key.split(".")):
        raise ConfigError(
            "an override reads section.key=value", where=text, hint="For example: -s images.size=[420,560]"
        )
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError("the value is not valid YAML", where=text) from error
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return dict(parsed)
