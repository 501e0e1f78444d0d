# SPDX-License-Identifier: Apache-2.0
"""Results of an experiment as a table: means and spreads over seeds, and what the paper found beside them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ditr_cache.pipelines.experiment_plans import Plan

__all__ = ["Row", "Spread", "csv_table", "markdown_table", "rows_of"]

COLUMNS = ("miou", "visible", "invisible")


@dataclass(frozen=True, slots=True)
class Spread:
    """Over seeds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One arm."""

    name: str
    label: str
    seeds: int
    """Runs that are done."""
    scores: Mapping[str, Spread]
    """mIoU in 0..1: of all points (`miou`), visible and invisible ones."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """What the paper found, in per cent, by data set."""


def rows_of(plan: Plan, single: Mapping[str, Mapping[str, Mapping[str, float]]]) -> tuple[Row, ...]:
    """Rows of the arms that have a run.

    Args:
        plan: The experiment.
        single: Arm -> seed -> scores.
    """
    rows = []
    for arm in plan.arms:
        runs = list(single.get(arm.name, {}).values())
        if runs:
            spreads = {}
            for key in COLUMNS:
                values = [run[key] for run in runs]
                spreads[key] = Spread(sum(values) / len(values), min(values), max(values))
            rows.append(Row(arm.name, arm.label, len(runs), spreads, arm.paper))
    return tuple(rows)


def markdown_table(plan: Plan, rows: Sequence[Row], failures: Mapping[str, str] | None = None) -> str:
    """In per cent; in brackets the lowest and the highest seed.

    Args:
        plan: The experiment.
        rows: Of `rows_of`.
        failures: Run -> why it failed.
    """
    papers = _papers(rows)
    head = ["", "seeds", "mIoU", "visible", "invisible", *(f"paper, {name}" for name in papers)]
    lines = [f"## {plan.title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row.label, str(row.seeds), *(_cell(row.scores[key]) for key in COLUMNS)]
        cells += [f"{row.paper[name]:.1f}" if name in row.paper else "" for name in papers]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "mIoU in per cent, mean over seeds (lowest to highest)."]
    if papers:
        lines.append("The paper's numbers are of its own data sets, networks and schedules.")
    lines += [f"- {note}" for note in plan.notes]
    lines += [f"- {run} failed: {why}" for run, why in (failures or {}).items()]
    return "\n".join(lines) + "\n"


def csv_table(rows: Sequence[Row]) -> str:
    """With a line of names; scores in 0..1, the paper's in per cent."""
    papers, text = _papers(rows), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = [f"{key}_{part}" for key in COLUMNS for part in ("mean", "low", "high")]
    writer.writerow(["arm", "label", "seeds", *parts, *(f"paper: {name.strip()}" for name in papers)])
    for row in rows:
        scores = [f"{getattr(row.scores[key], part):.6f}" for key in COLUMNS for part in ("mean", "low", "high")]
        writer.writerow([row.name, row.label, row.seeds, *scores, *(row.paper.get(name, "") for name in papers)])
    return text.getvalue()


def _papers(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.paper))


def _cell(spread: Spread) -> str:
    mean, low, high = (100 * x for x in (spread.mean, spread.low, spread.high))
    return f"{mean:.1f} ({low:.1f}-{high:.1f})" if low < high else f"{mean:.1f}"
