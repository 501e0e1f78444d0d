# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache extract SOURCE STORE`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ditr_cache.cli.errors import ExitCode
from ditr_cache.cli.interrupt import graceful_stop
from ditr_cache.cli.options import Shard, StoreLocation, config_options, reports, shard_from_slurm
from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import progress_for
from ditr_cache.cli.text import bytes_, duration, number, share

if TYPE_CHECKING:
    from ditr_cache.config import ExtractConfig
    from ditr_cache.datasets import Dataset
    from ditr_cache.pipelines.cluster_connect import Cluster
    from ditr_cache.pipelines.report import Estimate, ExtractReport

__all__ = ["command"]


def _dataset_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from ditr_cache.datasets import readers

    return [CompletionItem(name) for name in ("auto", *sorted(readers())) if name.startswith(incomplete)]


def _check_dataset(ctx: click.Context, param: click.Parameter, name: str) -> str:
    # not click.Choice: the help page would wait for NumPy and for other packages' entry points
    if name != "auto" and not ctx.resilient_parsing:
        from ditr_cache.datasets import readers

        if name not in readers():
            raise click.BadParameter(f"{name!r} is not one of auto, {', '.join(sorted(readers()))}.", ctx, param)
    return name


@click.command(
    "extract",
    short_help="Show every image to the ViT once; keep what points need.",
    epilog="""\b
Examples:
  ditr-cache extract synthetic:rooms=2,views=4 rooms
  ditr-cache extract /data/scannet scannet.store -n
  ditr-cache extract /data/nuscenes nus.store -s store.dtype=int8
  ditr-cache extract my-capture out.store --weights dinov2-base/
  ditr-cache extract /data/scannet s3://bucket/scannet --shard 3/16
  ditr-cache extract /data/scannet scannet.store --workers 4
  ditr-cache extract /data/scannet scannet.store --scheduler tcp://head:8786

All settings: ditr-cache config show extract""",
)
@click.argument("source", type=click.Path())
@click.argument("store", type=StoreLocation())
@click.option(
    "--dataset",
    "dataset_name",
    default="auto",
    metavar="NAME",
    shell_complete=_dataset_names,
    callback=_check_dataset,
    help="Kind of data set; guessed from its files by default.",
)
@config_options("extract", example="images.size=[420,560]")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Backbone from a local folder in Hugging Face layout (backbone.weights).",
)
@click.option(
    "--shard",
    type=Shard(),
    metavar="i/n",
    help="Do part i of n, 0 <= i < n; any number of machines may fill one store. Taken from SLURM's array if there "
    "is one.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="N processes on this machine, one a GPU where there are any.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS|FILE",
    help="The workers of a Dask scheduler, on any number of machines: tcp://host:8786, or the file it wrote.",
)
@click.option(
    "--retry",
    is_flag=True,
    help="Do blocks again of which frames or samples failed, or whose samples, views or splits are others now.",
)
@click.option("--redo", is_flag=True, help="Do all finished blocks again.")
@click.option(
    "--single-writer",
    is_flag=True,
    help="Nothing else writes to STORE: take a server, too, that would let two writers overwrite each other.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done: images, bytes, time.")
@reports(resumes=True)
def command(
    output: Output,
    source: str,
    store: Path | str,
    dataset_name: str,
    configs: tuple[str, ...],
    overrides: tuple[str, ...],
    weights: Path | None,
    shard: tuple[int, int] | None,
    workers: int | None,
    scheduler: str | None,
    retry: bool,
    redo: bool,
    single_writer: bool,
    dry_run: bool,
) -> ExitCode:
    """Extract the features of a data set into a store.

    SOURCE is a data set in its own layout, or synthetic: for generated rooms. STORE is a folder or the URL of one in a
    bucket (s3://, gs://, az://); if it is there, what is missing in it is added. An interrupted run goes on when the
    same command is given again.
    """
    if scheduler is not None and workers is not None:
        raise click.UsageError("--workers and --scheduler exclude each other.")
    if scheduler is not None and shard is not None:
        raise click.UsageError("--shard and --scheduler exclude each other: the scheduler distributes all blocks.")
    many = workers is not None or scheduler is not None
    if many and single_writer:
        raise click.UsageError("--single-writer excludes --workers and --scheduler: every worker writes.")
    # workers of a scheduler run in folders of their own
    dataset = _open(os.path.abspath(source) if many and os.path.exists(source) else source, dataset_name, output)
    config = _configure(dataset, configs, overrides, weights)
    backbone = config.backbone.weights or config.backbone.name
    output.status(f"settings: {' + '.join([dataset.preset, *configs])}; backbone: {backbone}")
    part = shard or (None if scheduler else _slurm(output)) or (0, 1)

    from ditr_cache.pipelines.extract import Extract, pick_device

    if config.run.device == "auto" and scheduler is None and pick_device("auto") == "cpu":
        output.warning("no CUDA device: the ViT runs on the CPU, which is many times slower")

    if dry_run:
        if many:
            output.status("the time is that of one process, on this machine")
        _show_estimate(output, Extract(dataset, store, config, shard=part).estimate(), config)
        return ExitCode.OK
    with progress_for(output) as progress:
        if many:
            from ditr_cache.pipelines.cluster import ClusterExtract

            cluster = _cluster(workers, scheduler)
            pipeline: Extract | ClusterExtract = ClusterExtract(
                dataset, store, config, cluster, shard=part, redo=redo, retry=retry, progress=progress
            )
        else:
            pipeline = Extract(
                dataset,
                store,
                config,
                shard=part,
                redo=redo,
                retry=retry,
                single_writer=single_writer,
                progress=progress,
            )
        with graceful_stop(pipeline.request_stop):
            report = pipeline.run()
    _show_report(output, report, store)
    if not report.blocks_planned:
        # one source a task of a SLURM array, perhaps: each task then takes its part of each source
        output.warning(f"shard {part[0]}/{part[1]} has no blocks: nothing was done (--shard 0/1 means all of SOURCE)")
    if report.interrupted:
        again = "Run the same command again to go on."
        anew = "The same command would begin anew: --redo means all blocks, also those that have just been done."
        output.error("interrupted; what is finished is kept", anew if redo else again)
        return ExitCode.INTERRUPTED
    return ExitCode.INCOMPLETE if report.failures or report.dropped else ExitCode.OK


