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


@click.group(
    "config",
    short_help="Settings: what there is, and what they mean.",
    epilog="""\b
Examples:
  ditr-cache config list
  ditr-cache config show nuscenes -s store.dtype=int8 > mine.yaml
  ditr-cache extract /data/nuscenes nus.store -c mine.yaml""",
)
def command() -> None:
    """Show settings."""


@command.command("show", short_help="Settings as YAML, with what they mean.")
@click.argument("name", type=ConfigName(), metavar="NAME")
@config_options
@reports()
def show(output: Output, name: str, configs: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Print complete settings as YAML.

    NAME is an installed configuration (ditr-cache config list), a YAML file, or extract for the defaults.
    """
    from ditr_cache.config import ExtractConfig, load_config, read_named_yaml

    names = ([] if name == "extract" else [name]) + list(configs)
    config = load_config(ExtractConfig, [read_named_yaml("extract", n) for n in names], overrides)
    output.document(config.model_dump(mode="json"))
    output.text("\n".join(_yaml(config)))


@command.command("list", short_help="Installed configurations.")
@reports()
def list_(output: Output) -> None:
    """List the installed configurations. A data set's own is used without being named."""
    from ditr_cache.config import config_names

    output.document({"extract": config_names("extract")})
    for name in config_names("extract"):
        output.text(name)


@command.command("schema", short_help="JSON schema, for editors.")
@reports(json=False)
def schema(output: Output) -> None:
    """Print the JSON schema of the settings, with which editors complete and check YAML files."""
    import json

    from ditr_cache.config import ExtractConfig

    output.text(json.dumps(ExtractConfig.model_json_schema(), indent=2))


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
        yield f"{name}: {_scalar(values[name])}"


def _scalar(value: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
