# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache push STORE URL`."""

from __future__ import annotations

from pathlib import Path

import click

from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import progress_for
from ditr_cache.cli.sharing import jobs_option, say_report

__all__ = ["command"]


@click.command(
    "push",
    short_help="Copy a store to where others can get it.",
    epilog="\b\nExamples:\n  ditr-cache push rooms s3://bucket/rooms\n  ditr-cache push rooms /mnt/shared/rooms",
)
@click.argument("store", type=StoreLocation())
@click.argument("url", type=StoreLocation())
@click.option("--rehash", is_flag=True, help="Read again what is there already, and replace what is damaged.")
@jobs_option
@reports(resumes=True)
def command(output: Output, store: Path | str, url: Path | str, rehash: bool, jobs: int) -> None:
    """Copy what is missing at URL, or in a folder of that name; the manifest comes last.

    Readers there see the store as it was before, or complete. What is there from elsewhere stays. Credentials come
    from the environment and the usual configuration files.
    """
    from ditr_cache.pipelines.push import Push

    with progress_for(output, unit="bytes") as progress:
        report = Push(store, url, jobs=jobs, rehash=rehash, progress=progress).run()
    say_report(output, report)
