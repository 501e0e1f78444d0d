# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache picture SOURCE STORE PNG`."""

from __future__ import annotations

from pathlib import Path

import click

from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output

__all__ = ["command"]


@click.command(
    "picture",
    short_help="Draw an image, its patch features and the points with theirs.",
    epilog="\b\nExample:\n  ditr-cache picture synthetic:rooms=2,views=4 rooms rooms.png --view 1",
)
@click.argument("source", type=click.Path())
@click.argument("store", type=StoreLocation())
@click.argument("png", type=click.Path(path_type=Path, dir_okay=False, writable=True))
@click.option("--sample", metavar="ID", help="Sample to draw; the first by default.")
@click.option("--view", type=click.IntRange(min=0), metavar="I", help="View to draw; the fullest by default.")
@click.option("--dataset", "dataset_name", default="auto", metavar="NAME", help="Kind of data set; guessed by default.")
@reports()
def command(
    output: Output, source: str, store: Path | str, png: Path, sample: str | None, view: int | None, dataset_name: str
) -> None:
    """Draw what STORE holds of a sample; the image itself comes from SOURCE.

    Colours are the first three principal components of the features: same things have the same colour.
    """
    from ditr_cache.datasets import open_dataset
    from ditr_cache.pipelines.picture import Picture
    from ditr_cache.store.reader import open_store

    report = Picture(open_dataset(source, dataset_name), open_store(store), png, sample, view).run()
    output.document(report.to_dict())
    output.facts(
        [
            ("picture", report.path),
            ("sample", report.sample),
            ("view", report.view),
            ("variance in colour", f"{report.explained:.0%}"),
        ]
    )
