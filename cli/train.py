# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache train STORE RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ditr_cache.cli.errors import ExitCode
from ditr_cache.cli.interrupt import graceful_stop
from ditr_cache.cli.learning import estimated, say_interrupted, speaker, warn_of_cpu
from ditr_cache.cli.options import StoreLocation, cache_options, config_options, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.text import duration, number

if TYPE_CHECKING:
    from ditr_cache.pipelines.train_report import TrainEstimate, TrainReport
    from ditr_cache.training.config import TrainConfig

__all__ = ["command", "preset_layers"]


@click.command(
    "train",
    short_help="Train PTv3 + DITR from a store; no ViT is involved.",
    epilog="""\b
Examples:
  ditr-cache train rooms run
  ditr-cache train scannet.store run -c scannet200 -n
  ditr-cache train scannet.store run --resume
  ditr-cache train rooms plain -s model.injection=none
  ditr-cache train rooms finetuned --init pretrained
  torchrun --nproc-per-node 4 -m ditr_cache.cli train nus.store run

All settings: ditr-cache config show train""",
)
@click.argument("store", type=StoreLocation())
@click.argument("run", type=click.Path(path_type=Path))
@config_options("train", example="optim.lr=0.003")
@click.option("--resume", is_flag=True, help="Go on where the run in RUN was interrupted; begin it if it is not there.")
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Start from the network of a distillation (ditr-cache distill), and fine-tune it without images.",
)
@click.option("--allow-incomplete", is_flag=True, help="Train on a store of which blocks are missing.")
@cache_options
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done: steps, memory, time.")
@reports()
def command(
    output: Output,
    store: Path | str,
    run: Path,
    configs: tuple[str, ...],
    overrides: tuple[str, ...],
    resume: bool,
    init: Path | None,
    allow_incomplete: bool,
    cache_dir: Path | None,
    cache_size: int,
    dry_run: bool,
) -> ExitCode:
    """Train a segmentation network on the features of a store.

    STORE is what extract made, a folder or a URL. RUN is a folder for checkpoints, settings and logs. Without -c NAME
    the settings are those that are installed for the store's data set. Ctrl-C finishes the step at hand, and --resume
    goes on from there with exactly the numbers that an unbroken run would have seen.
    """
    output, main = speaker(output)
    config = _configure(output, store, run, configs, overrides, resume, init)
    warn_of_cpu(output, config)

    from ditr_cache.cli.train_progress import training_progress
    from ditr_cache.pipelines.train import Train

    with training_progress(output) as tracker:
        pipeline = Train(
            store,
            run,
            config,
            resume=resume,
            allow_incomplete=allow_incomplete,
            cache_dir=cache_dir,
            cache_size=cache_size,
            tracker=tracker,
        )
        if dry_run:
            estimate = pipeline.estimate()
        else:
            with graceful_stop(pipeline.request_stop):
                report = pipeline.run()
    if main and dry_run:
        _show_estimate(output, estimate, config)
    elif main:
        _show_report(output, report)
        if report.interrupted:
            say_interrupted(
                output,
                ["train", store, run],
                report.step,
                report.processes,
                allow_incomplete=allow_incomplete,
                cache_dir=cache_dir,
                cache_size=cache_size,
            )
    return ExitCode.INTERRUPTED if not dry_run and report.interrupted else ExitCode.OK


