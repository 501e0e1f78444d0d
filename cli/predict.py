# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache predict RUN STORE OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ditr_cache.cli.errors import ExitCode
from ditr_cache.cli.labelling import label_options, options_from, show_cost
from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import progress_for
from ditr_cache.cli.text import number

__all__ = ["command"]

# not from pipelines.label_files: the help page would wait for NumPy; a test compares the two
FORMATS = ("npy", "ply", "label", "lidarseg", "lidarseg-challenge")


@click.command(
    "predict",
    short_help="Write the labels of a trained network, a file a sample.",
    epilog="""\b
Formats:
  npy                 int32 classes, in the order of the stored points
  ply                 points with class colours and classes
  label               SemanticKITTI: uint32 raw ids
  lidarseg            nuScenes: uint8 raw ids, as in its own files
  lidarseg-challenge  nuScenes: uint8 from 1, as its benchmark wants them

\b
Examples:
  ditr-cache predict run rooms.store labels
  ditr-cache predict run kitti.store out --format label --split test
  ditr-cache predict finetuned scan.ply labels --format ply""",
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("store", type=StoreLocation())
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--format", "form", type=click.Choice(FORMATS), default="npy", show_default=True, help="Kind of files.")
@label_options
@click.option(
    "--bin-columns",
    metavar="N",
    type=click.IntRange(4),
    help="Numbers a point in .bin files: x y z strength, and more that is not looked at.  [default: 5 for networks of "
    "nuScenes, 4 for others]",
)
@click.option("--overwrite", is_flag=True, help="Write files anew that are there already.")
@reports(resumes=True)
def command(
    output: Output,
    run: Path,
    store: Path | str,
    out: Path,
    form: Any,
    bin_columns: int | None,
    overwrite: bool,
    **choice: Any,
) -> ExitCode:
    """Label samples of STORE with the network of RUN, into one file each in OUT.

    For a network that sees points only (trained with model.injection=none, as after a distillation), STORE may also be
    a file of points, or a folder of such files: .ply; .npy of x y z and strength, or colour, or colour and normal;
    .bin of lidars. What cannot be read is listed, and the exit code is 3.

    Files are named after sample ids, with all but letters, digits and ._- percent-encoded. An interrupted run goes on
    when the same command is given again.
    """
    from ditr_cache.pipelines.predict import Predict

    options = options_from(**choice)
    with progress_for(output, unit="samples") as progress:
        report = Predict(
            run, store, out, form, options, bin_columns=bin_columns, overwrite=overwrite, progress=progress
        ).run()
    output.document(report.to_dict())
    output.facts(
        [
            ("folder", report.out),
            ("format", report.form),
            ("samples", f"{number(report.written)} written, {number(report.skipped)} were there already"),
            ("points", number(report.points)),
        ]
    )
    show_cost(output, report.cost, report.seconds, report.device)
    if report.failures:
        output.table(
            ["sample", "why it was not labelled"], [list(item) for item in report.failures.items()], title="Failed"
        )
    return ExitCode.INCOMPLETE if report.failures else ExitCode.OK
