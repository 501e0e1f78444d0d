# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache gc STORE`."""

from __future__ import annotations

from pathlib import Path

import click

from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output

__all__ = ["command"]


@click.command(
    "gc",
    short_help="Remove what killed or repeated runs left behind.",
    epilog="\b\nExamples:\n  ditr-cache gc s3://bucket/rooms\n  ditr-cache gc rooms --now",
)
@click.argument("store", type=StoreLocation())
@click.option(
    "--now",
    is_flag=True,
    help="Also unfinished blocks younger than a day and blocks that --redo replaced. Only while nothing writes to the "
    "store.",
)
@reports(resumes=True)
def command(output: Output, store: Path | str, now: bool) -> None:
    """Remove files that no finished block refers to, and list them."""
    from ditr_cache.pipelines.maintain import CollectGarbage

    report = CollectGarbage(store, now=now).run()
    output.document(report.to_dict())
    for path in report.removed:
        output.line(path)
    output.status(f"{len(report.removed)} removed")
