# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache probe STORE`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ditr_cache.cli.options import StoreLocation, cache_options, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.progress import progress_for
from ditr_cache.cli.text import duration, number, plural, share

if TYPE_CHECKING:
    from ditr_cache.pipelines.probe import DrawnSplit, ProbeReport
    from ditr_cache.pipelines.probe_methods import MethodScores
    from ditr_cache.probing.consistency import Cosines
    from ditr_cache.training.metrics import SegmentationScores

__all__ = ["command"]


@click.command(
    "probe",
    short_help="How good features are, without training a network.",
    epilog="""\b
Examples:
  ditr-cache probe rooms
  ditr-cache probe layer12 --against layer8 --against layer4
  ditr-cache probe scannet.store --labels segment200 --balanced
  ditr-cache probe capture --consistency-only
  ditr-cache probe s3://bucket/rooms --samples 20 --json""",
)
@click.argument("store", type=StoreLocation())
@click.option(
    "--train", multiple=True, default=("train",), show_default=True, metavar="SPLIT", help="Learn from it. Repeatable."
)
@click.option(
    "--val", multiple=True, default=("val",), show_default=True, metavar="SPLIT", help="Classify it. Repeatable."
)
@click.option("--labels", "label_set", metavar="NAME", help="Array of labels, where the store has several.")
@click.option(
    "--samples", type=click.IntRange(1), default=200, show_default=True, help="At most so many samples of each side."
)
@click.option(
    "--points",
    type=click.IntRange(1),
    default=20_000,
    show_default=True,
    help="Points drawn of each side, dealt out evenly to its samples.",
)
@click.option(
    "--balanced", is_flag=True, help="Deal training points out evenly to the classes of a sample, for rare classes."
)
@click.option(
    "--count", type=click.IntRange(1), default=10, show_default=True, help="Views of each sample, evenly spread."
)
@click.option("--all-views", is_flag=True, help="Read all views of each, as outdoors.")
@click.option(
    "--rule",
    type=click.Choice(["random", "last", "first"]),
    default="random",
    show_default=True,
    help="Which of the views that see a point serves it.",
)
@click.option("-k", "k", type=click.IntRange(1), default=20, show_default=True, help="Neighbours that vote.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of points and views.")
@click.option("--consistency-only", is_flag=True, help="Compare views alone: needs no labels and no splits.")
@click.option(
    "--against",
    type=StoreLocation(),
    metavar="STORE",
    multiple=True,
    help="Another store, probed alike and shown beside. Repeatable.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    metavar="PNG",
    help="Draw the IoU of every class as bars.",
)
@click.option("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, ...; auto by default.")
@cache_options
@reports()
def command(
    output: Output,
    store: Path | str,
    all_views: bool,
    count: int,
    against: tuple[Path | str, ...],
    picture: Path | None,
    **choice: Any,
) -> None:
    """Say how much the features of STORE tell about classes, before days of training.

    Points of the training samples classify points of the validation samples: by a linear probe (logistic regression
    on standardised features; its penalty is chosen on training samples that are held out) and by the k nearest
    neighbours in cosine. The same is done with coordinates, colours and normals alone: what is above that comes from
    the images. Only points that a view sees take part. Cross-view consistency is the cosine of the features that one
    point has in two views, against that of two points of the same sample.
    """
    from ditr_cache.pipelines.probe import Probe
    from ditr_cache.pipelines.probe_sides import ProbeOptions

    options = ProbeOptions(count=None if all_views else count, **choice)
    if picture is not None and options.consistency_only:
        raise click.UsageError("--picture shows classes, and --consistency-only knows none.")
    if picture is not None and not picture.parent.is_dir():
        raise click.BadParameter(f"there is no folder {picture.parent}", param_hint="--picture")
    with progress_for(output, unit="steps") as progress:
        # all are opened before the first is probed for minutes
        probes = [Probe(one, options, progress=progress) for one in (store, *against)]
        report, *others = [probe.run() for probe in probes]
    document = report.to_dict() | ({"against": [other.to_dict() for other in others]} if others else {})
    output.document(document)
    _show(output, report)
    if others:
        _compare(output, [*others, report])
    for one in (report, *others):
        _warn(output, one)
    if picture is not None:
        from ditr_cache.pipelines.probe_picture import probe_picture

        probe_picture(report).save(picture, format="PNG")


