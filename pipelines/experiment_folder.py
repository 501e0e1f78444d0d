# SPDX-License-Identifier: Apache-2.0
"""What an experiment leaves on disk: whose folder it is, what every run scored, tables and a plot.

OUT/
  experiment.json             experiment, digests of the stores, settings
  ARM-SEED/                   an ordinary run
  ARM-SEED/scores.json        once it is evaluated
  results.json, table.md, table.csv, plot.png
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditr_cache.config import load_config
from ditr_cache.errors import CheckpointError, ConfigError
from ditr_cache.pipelines.experiment_picture import draw_rows
from ditr_cache.pipelines.experiment_plans import Plan
from ditr_cache.pipelines.experiment_table import Row, csv_table, markdown_table, rows_of
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.run_folder import config_difference

__all__ = ["ExperimentFolder"]

_ABOUT, _SCORES = "experiment.json", "scores.json"


class ExperimentFolder:
    """The folder of one experiment.

    Args:
        path: Where it is; made by `claim`.
        name: The experiment.
        stores: Digests of its stores.
        config: Settings that all arms have.
    """

    def __init__(self, path: Path, name: str, stores: Sequence[str], config: TrainConfig) -> None:
        self.path, self._name, self._stores, self._config = path, name, list(stores), config
        self._fs = Filesystem()

    def check(self) -> None:
        """Refuse a folder that holds something else; settings that do not decide what comes out may differ.

        Raises:
            ConfigError: With every difference.
            CheckpointError: If what an earlier call wrote cannot be read.
        """
        path = self.path / _ABOUT
        if not path.exists():
            names = sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []
            others = [name for name in names if not (name.startswith(".") and name.endswith(".tmp"))]
            if others:
                raise ConfigError(
                    f"the folder is not empty and holds no experiment (it holds {others[0]})",
                    where=self.path,
                    hint="The last argument names the folder to write to: name a new one.",
                )
            return
        there = _read(path)
        try:
            before = load_config(TrainConfig, [there["settings"]])
            experiment, stores = there["experiment"], there["stores"]
        except (ConfigError, KeyError, TypeError) as error:
            raise CheckpointError("is not what an experiment writes", where=path) from error
        lines = config_difference(before, self._config)
        if experiment != self._name:
            lines.append(f"experiment: {experiment}, asked for {self._name}")
        if stores != self._stores:
            lines.append("stores: others, or they have changed")
        if lines:
            raise ConfigError(
                "the folder holds another experiment:\n  " + "\n  ".join(lines),
                where=self.path,
                hint="Give the same command again to go on with it, or name another folder.",
            )

    def claim(self) -> None:
        """Say whose it is."""
        self.check()
        path = self.path / _ABOUT
        if not path.exists():
            settings = self._config.model_dump(mode="json")
            about = {"experiment": self._name, "stores": self._stores, "settings": settings}
            self._fs.make_folder(self.path)
            self._fs.replace(path, json.dumps(about, indent=1).encode() + b"\n")

    def is_done(self, run: str) -> bool:
        """Whether a run was evaluated."""
        return (self.path / run / _SCORES).is_file()

    def scores(self, run: str) -> dict[str, float]:
        """Scores of an evaluated run, by part.

        Raises:
            CheckpointError: If they cannot be read.
        """
        return _read(self.path / run / _SCORES)

    def keep(self, run: str, scores: Mapping[str, float]) -> None:
        """Write down what a run scored; with it, it is done."""
        self._fs.replace(self.path / run / _SCORES, json.dumps(dict(scores)).encode() + b"\n")

    def write(
        self, plan: Plan, single: Mapping[str, Mapping[str, Mapping[str, float]]], failures: Mapping[str, str]
    ) -> tuple[Row, ...]:
        """Tables and plot of what there is.

        Args:
            plan: The experiment.
            single: Arm -> seed -> scores.
            failures: Run -> why it failed.
        """
        rows = rows_of(plan, single)
        self._fs.replace(self.path / "results.json", json.dumps(single, indent=1).encode() + b"\n")
        self._fs.replace(self.path / "table.md", markdown_table(plan, rows, failures).encode())
        self._fs.replace(self.path / "table.csv", csv_table(rows).encode())
        if rows:
            draw_rows(plan.title, rows).save(self.path / "plot.png")
        return rows


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot be read", where=path, hint="Remove it, and give the command again.") from error
    if not isinstance(found, dict):
        raise CheckpointError("is not what an experiment writes", where=path)
    return found
