# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache experiment NAME STORE... OUT`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ditr_cache.cli.errors import ExitCode
from ditr_cache.cli.interrupt import graceful_stop
from ditr_cache.cli.options import StoreLocation, cache_options, config_options, reports
from ditr_cache.cli.output import Output

if TYPE_CHECKING:
    from ditr_cache.pipelines.experiment import Experiment, ExperimentReport
    from ditr_cache.training.tracking import Tracker

__all__ = ["command"]

# not from pipelines.experiment_plans: the help page would wait for torch; a test compares the two
NAMES = ("injection", "backbones", "data-efficiency", "visibility", "views", "dtype", "online")


@click.command(
    "experiment",
    short_help="The paper's tables, on your own data.",
    epilog="""\b
Experiments:
  injection        where image features enter (paper, Table 5)
  backbones        stores of the same samples, one an image backbone (Table 6)
  data-efficiency  scratch and D-DITR on 1, 5, 10, 20, 100 % of the labels (7)
  visibility       PTv3 and DITR on visible and invisible points (Table 8)
  views            how many views a sample is seen by
  dtype            features as float16 and as int8
  online           cached image variants, and a ViT in every step (--source)

\b
Examples:
  ditr-cache experiment visibility rooms tables/visibility --seeds 1
  ditr-cache experiment injection rooms tables/injection -n
  ditr-cache experiment backbones small.store large.store tables/backbones""",
)
@click.argument("name", type=click.Choice(NAMES), metavar="NAME")
@click.argument("stores", nargs=-1, required=True, type=StoreLocation())
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@config_options("train", example="run.epochs=50")
@click.option("--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Runs of each arm.")
@click.option(
    "--source",
    metavar="SOURCE",
    help="The data set, as for extract: `online` shows its images to the ViT in every step.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Folder of the stores' ViT, for `online`, where it does not go by its name.",
)
@click.option("--allow-incomplete", is_flag=True, help="Take stores of which blocks are missing.")
@cache_options
@click.option("-n", "--dry-run", is_flag=True, help="Only list the runs, and which of them are done.")
@reports(resumes=True)
def command(
    output: Output,
    name: str,
    stores: tuple[Path | str, ...],
    out: Path,
    configs: tuple[str, ...],
    overrides: tuple[str, ...],
    seeds: int,
    source: str | None,
    weights: Path | None,
    allow_incomplete: bool,
    cache_dir: Path | None,
    cache_size: int,
    dry_run: bool,
) -> ExitCode:
    """Train and evaluate all arms of an experiment, and write a table and a plot into OUT.

    Every arm is an ordinary run folder in OUT. Runs that are done are not done again, and the one that was interrupted
    goes on; the table is written with what there is. The paper's numbers stand beside yours, as far as it has some.
    """
    from ditr_cache.cli.train import preset_layers
    from ditr_cache.cli.train_progress import training_progress
    from ditr_cache.config import read_named_yaml
    from ditr_cache.datasets import open_dataset
    from ditr_cache.pipelines.experiment import Experiment

    layers, _ = preset_layers(stores[0], configs)
    layers += [read_named_yaml("train", c) for c in configs]

    @contextmanager
    def tracker(run: str) -> Iterator[Tracker]:
        output.status(f"{run}:")
        with training_progress(output) as progress:
            yield progress

    experiment = Experiment(
        name,
        stores,
        out,
        layers,
        overrides,
        seeds=range(seeds),
        source=None if source is None else open_dataset(source),
        weights=weights,
        allow_incomplete=allow_incomplete,
        cache_dir=cache_dir,
        cache_size=cache_size,
        tracker=tracker,
    )
    if dry_run:
        _list(output, experiment)
        return ExitCode.OK
    with graceful_stop(experiment.request_stop):
        report = experiment.run()
    _show(output, report)
    if report.interrupted:
        output.error("interrupted", "Give the same command again to go on.")
        return ExitCode.INTERRUPTED
    return ExitCode.INCOMPLETE if report.failures else ExitCode.OK


def _list(output: Output, experiment: Experiment) -> None:
    runs = experiment.runs()
    plain = [
        {"run": str(r.folder), "arm": r.arm.name, "seed": r.seed, "settings": r.arm.settings, "done": r.done}
        for r in runs
    ]
    output.document({"experiment": experiment.name, "title": experiment.plan.title, "runs": plain})
    output.table(
        ["run", "arm", "settings", "done"],
        [[r.folder.name, r.arm.label, " ".join(r.arm.settings), "yes" if r.done else "no"] for r in runs],
        title=experiment.plan.title,
    )
    for folder in experiment.distillations():
        output.status(f"before them, a distillation on all training samples: {folder.name}")
    for note in experiment.plan.notes:
        output.status(note)


def _show(output: Output, report: ExperimentReport) -> None:
    output.document(report.to_dict())
    papers = list(dict.fromkeys(name for row in report.rows for name in row.paper))
    parts = ("miou", "visible", "invisible")
    output.table(
        ["arm", "seeds", "mIoU", "visible", "invisible", *(f"paper: {name}" for name in papers)],
        [
            [
                row.label,
                row.seeds,
                *(f"{100 * row.scores[part].mean:.1f}" for part in parts),
                *(f"{row.paper[name]:.1f}" if name in row.paper else "" for name in papers),
            ]
            for row in report.rows
        ],
        title=f"{report.title}, mIoU in per cent",
        right=range(1, 5 + len(papers)),
    )
    for note in report.notes:
        output.status(note)
    if report.failures:
        output.table(["run", "why it failed"], [list(item) for item in report.failures.items()], title="Failed")
    output.line(f"Table, plot and runs: {report.out}")