def _show(output: Output, report: ProbeReport) -> None:
    output.facts(_facts(report))
    if report.methods:
        output.table(
            ["classified by", "", "mIoU", "mIoU*", "mAcc*", "allAcc"],
            [[_input(m, report), _method(m, report), *map(_percent, _means(m.scores))] for m in report.methods],
            title="Means over classes, in per cent (*: over classes that have points here)",
            right=(2, 3, 4, 5),
        )
        output.table(
            ["class", *(f"{_short(m.input)} {_short(m.method)}" for m in report.methods), "points"],
            [
                [rows[0].name, *(_percent(row.iou) for row in rows), number(rows[0].points)]
                for rows in zip(*(m.scores.classes for m in report.methods), strict=True)
            ],
            title="IoU of classes, in per cent",
            right=range(1, 2 + len(report.methods)),
        )
    found = report.consistency
    if found is None:
        output.line("No cross-view consistency: no drawn point is seen by two views.")
        return
    output.table(
        ["cosine of", "mean", "5 %", "25 %", "50 %", "75 %", "95 %", "pairs"],
        [_cosines("one point in two views", found.same), _cosines("two points of a sample", found.random)],
        title="Cross-view consistency",
        right=range(1, 8),
    )
    output.line(
        f"A pair of one point has the higher cosine in {_percent(found.separation)} % of all comparisons (50: chance)."
    )


def _facts(report: ProbeReport) -> Iterator[tuple[str, object]]:
    backbone, size = report.backbone, report.images.get("size")
    yield "store", report.store
    pixels = "x".join(map(str, size)) if size else f"{report.images.get('budget', '?')} patches at most"
    layer = f"layer {backbone.get('layer', '?')} of {backbone.get('layers', '?')}"
    yield "features", f"{backbone.get('name', '?')}, {layer}, images of {pixels}, {report.dtype}"
    if report.label_set is not None:
        yield "labels", report.label_set
    if report.train is not None:
        yield "learned from", _side(report.train)
        yield "classified", _side(report.val)
    else:
        yield "compared", _side(report.val)
    views = "all views" if report.options.count is None else f"at most {plural(report.options.count, 'view')} of each"
    yield "views", f"{views}; a point has the {report.options.rule} one that sees it"
    yield "time", f"{duration(report.seconds)} on {report.device}"


def _side(side: DrawnSplit) -> str:
    seen = share(side.seen, side.points)
    return f"{plural(side.drawn, 'point')} of {plural(side.samples, 'sample')}, of whose points {seen} are seen"


def _input(method: MethodScores, report: ProbeReport) -> str:
    return f"{report.words(method.input)} ({method.channels} channels)"


def _method(method: MethodScores, report: ProbeReport) -> str:
    if method.method == "linear":
        return f"linear, penalty {method.penalty:g}"
    return f"{report.options.k} neighbours"


def _means(scores: SegmentationScores) -> tuple[float, ...]:
    return scores.miou, scores.miou_present, scores.macc_present, scores.allacc


def _short(word: str) -> str:
    return {"neighbours": "k-NN"}.get(word, word)


def _cosines(name: str, found: Cosines) -> list[str]:
    values = (found.mean, found.p05, found.p25, found.p50, found.p75, found.p95)
    return [name, *(f"{value:.3f}" for value in values), number(found.pairs)]


def _compare(output: Output, reports: list[ProbeReport]) -> None:
    """Several stores side by side, this one last."""
    rows = [
        [f"{_short(m.input)}, {_short(m.method)}", *(_percent(r.methods[i].scores.miou_present) for r in reports)]
        for i, m in enumerate(reports[-1].methods)
        if all(len(r.methods) > i and r.methods[i].input == m.input for r in reports)
    ]
    found = [r.consistency for r in reports]
    rows.append(["one point above two", *("-" if c is None else _percent(c.separation) for c in found)])
    output.table(
        ["mIoU*", *(Path(r.store).name for r in reports)],
        rows,
        title="Side by side, in per cent",
        right=range(1, 1 + len(reports)),
    )


def _warn(output: Output, report: ProbeReport) -> None:
    if report.missing_blocks:
        output.warning(f"{report.store}: {plural(report.missing_blocks, 'planned block')} not there yet")
    if report.untrained:
        names = ", ".join(report.untrained[:5]) + ", ..." * (len(report.untrained) > 5)
        output.warning(f"{report.store}: classes without a training point cannot be found: {names}")
    if report.random_weights:
        output.warning(f"{report.store}: the ViT had random weights; better than chance is what any network sees")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
