# SPDX-License-Identifier: Apache-2.0
"""What `push`, `pull`, `merge` and `attach` have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ditr_cache.cli.output import Output
from ditr_cache.cli.text import bytes_, duration, number, plural

if TYPE_CHECKING:
    from ditr_cache.pipelines.share import ShareReport

__all__ = ["jobs_option", "say_report"]


def jobs_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--jobs N`."""
    option = click.option(
        "--jobs", type=click.IntRange(1, 256), default=8, show_default=True, help="Objects on their way at a time."
    )
    return option(function)


def say_report(output: Output, report: ShareReport) -> None:
    """What was brought, and what stands there now."""
    output.document(report.to_dict())
    output.facts(
        [
            ("blocks", f"{number(report.blocks)} present, {number(report.missing)} planned and missing"),
            ("brought", f"{plural(report.blocks_copied, 'block')}, {plural(report.objects, 'object')}"),
            ("bytes copied", bytes_(report.bytes_copied)),
            ("bytes there already", bytes_(report.bytes_skipped)),
            ("time", duration(report.seconds)),
            ("content digest", report.digest),
            ("manifest", report.manifest),
            *([("signed by", report.signer)] if report.signer else []),
        ]
    )
    if report.kept:
        output.listing("Left as they are:", [f"{kept.block}: {kept.reason}" for kept in report.kept])
    if report.differs:
        output.warning(
            f"{report.store} is no plain copy: it had something of its own before ({', '.join(report.differs)})"
        )
