# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache diff A B`."""

from __future__ import annotations

from pathlib import Path

import click

from ditr_cache.cli.errors import ExitCode
from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output

__all__ = ["command"]


@click.command(
    "diff",
    short_help="In what two stores differ.",
    epilog="\b\nExamples:\n  ditr-cache diff rooms s3://bucket/rooms\n  ditr-cache diff rooms other --json",
)
@click.argument("a", type=StoreLocation())
@click.argument("b", type=StoreLocation())
@reports()
def command(output: Output, a: Path | str, b: Path | str) -> ExitCode:
    """Compare settings and contents of two stores by their manifests; no data is read.

    Exit code 0: they are equal; 1: they differ. How they came about is no difference.
    """
    from ditr_cache.pipelines.diff import Diff

    report = Diff(a, b).run()
    output.document(report.to_dict())
    if report.equal:
        output.line(f"equal: content digest {report.digests[0]}")
        return ExitCode.OK
    output.listing("Settings:", report.identity, most=50)
    output.listing(f"Blocks only in {a}:", report.blocks_only_in_a)
    output.listing(f"Blocks only in {b}:", report.blocks_only_in_b)
    output.listing(f"Samples only in {a}:", report.samples_only_in_a)
    output.listing(f"Samples only in {b}:", report.samples_only_in_b)
    output.listing(
        "Blocks with other content:", [f"{name}: {', '.join(what)}" for name, what in report.blocks_that_differ.items()]
    )
    return ExitCode.FAILED