def _configure(
    output: Output,
    store: Path | str,
    run: Path,
    configs: tuple[str, ...],
    overrides: tuple[str, ...],
    resume: bool,
    init: Path | None,
) -> TrainConfig:
    """Settings of the run that goes on, or of the store's data set; what is given comes on top.

    The network of a distillation replaces that of installed settings; a file says what is to be otherwise.
    """
    from ditr_cache.config import config_names, load_config, read_named_yaml
    from ditr_cache.training.config import TrainConfig
    from ditr_cache.training.run_folder import RunFolder

    folder = RunFolder(run)
    if resume and folder.exists:
        folder.check_kind("train")
        layers, words = [folder.config()], ["those of the run", *configs]
    else:
        layers, words = preset_layers(store, configs)
    given = {name: read_named_yaml("train", name) for name in configs}
    if init is None:
        layers += given.values()
    else:
        installed = config_names("train")
        layers += [layer for name, layer in given.items() if name in installed]
        layers.append(_from_distilled(init))
        layers += [layer for name, layer in given.items() if name not in installed]
        layers.append({"init": {"distilled": str(init.absolute())}})
        words.append(f"the network of {init}")
    output.status(f"settings: {' + '.join([*words, *overrides])}")
    return load_config(TrainConfig, layers, overrides)


def _from_distilled(run: Path) -> dict[str, Any]:
    """The network of a distillation, and what it is shown; the images have done their work."""
    from ditr_cache.training.run_folder import RunFolder

    folder = RunFolder(run)
    folder.check_kind("distill")
    settings = folder.config()
    model = {key: value for key, value in settings["model"].items() if key != "norm_conditions"}
    return {
        "model": model,
        "data": {"features": settings["data"]["features"]},
    }


def preset_layers(store: Path | str | None, configs: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[str]]:
    """What comes below `configs`, unless they name installed settings: those of the store's data set; and all names."""
    from ditr_cache.config import config_names, read_named_yaml

    if any(name in config_names("train") for name in configs):
        return [], [*configs]
    preset = None if store is None else _preset(store)
    if preset in config_names("train"):
        return [read_named_yaml("train", str(preset))], [str(preset), *configs]
    return [], ["the defaults", *configs]


def _preset(store: Path | str) -> str:
    """The installed configuration for a store's data set."""
    from ditr_cache.store.reader import open_store

    with open_store(store) as opened:
        name = str(opened.identity["dataset"]["name"])
    return {"synthetic": "tiny"}.get(name, name)


def _show_estimate(output: Output, estimate: TrainEstimate, config: TrainConfig) -> None:
    output.document(estimate.to_dict())
    images = f"{estimate.image_channels} channels" if estimate.image_channels else "none"
    output.facts(
        [
            ("samples", f"{number(estimate.samples)} to train on, {number(estimate.val_samples)} to evaluate on"),
            ("labels", f"{estimate.label_set}, {number(estimate.classes)} classes"),
            ("image features", images),
            *estimated(estimate, config),
        ]
    )


def _show_report(output: Output, report: TrainReport) -> None:
    output.document(report.to_dict())
    times = f"{report.step_s:.3f} s a step, and {report.data_s:.3f} s of waiting for data"
    facts: list[tuple[str, object]] = [
        (
            "steps",
            f"{number(report.steps)} in {duration(report.seconds)}, {number(report.step)} of {number(report.total)}",
        ),
        ("time", times),
        ("device", report.device if report.processes == 1 else f"{report.processes} x {report.device}"),
        ("parameters", number(report.parameters)),
        ("loss", "-" if report.loss is None else f"{report.loss:.4g}"),
    ]
    if report.skipped:
        facts.append(("skipped updates", f"{number(report.skipped)}, for overflows in float16"))
    if report.best_miou is not None:
        facts.append(("best mIoU", f"{100 * report.best_miou:.1f} at step {number(report.best_step)}"))
    output.facts(facts, title=f"The run: {report.run}")
    if report.last is not None:
        s = report.last
        output.table(
            ["class", "IoU", "acc", "points"],
            [[c.name, f"{100 * c.iou:.1f}", f"{100 * c.acc:.1f}", number(c.points)] for c in s.classes]
            + [["mean", f"{100 * s.miou:.1f}", f"{100 * s.macc:.1f}", number(s.points)]],
            title=f"Last evaluation, {report.val_samples} samples, in per cent (allAcc {100 * s.allacc:.1f})",
            right=(1, 2, 3),
        )
