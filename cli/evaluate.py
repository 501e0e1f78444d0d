# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache evaluate RUN STORE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ditr_cache.cli.labelling import label_options, options_from, show_cost
from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import progress_for
from ditr_cache.cli.text import duration, number, share

if TYPE_CHECKING:
    from ditr_cache.pipelines.evaluate import EvaluateReport

__all__ = ["command"]


@click.command(
    "evaluate",
    short_help="mIoU of a trained network, class by class.",
    epilog="""\b
Examples:
  ditr-cache evaluate run rooms.store
  ditr-cache evaluate run rooms.store --protocol test --pictures seen
  ditr-cache evaluate run rooms.store --against plain
  ditr-cache evaluate pretrained rooms.store --pictures features
  ditr-cache evaluate run rooms.store --json > scores.json""",
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("store", type=StoreLocation())
@label_options
@click.option(
    "--pictures",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Draw the confusion matrix, and truth, prediction and errors of every sample.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="RUN",
    multiple=True,
    help="Another run, evaluated on the same samples and shown beside this one. Repeatable.",
)
@click.option(
    "--norms",
    metavar="NAME",
    help="Whose norm layers, where RUN is a distillation of several stores; those of the store's data set by default.",
)
@reports()
def command(
    output: Output,
    run: Path,
    store: Path | str,
    pictures: Path | None,
    against: tuple[Path, ...],
    norms: str | None,
    **choice: Any,
) -> None:
    """Label samples of STORE with the network of RUN, and compare with their labels.

    STORE is the one that the network was trained from, or another of the same identity. Where RUN is a distillation,
    regressed features are compared with those of the store, and pictures show both in the same colours.
    """
    from ditr_cache.pipelines.evaluate_distilled import is_distilled

    if is_distilled(run):
        if against:
            raise click.UsageError("--against compares classes, and a distilled network has none yet.")
        _evaluate_distilled(output, run, store, norms, pictures, choice)
        return
    if norms is not None:
        raise click.UsageError("--norms is for distillations of several data sets.")
    from ditr_cache.pipelines.evaluate import Evaluate

    with progress_for(output, unit="samples") as progress:
        options = options_from(**choice)
        report = Evaluate(run, store, options, pictures=pictures, progress=progress).run()
        others = [Evaluate(other, store, options, progress=progress).run() for other in against]
    output.document(report.to_dict() | ({"against": [other.to_dict() for other in others]} if others else {}))
    _show(output, report)
    if others:
        _compare(output, [*others, report])
    if report.unlabelled:
        output.warning(f"{len(report.unlabelled)} of {report.samples} samples have no labels and do not count")


def _evaluate_distilled(
    output: Output, run: Path, store: Path | str, norms: str | None, pictures: Path | None, choice: dict[str, Any]
) -> None:
    from ditr_cache.pipelines.evaluate_distilled import EvaluateDistilled

    with progress_for(output, unit="samples") as progress:
        report = EvaluateDistilled(
            run, store, options_from(**choice), norms=norms, pictures=pictures, progress=progress
        ).run()
    output.document(report.to_dict())
    facts: list[tuple[str, object]] = [
        ("weights", report.checkpoint),
        ("store", report.store),
        ("mean cosine", f"{report.cosine:.4f} over visible voxels, {report.device}, {duration(report.seconds)}"),
    ]
    if report.pictures is not None:
        facts.append(("pictures", report.pictures))
    output.facts(facts)
    output.table(
        ["sample", "cosine", "voxels", "visible"],
        [[s.id, f"{s.cosine:.4f}", number(s.voxels), share(s.visible, s.voxels)] for s in report.samples],
        title="Regressed features against cached ones",
        right=(1, 2, 3),
    )
    if report.differences:
        output.warning("these are not the features that were regressed:\n  " + "\n  ".join(report.differences))


def _show(output: Output, report: EvaluateReport) -> None:
    scores = report.scores
    facts: list[tuple[str, object]] = [
        ("weights", report.checkpoint),
        ("store", report.store),
        ("protocol", report.protocol),
        ("samples", number(report.samples)),
        ("points", f"{number(report.points)}, {share(report.visible, report.points)} of them visible"),
    ]
    if report.pictures is not None:
        facts.append(("pictures", report.pictures))
    output.facts(facts)
    parts = (("all", scores.overall), ("visible", scores.visible), ("invisible", scores.invisible))
    output.table(
        ["points", "mIoU", "mAcc", "allAcc", "mIoU*", "labelled"],
        [[name, *map(_percent, (s.miou, s.macc, s.allacc, s.miou_present)), number(s.points)] for name, s in parts],
        title="Means over classes, in per cent (*: over classes that have labels here)",
        right=(1, 2, 3, 4, 5),
    )
    output.table(
        ["class", "IoU", "acc", "visible IoU", "invisible IoU", "labelled"],
        [
            [c.name, *map(_percent, (c.iou, c.acc, v.iou, i.iou)), number(c.points)]
            for c, v, i in zip(*(s.classes for _, s in parts), strict=True)
        ],
        title="Classes",
        right=(1, 2, 3, 4, 5),
    )
    show_cost(output, report.cost, report.seconds, report.device)


def _compare(output: Output, reports: list[EvaluateReport]) -> None:
    """IoU of several runs side by side, this one last."""
    scores = [report.scores for report in reports]
    means = [
        ("all classes", [s.overall.miou for s in scores]),
        ("visible points", [s.visible.miou for s in scores]),
        ("invisible points", [s.invisible.miou for s in scores]),
    ]
    names = list(dict.fromkeys(c.name for s in scores for c in s.overall.classes))
    iou = [{c.name: c.iou for c in s.overall.classes} for s in scores]
    rows = [[name, *map(_percent, values)] for name, values in means]
    rows += [[name, *(_percent(found[name]) if name in found else "-" for found in iou)] for name in names]
    output.table(
        ["IoU", *(Path(report.run).name for report in reports)],
        rows,
        title="Side by side, in per cent",
        right=range(1, 1 + len(reports)),
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
