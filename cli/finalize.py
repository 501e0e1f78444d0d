# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache finalize STORE`."""

from __future__ import annotations

from pathlib import Path

import click

from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.text import number

__all__ = ["command"]


@click.command(
    "finalize",
    short_help="Make finished blocks visible to readers.",
    epilog="\b\nExample:\n  ditr-cache finalize rooms",
)
@click.argument("store", type=StoreLocation())
@reports(resumes=True)
def command(output: Output, store: Path | str) -> None:
    """Write the manifest of a store.

    Extraction does this by itself, at its end and every ten minutes. It is safe while extractions are running.
    """
    from ditr_cache.pipelines.maintain import Finalize

    report = Finalize(store).run()
    output.document(report.to_dict())
    output.facts(
        [
            ("blocks", f"{number(report.blocks)} present, {number(report.missing)} planned and missing"),
            ("content digest", report.digest),
        ]
    )
