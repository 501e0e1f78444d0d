# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache merge A B OUT`."""

from __future__ import annotations

from pathlib import Path

import click

from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import progress_for
from ditr_cache.cli.sharing import jobs_option, say_report

__all__ = ["command"]


@click.command(
    "merge",
    short_help="Join stores of equal settings into one.",
    epilog="\b\nExample:\n  ditr-cache merge shard-0 shard-1 s3://bucket/shard-2 whole",
)
@click.argument("stores", metavar="A B...", type=StoreLocation(), nargs=-1, required=True)
@click.argument("out", type=StoreLocation())
@jobs_option
@reports(resumes=True)
def command(output: Output, stores: tuple[Path | str, ...], out: Path | str, jobs: int) -> None:
    """Copy the blocks of several stores into OUT.

    They must have been made with the same settings. A block that several of them have is taken once; if its contents
    differ, or a sample is in different blocks, nothing is done. OUT may hold a part of the result already.
    """
    from ditr_cache.pipelines.merge import Merge

    if len(stores) < 2:
        raise click.UsageError("Name two stores at least, and then where the result goes.")
    with progress_for(output, unit="bytes") as progress:
        report = Merge(stores, out, jobs=jobs, progress=progress).run()
    say_report(output, report)
