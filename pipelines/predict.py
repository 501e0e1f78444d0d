# SPDX-License-Identifier: Apache-2.0
"""Labels of a trained network as files, one a sample."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ditr_cache.errors import ConfigError, SampleError
from ditr_cache.pipelines.cloud_labelling import CloudLabeller, clouds_at
from ditr_cache.pipelines.label_files import LabelFormat, encoder
from ditr_cache.pipelines.labelling import Labeller, LabelOptions
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.store.layout import block_file_name
from ditr_cache.store.locate import is_store
from ditr_cache.training.inference import Cost

__all__ = ["Predict", "PredictReport"]

ABOUT = "predictions.json"
"""Says whose predictions a folder holds, so that those of two networks never mix."""


@dataclass(frozen=True, slots=True)
class PredictReport:
    """What was written."""

    out: str
    form: str
    samples: int
    written: int
    skipped: int
    """There already."""
    failures: Mapping[str, str]
    """Samples that could not be labelled, and why."""
    points: int
    """Of the samples written."""
    cost: Cost
    seconds: float
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Predict:
    """Labels samples and writes a file for each.

    A file is whole or not there, so that an interrupted run goes on where it stopped when it is started again.

    Args:
        run: Folder of the run.
        store: The store that it was trained from, or another of the same identity; for a network that sees points only
            also a file of points (`.ply`, `.npy`, `.bin`), or a folder of such files.
        out: Folder to write to.
        form: What the files are.
        options: Which samples, how, where.
        bin_columns: Numbers a point in `.bin` files; None: those of the data set that the network was trained on.
        overwrite: Write files anew that are there already.
        progress: Who listens; counts samples.
    """

    def __init__(
        self,
        run: Path,
        store: str | os.PathLike[str],
        out: Path,
        form: LabelFormat = "npy",
        options: LabelOptions | None = None,
        *,
        bin_columns: int | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        clouds, options = clouds_at(store), options or LabelOptions()
        if bin_columns is not None and not clouds:
            raise ConfigError("a store is no .bin file", where="--bin-columns", hint="Leave the option out.")
        _check_out(out, clouds)
        self._labeller: Labeller | CloudLabeller = (
            CloudLabeller(run, clouds, options, bin_columns) if clouds else Labeller(run, store, options)
        )
        self._out, self._form, self._overwrite = out, form, overwrite
        self._progress, self._fs = progress or Silent(), Filesystem()
        self._suffix, self._encode = encoder(form, self._labeller.labels)

    def run(self) -> PredictReport:
        """Label and write.

        Raises:
            ConfigError: If the folder holds other predictions.
            CheckpointError: If there is no trained network.
            StoreError: If the store cannot be read.
            OSError: If a file cannot be written.
        """
        labeller = self._labeller
        self._claim()
        todo = [name for name in labeller.samples if self._overwrite or not self._is_done(name)]
        points, failures = 0, dict[str, str]()
        self._progress.begin(len(todo))
        try:
            for name in todo:
                try:
                    (done,) = labeller.label([name])
                except SampleError as error:
                    # one bad sample must not cost the others
                    failures[name] = str(error)
                    self._progress.note(f"not labelled: {error}")
                else:
                    self._fs.replace(self._path(name), self._encode(done.label, labeller.points(name)))
                    points += len(done.label)
                self._progress.advance(1)
        finally:
            self._progress.end()
        return PredictReport(
            out=str(self._out),
            form=self._form,
            samples=len(labeller.samples),
            written=len(todo) - len(failures),
            failures=failures,
            skipped=len(labeller.samples) - len(todo),
            points=points,
            cost=labeller.cost,
            seconds=labeller.seconds,
            device=str(labeller.device),
        )

    def _is_done(self, sample_id: str) -> bool:
        """Whether there are labels of a sample, and the sample is still the same."""
        path = self._path(sample_id)
        return path.exists() and path.stat().st_mtime_ns >= self._labeller.changed(sample_id)

    def _path(self, sample_id: str) -> Path:
        return self._out / f"{block_file_name(sample_id)}{self._suffix}"

    def _claim(self) -> None:
        """Write down whose predictions these are, or compare with what is written there.

        Others may be overwritten only if none of them would be left among these.
        """
        about = self._labeller.about() | {"format": self._form}
        path = self._out / ABOUT
        differences = _differences(path, about)
        mine = {self._path(name).name for name in self._labeller.samples}
        # a leading dot: a file that was being written when a run was killed
        others = [p.name for p in self._out.glob("[!.]*") if p.name != ABOUT and p.name not in mine]
        if differences and (not self._overwrite or others):
            raise ConfigError(
                "the folder holds other predictions:\n" + "\n".join(differences),
                where=self._out,
                hint="Name another folder"
                + (f"; {others[0]} would be left among these." if others else ", or write all anew: --overwrite"),
            )
        if differences or not path.exists():
            self._fs.make_folder(self._out)
            self._fs.replace(path, json.dumps(about, indent=1).encode() + b"\n")


def _check_out(out: Path, clouds: Sequence[Path]) -> None:
    """Labels have the names of their clouds: they would take their places."""
    if is_store(out):
        raise ConfigError("this is a store", where=out, hint="Name another folder for the labels.")
    if any(out.resolve() in (cloud.parent.resolve(), cloud.resolve().parent) for cloud in clouds):
        raise ConfigError("the clouds are in this folder", where=out, hint="Name another one for the labels.")


def _differences(path: Path, about: Mapping[str, Any]) -> list[str]:
    """Lines; none where nothing has been written yet."""
    if not path.exists():
        return []
    try:
        there = json.loads(path.read_text("utf-8"))
        pairs = [(key, there.get(key), value) for key, value in about.items()]
    except (ValueError, AttributeError):
        return [f"  {path.name} cannot be read"]
    return [f"  {k}: there {json.dumps(have)}, now {json.dumps(want)}" for k, have, want in pairs if have != want]
