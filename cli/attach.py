# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache attach STORE SOURCE OUT`."""

from __future__ import annotations

from pathlib import Path

import click

from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import progress_for
from ditr_cache.cli.sharing import jobs_option, say_report

__all__ = ["command"]


@click.command(
    "attach",
    short_help="Join a store without points to your own copy of the data.",
    epilog="\b\nExample:\n  ditr-cache attach scannet-features /data/scannet scannet",
)
@click.argument("store", type=StoreLocation())
@click.argument("source")
@click.argument("out", type=StoreLocation())
@click.option("--dataset", default="auto", show_default=True, metavar="NAME", help="Reader; guessed from the files.")
@jobs_option
@reports(resumes=True)
def command(output: Output, store: Path | str, source: str, out: Path | str, dataset: str, jobs: int) -> None:
    """Write the features of STORE and the points of SOURCE into OUT.

    Points must be those that the features were made for, in the same order: their sha256 decides. A copy in another
    order is recognised, and used where its order can be undone.
    """
    from ditr_cache.pipelines.attach import Attach

    with progress_for(output, unit="bytes") as progress:
        report = Attach(store, source, out, dataset=dataset, jobs=jobs, progress=progress).run()
    say_report(output, report)
