# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache bench STORE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ditr_cache.cli.bench_model import command as model
from ditr_cache.cli.options import StoreLocation, cache_options, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import progress_for
from ditr_cache.cli.text import bytes_, number, plural

if TYPE_CHECKING:
    from ditr_cache.pipelines.bench import BenchReport, Speed

__all__ = ["command"]


class _StoreOrModel(click.Command):
    """`bench model ...` is a command of its own; anything else is a store."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["model"]:
            return model.make_context(f"{info_name} model", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(
    "bench",
    cls=_StoreOrModel,
    short_help="How fast samples come out of a store, or networks compute.",
    epilog="""\b
Examples:
  ditr-cache bench rooms
  ditr-cache bench model rooms
  ditr-cache bench s3://bucket/rooms --samples 500 --count 4
  ditr-cache bench rooms --workers 4 --kind thread --json""",
)
@click.argument("store", type=StoreLocation())
@click.option(
    "--samples", type=click.IntRange(1), default=100, show_default=True, help="How many samples to read each time."
)
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="Views that are drawn of each.")
@click.option("--all-views", is_flag=True, help="Read all views of each, as outdoors.")
@click.option(
    "--workers",
    type=click.IntRange(0, 1024),
    default=0,
    show_default=True,
    help="Also measure the training loader, with so many workers.",
)
@click.option(
    "--kind",
    type=click.Choice(["process", "thread"]),
    default="process",
    show_default=True,
    help="What the workers are.",
)
@click.option(
    "--prefetch", type=click.IntRange(1, 256), default=2, show_default=True, help="Samples that each prepares ahead."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of samples and views.")
@cache_options
@reports()
def command(
    output: Output,
    store: Path | str,
    samples: int,
    count: int,
    all_views: bool,
    workers: int,
    kind: Literal["process", "thread"],
    prefetch: int,
    seed: int,
    cache_dir: Path | None,
    cache_size: int,
) -> None:
    """Read samples of a store in the order of training, and say how fast they come.

    Cold: what the system holds of a block is dropped before each read. Call it cold-ish: a disk, a host or a server may
    still hold it. Warm: everything was read once before. Raw: the byte ranges that the store read, by preadv and
    nothing else; for folders only. Loader: the wait for the next sample, while --workers prepare some ahead, without
    the transforms of training (`ditr-cache train -n` measures those).

    `ditr-cache bench model` compares networks instead; a store in a folder of that name is ./model.
    """
    from ditr_cache.pipelines.bench import Bench

    with progress_for(output, unit="samples") as progress:
        bench = Bench(
            store,
            samples=samples,
            count=None if all_views else count,
            workers=workers,
            kind=kind,
            prefetch=prefetch,
            seed=seed,
            cache_dir=cache_dir,
            cache_size=cache_size,
            progress=progress,
        )
        report = bench.run()
    output.document(report.to_dict())
    views = "all views" if report.count is None else f"{plural(report.count, 'view')} of each"
    output.facts(
        [
            ("store", report.store),
            ("manifest", report.manifest),
            ("samples", f"{number(report.samples)} reads of {number(report.distinct)} samples, {views}"),
            ("bytes", f"{bytes_(report.bytes_per_sample)} a read"),
        ]
    )
    output.table(
        ["", "samples/s", "bytes/s", "p50 ms", "p90 ms", "p99 ms"],
        [_row(speed, report) for speed in report.speeds],
        title="Speed",
        right=range(1, 6),
    )
    if report.warm_over_raw is not None:
        output.line(f"A warm read takes {report.warm_over_raw:.2f} times as long as its bytes alone.")
    else:
        output.line("No raw reads: the store is not a folder.")


def _row(speed: Speed, report: BenchReport) -> list[str]:
    name = f"{speed.name}, raw" if speed.reader == "raw" else speed.name
    if speed.name == "loader":
        name = f"loader, {plural(report.workers, report.kind)}"
    times = [f"{1000 * seconds:.2f}" for seconds in (speed.p50_s, speed.p90_s, speed.p99_s)]
    return [name, number(speed.samples_per_s, 1), bytes_(speed.bytes_per_s), *times]
