# SPDX-License-Identifier: Apache-2.0
"""What `train` and `distill` share at the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ditr_cache.cli.output import Output
from ditr_cache.cli.text import bytes_, duration, number

if TYPE_CHECKING:
    from ditr_cache.pipelines.train_report import RunEstimate
    from ditr_cache.training.config import StageConfig

__all__ = ["estimated", "say_interrupted", "speaker", "warn_of_cpu"]


def speaker(output: Output) -> tuple[Output, bool]:
    """Of several processes, one speaks. Returns what it speaks through, and whether this is it."""
    from ditr_cache.training.distributed import environment

    main = environment()[0] == 0
    return (output if main else Output(quiet=True)), main


def warn_of_cpu(output: Output, config: StageConfig) -> None:
    """Say so where a full-size network would be trained without a GPU."""
    from ditr_cache.training.distributed import pick_device

    large = sum(config.model.enc_channels) > 300
    if config.run.device == "auto" and pick_device("auto").type == "cpu" and large:
        output.warning("no CUDA device: training runs on the CPU, which is many times slower")


def estimated(estimate: RunEstimate, config: StageConfig) -> list[tuple[str, object]]:
    """What a dry run says of steps, time and memory."""
    evaluation = "-" if estimate.evaluation_s is None else f"about {duration(estimate.evaluation_s)} each time"
    return [
        ("steps", f"{number(estimate.steps)}: {config.run.epochs} epochs of {number(estimate.steps_per_epoch)}"),
        ("parameters", number(estimate.parameters)),
        ("a step", f"{number(estimate.points)} points, {number(estimate.rows)} rows of features"),
        ("computing it", f"{estimate.step_s:.2f} s"),
        ("preparing it", f"{estimate.data_s:.2f} s in one of {estimate.workers} workers"),
        ("evaluation", evaluation),
        ("memory", f"{bytes_(estimate.memory_bytes)} at most so far"),
        ("device", estimate.device),
        ("time", f"about {duration(estimate.seconds)}"),
    ]


def say_interrupted(
    output: Output,
    words: Sequence[object],
    step: int,
    processes: int,
    *,
    allow_incomplete: bool,
    cache_dir: Path | None,
    cache_size: int,
) -> None:
    """Say what is kept, and how to go on.

    Args:
        output: Where to.
        words: The command and its arguments.
        step: That is saved.
        processes: Of the run.
        allow_incomplete: As it was given.
        cache_dir: As it was given.
        cache_size: As it was given.
    """
    cache = [] if cache_dir is None else ["--cache-dir", cache_dir, "--cache-size", cache_size]
    again = ["ditr-cache", *words, "--resume", *["--allow-incomplete"] * allow_incomplete, *cache]
    command = shlex.join(map(str, again)) if processes == 1 else "the same torchrun command, with --resume"
    output.error(f"interrupted after step {step:,}, which is saved", f"Go on: {command}")
