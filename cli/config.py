# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache config show|list|schema`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from ditr_cache.cli.options import ConfigName, config_options, reports
from ditr_cache.cli.output import Output

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["command"]


_KINDS = ("extract", "train")
_MODELS = (*_KINDS, "distill")
"""Distillation takes the recipes of training."""


@click.group(
    "config",
    short_help="Settings: what there is, and what they mean.",
    epilog="""\b
Examples:
  ditr-cache config list
  ditr-cache config show nuscenes -s store.dtype=int8 > mine.yaml
  ditr-cache extract /data/nuscenes nus.store -c mine.yaml
  ditr-cache config show train/scannet""",
)
def command() -> None:
    """Show settings."""


@command.command("show", short_help="Settings as YAML, with what they mean.")
@click.argument("name", type=ConfigName(*_KINDS, prefix=True), metavar="NAME")
@config_options(*_KINDS, example="store.dtype=int8")
@reports()
def show(output: Output, name: str, configs: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Print complete settings as YAML.

    NAME is an installed configuration (ditr-cache config list); extract, train or distill for the defaults; or a YAML
    file. Without extract/ or train/ before it, a name or file means extraction, if there is such a one; distill/ before
    one of training gives what distillation takes of it.
    """
    from ditr_cache.config import load_config

    kind, names = _which(name)
    config = load_config(_model(kind), [_layer(kind, n) for n in (*names, *configs)], overrides)
    output.document(config.model_dump(mode="json"))
    output.text("\n".join(_yaml(config)))


@command.command("list", short_help="Installed configurations.")
@reports()
def list_(output: Output) -> None:
    """List the installed configurations. A data set's own is used without being named."""
    from ditr_cache.config import config_names

    output.document({kind: config_names(kind) for kind in _KINDS})
    for kind in _KINDS:
        for name in config_names(kind):
            output.text(f"{kind}/{name}")


@command.command("schema", short_help="JSON schema, for editors.")
@click.argument("kind", type=click.Choice(_MODELS), default="extract")
@reports(json=False)
def schema(output: Output, kind: str) -> None:
    """Print the JSON schema of settings, with which editors complete and check YAML files."""
    import json

    output.text(json.dumps(_model(kind).model_json_schema(), indent=2))


def _which(name: str) -> tuple[str, list[str]]:
    """Kind of settings, and what to read: `train` -> defaults, `train/scannet`, `scannet` -> those of extraction."""
    from ditr_cache.config import config_names

    kind, slash, rest = name.partition("/")
    if kind in _MODELS and (not slash or rest in config_names(_recipes(kind))):
        return kind, [rest] if rest else []
    only_train = name in config_names("train") and name not in config_names("extract")
    return "train" if only_train else "extract", [name]


def _recipes(kind: str) -> str:
    return "train" if kind == "distill" else kind


def _layer(kind: str, name: str) -> dict[str, Any]:
    from ditr_cache.config import read_named_yaml

    layer = read_named_yaml(_recipes(kind), name)
    if kind == "distill":
        from ditr_cache.training.distill_config import without_labels

        return without_labels(layer)
    return layer


def _model(kind: str) -> type[BaseModel]:
    if kind == "train":
        from ditr_cache.training.config import TrainConfig

        return TrainConfig
    if kind == "distill":
        from ditr_cache.training.distill_config import DistillConfig

        return DistillConfig
    from ditr_cache.config import ExtractConfig

    return ExtractConfig


def _yaml(model: BaseModel) -> Iterator[str]:
    """A model as YAML, with every field's docstring above it."""
    values: dict[str, Any] = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        section = getattr(model, name)
        if hasattr(section, "model_dump"):
            yield f"# {(type(section).__doc__ or '').strip()}"
            yield f"{name}:"
            yield from (f"  {line}" for line in _yaml(section))
            continue
        yield from (f"# {line.strip()}" for line in (field.description or "").splitlines() if line.strip())
        if get_origin(field.annotation) is Literal:
            yield f"# One of: {', '.join(map(str, get_args(field.annotation)))}."
        value = values[name]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{name}:"
            yield from (f"  - {_scalar(item)}" for item in value)
        else:
            yield f"{name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
