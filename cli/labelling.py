# SPDX-License-Identifier: Apache-2.0
"""What `evaluate` and `predict` share: which samples, how, where."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ditr_cache.cli.options import cache_options
from ditr_cache.cli.output import Output
from ditr_cache.cli.text import duration, number

if TYPE_CHECKING:
    from ditr_cache.pipelines.labelling import LabelOptions
    from ditr_cache.training.inference import Cost

__all__ = ["label_options", "options_from", "show_cost"]


def label_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that `options_from` takes."""
    for option in reversed(
        (
            click.option(
                "--split",
                "splits",
                multiple=True,
                metavar="NAME",
                help="Split of the store, repeatable; by default those that the run was evaluated on.",
            ),
            click.option("--samples", default="*", metavar="GLOB", help="Only samples whose id matches."),
            click.option(
                "--protocol",
                type=click.Choice(["plain", "test"]),
                default="plain",
                help="plain: one pass a sample, as during training. test: the official sum over all fragments of "
                "turned, scaled and mirrored copies.",
                show_default=True,
            ),
            click.option(
                "--checkpoint",
                type=click.Choice(["best", "last"]),
                default="best",
                help="Which weights.",
                show_default=True,
            ),
            click.option(
                "--batch",
                "fragments_a_pass",
                type=click.IntRange(min=1),
                default=1,
                metavar="N",
                help="Fragments of the test protocol in one pass; 1 is official.",
            ),
            click.option("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, ...; auto by default."),
            click.option("--allow-incomplete", is_flag=True, help="Take a store of which blocks are missing."),
        )
    ):
        function = option(function)
    return cache_options(function)


def options_from(splits: tuple[str, ...], **others: Any) -> LabelOptions:
    """What the options say."""
    from ditr_cache.pipelines.labelling import LabelOptions

    return LabelOptions(splits=splits or None, **others)


def show_cost(output: Output, cost: Cost, seconds: float, device: str) -> None:
    """What it took, and what the store saved."""
    parts = ", ".join(f"{duration(getattr(cost, f'{what}_s'))} {what}" for what in ("read", "transform", "forward"))
    passes = f"{number(cost.forwards)} (fragments {number(cost.fragments)}, copies {number(cost.copies)})"
    facts: list[tuple[str, object]] = [
        ("device", device),
        ("time", f"{duration(seconds)}, of which {parts}"),
        ("passes", passes),
    ]
    if cost.images:
        facts.append(("ViT saved", f"{number(cost.images)} images (upstream shows it all views in every pass)"))
    output.facts(facts, title="Cost")