def _open(source: str, name: str, output: Output) -> Dataset:
    from ditr_cache.datasets import guess_dataset, open_dataset

    if name == "auto":
        guess = guess_dataset(source)
        name = guess.name
        output.status(f"data set: {name} ({guess.evidence})")
    return open_dataset(source, name)


def _configure(
    dataset: Dataset, configs: tuple[str, ...], overrides: tuple[str, ...], weights: Path | None
) -> ExtractConfig:
    from ditr_cache.config import ExtractConfig, load_config, read_named_yaml

    layers: list[dict[str, Any]] = [read_named_yaml("extract", name) for name in (dataset.preset, *configs)]
    if weights is not None:
        layers.append({"backbone": {"weights": str(weights)}})
    return load_config(ExtractConfig, layers, overrides)


def _cluster(workers: int | None, scheduler: str | None) -> Cluster:
    from ditr_cache.pipelines.cluster_connect import LocalWorkers, RemoteScheduler

    if scheduler is not None:
        return RemoteScheduler(scheduler)
    assert workers is not None
    return LocalWorkers(workers)


def _slurm(output: Output) -> tuple[int, int] | None:
    part = shard_from_slurm(os.environ)
    if part is not None:
        output.status(f"shard {part[0]}/{part[1]}, from SLURM's array")
    return part


def _show_estimate(output: Output, estimate: Estimate, config: ExtractConfig) -> None:
    output.document(estimate.to_dict())
    size = estimate.bytes_int8 if config.store.dtype == "int8" else estimate.bytes_f16
    output.facts(
        [
            ("blocks", number(estimate.blocks)),
            ("samples", number(estimate.samples)),
            ("frames", number(estimate.frames)),
            ("images", f"{number(estimate.images)} (frames x variants)"),
            ("points", f"about {number(estimate.points_estimate)}"),
            ("features", f"{estimate.grid[0]} x {estimate.grid[1]} patches of {estimate.dim} channels"),
            ("size as f16", f"about {bytes_(estimate.bytes_f16)}"),
            ("size as int8", f"about {bytes_(estimate.bytes_int8)}"),
            ("int8 cosine error, p99", _error(estimate.int8_cosine_error_p99)),
            ("free disk", bytes_(estimate.free_bytes)),
            ("device", estimate.device),
            ("time", f"about {duration(estimate.seconds)} ({estimate.seconds_per_image:.3f} s an image)"),
        ]
    )
    if estimate.free_bytes is not None and size > estimate.free_bytes:
        output.warning(f"the store will need about {bytes_(size)}, and {bytes_(estimate.free_bytes)} are free")


def _show_report(output: Output, report: ExtractReport, store: Path | str) -> None:
    output.document(report.to_dict())
    done, there, failed = number(report.blocks_done), number(report.blocks_skipped), number(report.blocks_failed)
    facts: list[tuple[str, object]] = [
        ("blocks", f"{done} done, {there} were there already, {failed} failed, of {number(report.blocks_planned)}"),
        ("images", f"{number(report.images)} in {duration(report.seconds)}, {report.images_per_second:.1f} images/s"),
        ("device", report.device),
        ("frames left out", f"{len(report.dropped)} failed, {len(report.skipped)} without a valid pose"),
    ]
    whole: list[tuple[str, object]] = [
        ("points", f"{number(report.points)}, {share(report.points_seen, report.points)} of them seen"),
        ("views a point", number(report.views_per_point, 2)),
        ("rows", f"{number(report.rows)} patch features for {number(report.hits)} (point, view) pairs"),
        ("size", bytes_(report.bytes)),
        ("content digest", report.digest),
    ]
    if report.int8_cosine_error_p99 is not None:
        whole.append(("int8 cosine error, p99", _error(report.int8_cosine_error_p99)))
    output.facts(facts, title="This run")
    output.facts(whole, title=f"The store: {store}")
    blocks = [f"{block}: {reason}" for block, reason in report.failed.items()]
    output.listing("Failed blocks (the same command tries them again):", blocks)
    output.listing("Failed frames (once they are mended: --retry):", [_frame(note) for note in report.dropped])
    output.listing("Blocks of other samples, views or splits than the data set has now (--retry):", report.changed)


def _frame(note: Any) -> str:
    return f"{note.sample}{f' {note.view}' if note.view is not None else ''}: {note.reason}"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
