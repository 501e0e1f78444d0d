# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache distill STORE... RUN`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ditr_cache.cli.errors import ExitCode
from ditr_cache.cli.interrupt import graceful_stop
from ditr_cache.cli.learning import estimated, say_interrupted, speaker, warn_of_cpu
from ditr_cache.cli.options import StoreLocation, cache_options, config_options, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.text import duration, number

if TYPE_CHECKING:
    from ditr_cache.pipelines.distill import DistillReport
    from ditr_cache.pipelines.train_report import DistillEstimate
    from ditr_cache.training.distill_config import DistillConfig

__all__ = ["command"]


@click.command(
    "distill",
    short_help="Pretrain a network on cached features, without labels (D-DITR).",
    epilog="""\b
Examples:
  ditr-cache distill rooms pretrained
  ditr-cache train rooms finetuned --init pretrained
  ditr-cache distill a.store b.store both -s distill.weights=[1,0.5]
  ditr-cache distill scannet.store pretrained -n

All settings: ditr-cache config show distill""",
)
@click.argument("stores", nargs=-1, required=True, type=StoreLocation())
@click.argument("run", type=click.Path(path_type=Path))
@config_options("train", example="optim.lr=0.003")
@click.option("--resume", is_flag=True, help="Go on where the run in RUN was interrupted; begin it if it is not there.")
@click.option("--allow-incomplete", is_flag=True, help="Take stores of which blocks are missing.")
@cache_options
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be done: steps, memory, time.")
@reports()
def command(
    output: Output,
    stores: tuple[Path | str, ...],
    run: Path,
    configs: tuple[str, ...],
    overrides: tuple[str, ...],
    resume: bool,
    allow_incomplete: bool,
    cache_dir: Path | None,
    cache_size: int,
    dry_run: bool,
) -> ExitCode:
    """Let a network that sees points only regress the image features of STOREs.

    Labels are never read. With several stores every step is of one of them, and each data set has norm layers of its
    own. Without -c NAME the settings are those of training on the first store's data set. RUN is a folder for
    checkpoints, settings and logs; it is where `ditr-cache train STORE NEW_RUN --init RUN` starts from.
    """
    output, main = speaker(output)
    config = _configure(output, stores, run, configs, overrides, resume)
    warn_of_cpu(output, config)

    from ditr_cache.cli.train_progress import training_progress
    from ditr_cache.pipelines.distill import Distill

    with training_progress(output) as tracker:
        pipeline = Distill(
            stores,
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
        _show(output, report)
        if report.interrupted:
            say_interrupted(
                output,
                ["distill", *stores, run],
                report.step,
                report.processes,
                allow_incomplete=allow_incomplete,
                cache_dir=cache_dir,
                cache_size=cache_size,
            )
    return ExitCode.INTERRUPTED if not dry_run and report.interrupted else ExitCode.OK


def _configure(
    output: Output,
    stores: tuple[Path | str, ...],
    run: Path,
    configs: tuple[str, ...],
    overrides: tuple[str, ...],
    resume: bool,
) -> DistillConfig:
    """Settings of the run that goes on, or of training on the first store's data set; what is given comes on top."""
    from ditr_cache.cli.train import preset_layers
    from ditr_cache.config import load_config, read_named_yaml
    from ditr_cache.training.distill_config import DistillConfig, without_labels
    from ditr_cache.training.run_folder import RunFolder

    folder = RunFolder(run)
    if resume and folder.exists:
        folder.check_kind("distill")
        layers, words = [folder.config()], ["those of the run", *configs]
    else:
        layers, words = preset_layers(stores[0], configs)
    output.status(f"settings: {' + '.join([*words, *overrides])}")
    layers += [read_named_yaml("train", name) for name in configs]
    return load_config(DistillConfig, [without_labels(layer) for layer in layers], overrides)


def _show_estimate(output: Output, estimate: DistillEstimate, config: DistillConfig) -> None:
    output.document(estimate.to_dict())
    stores = [
        f"{name}: {number(n)} samples to train on, {number(val)} to evaluate on"
        for name, n, val in zip(estimate.names, estimate.samples, estimate.val_samples, strict=True)
    ]
    dims = ", ".join(f"{number(d)} channels" for d in dict.fromkeys(estimate.image_channels))
    output.facts([("stores", "; ".join(stores)), ("regressed", dims), *estimated(estimate, config)])


def _show(output: Output, report: DistillReport) -> None:
    output.document(report.to_dict())
    stores = [f"{name}: {number(n)} samples" for name, n in zip(report.names, report.samples, strict=True)]
    facts: list[tuple[str, object]] = [
        ("stores", ", ".join(stores)),
        (
            "steps",
            f"{number(report.steps)} in {duration(report.seconds)}, {number(report.step)} of {number(report.total)}",
        ),
        ("time", f"{report.step_s:.3f} s a step, and {report.data_s:.3f} s of waiting for data"),
        ("device", report.device if report.processes == 1 else f"{report.processes} x {report.device}"),
        ("parameters", number(report.parameters)),
        ("loss", "-" if report.loss is None else f"{report.loss:.4g}, 1 - cosine"),
    ]
    if report.cosine is not None:
        facts.append(("cosine on validation samples", f"{report.cosine:.4f}"))
    output.facts(facts, title=f"The run: {report.run}")
    if report.step == report.total:
        output.line(f"Fine-tune it: ditr-cache train STORE NEW_RUN --init {shlex.quote(report.run)}")
