# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache pull URL STORE`."""

from __future__ import annotations

from pathlib import Path

import click

from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import progress_for
from ditr_cache.cli.sharing import jobs_option, say_report

__all__ = ["command"]


@click.command(
    "pull",
    short_help="Copy a store, or a part of it, from where others keep it.",
    epilog="""\b
Examples:
  ditr-cache pull s3://bucket/rooms rooms
  ditr-cache pull https://host/rooms@sha256:VERSION rooms --key team.pub.pem
  ditr-cache pull s3://bucket/rooms part --samples 'room-a-*' --views 4""",
)
@click.argument("url", type=StoreLocation())
@click.argument("store", type=StoreLocation())
@click.option("--samples", metavar="GLOB", multiple=True, help="Only samples whose id fits. Repeatable.")
@click.option("--views", type=click.IntRange(1), help="At most so many views of a sample, spread evenly.")
@click.option("--no-points", is_flag=True, help="Leave coordinates, colours and labels behind.")
@click.option("--dtype", type=click.Choice(["int8"]), help="Convert float16 features; the error is measured.")
@click.option(
    "--key", metavar="PUBLIC.pem", type=click.Path(path_type=Path), help="Take it only if signed with this key."
)
@click.option("--rehash", is_flag=True, help="Read again what is there already, and replace what is damaged.")
@jobs_option
@reports(resumes=True)
def command(
    output: Output,
    url: Path | str,
    store: Path | str,
    samples: tuple[str, ...],
    views: int | None,
    no_points: bool,
    dtype: str | None,
    key: Path | None,
    rehash: bool,
    jobs: int,
) -> None:
    """Copy what is missing of a store, or of the part that is wanted; the manifest comes last.

    Every byte is compared with the manifest. A part is a store by itself, and its manifest says what it was taken from;
    another part of the same store can be added to it. With `@sha256:VERSION` behind the URL it is that version or none.
    """
    from ditr_cache.pipelines.pull import Pull
    from ditr_cache.store.subset import Selection

    selection = Selection(samples, views, not no_points, "int8" if dtype else None)
    with progress_for(output, unit="bytes") as progress:
        report = Pull(url, store, selection, key=key, jobs=jobs, rehash=rehash, progress=progress).run()
    say_report(output, report)
