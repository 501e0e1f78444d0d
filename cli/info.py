# SPDX-License-Identifier: Apache-2.0
"""`ditr-cache info STORE`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ditr_cache.cli.options import StoreLocation, reports
from ditr_cache.cli.output import Output
from ditr_cache.cli.text import bytes_, number, plural, share

if TYPE_CHECKING:
    from ditr_cache.pipelines.inspect import InfoReport

__all__ = ["command"]


@click.command(
    "info",
    short_help="What a store holds: settings, samples, coverage, bytes.",
    epilog="""\b
Examples:
  ditr-cache info rooms
  ditr-cache info s3://bucket/rooms --samples
  ditr-cache info rooms --json""",
)
@click.argument("store", type=StoreLocation())
@click.option("--samples", is_flag=True, help="List every sample.")
@reports()
def command(output: Output, store: Path | str, samples: bool) -> None:
    """Say what is in a store."""
    from ditr_cache.pipelines.inspect import Info

    report = Info(store).run()
    output.document(report.to_dict(samples=samples))
    output.facts(_facts(report))
    output.facts(_flat(report.identity), title="Identity")
    output.table(
        ["split", "samples", "points"],
        [[split or "-", number(s.samples), number(s.points)] for split, s in report.splits.items()],
        title="Samples",
        right=(1, 2),
    )
    output.table(
        ["array", "type", "bytes", "share"],
        [*_arrays(report)],
        title="Arrays",
        right=(2, 3),
    )
    if samples:
        output.table(
            ["sample", "split", "points", "views"],
            [[s.id, s.split, number(s.points), number(len(s.view_names))] for s in report.samples],
            title="All samples",
            right=(2, 3),
        )
    output.listing("Failed blocks (the same extract command tries them again):", _pairs(report.failed))
    output.listing("Missing blocks:", [b for b in report.missing if b not in report.failed])
    output.listing("Failed frames:", [f"{n.sample} {n.view or ''}: {n.reason}" for n in report.dropped])
    output.listing("Skipped frames:", [f"{n.sample} {n.view or ''}: {n.reason}" for n in report.skipped])
    for note in report.notes:
        output.status(f"note: {note}")
    if report.random_weights:
        output.warning("the ViT had random weights: these features carry no meaning")
    if report.not_finalised:
        hidden = plural(report.not_finalised, "finished block")
        output.warning(f"readers do not see {hidden} yet; run: ditr-cache finalize {report.store}")


def _facts(report: InfoReport) -> Iterator[tuple[str, object]]:
    yield "store", report.store
    yield "format", f"version {report.format_version}"
    yield "content digest", report.digest
    yield "manifest", report.manifest or "none yet"
    missing, failed = number(len(report.missing)), number(len(report.failed))
    yield "blocks", f"{number(report.blocks)} present, {missing} missing, of which {failed} failed"
    yield "points", f"{number(report.points)}, {share(report.points_seen, report.points)} of them seen"
    yield "views", f"{number(report.views)}; a point is seen by {number(report.views_per_point, 2)} on average"
    yield "rows", f"{number(report.rows)} patch features for {number(report.hits)} (point, view) pairs"
    yield "size", bytes_(report.bytes)
    if report.int8_cosine_error_p99 is not None:
        yield "int8 cosine error, p99", f"{report.int8_cosine_error_p99:.1e} (worst block)"
    yield "frames left out", f"{number(len(report.dropped))} failed, {number(len(report.skipped))} without a valid pose"


def _arrays(report: InfoReport) -> Iterator[list[object]]:
    """The large ones by name, the others as one."""
    large = [a for a in report.arrays if a.bytes * 200 >= report.bytes]
    rest = report.arrays[len(large) :]
    for array in large:
        yield [array.name, array.dtype, bytes_(array.bytes), share(array.bytes, report.bytes)]
    if rest:
        size = sum(array.bytes for array in rest)
        yield [f"{len(rest)} others", "", bytes_(size), share(size, report.bytes)]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield prefix + str(key), "-" if item is None else item


def _pairs(reasons: Mapping[str, str]) -> list[str]:
    return [f"{key}: {reason}" for key, reason in reasons.items()]
