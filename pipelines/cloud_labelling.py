# SPDX-License-Identifier: Apache-2.0
"""A network that sees points only, let loose on clouds in files: no images, no poses, no store."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from ditr_cache.config import load_config
from ditr_cache.datasets.clouds import SUFFIXES, is_cloud, read_cloud
from ditr_cache.errors import CheckpointError, ConfigError, SampleError
from ditr_cache.pipelines.label_files import LabelSet
from ditr_cache.pipelines.labelling import Labelled, LabelOptions, build_labelling, check_test, find_checkpoint
from ditr_cache.store.locate import is_store
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distributed import pick_device
from ditr_cache.training.inference import Clock, Cost
from ditr_cache.training.run_folder import RunFolder
from ditr_cache.training.sample import Sample
from ditr_cache.types import FactoredFeatures, PointCloud

__all__ = ["CloudLabeller", "clouds_at"]


def clouds_at(location: str | os.PathLike[str]) -> list[Path]:
    """The cloud that a path names, or those directly in a folder that is no store; empty where it is something else."""
    path = Path(location)
    if path.is_file() or (is_cloud(path) and not path.exists() and "://" not in str(location)):
        return [path]
    if not path.is_dir() or is_store(path):
        return []
    return sorted(p for p in path.iterdir() if is_cloud(p))


class CloudLabeller:
    """As `Labeller`, for files.

    Args:
        run: Folder of the run.
        clouds: Files; their names without suffix are the samples' ids.
        options: How, where; splits mean nothing here.
        bin_columns: Numbers a point in `.bin` files; None: those of the data set that the network was trained on.

    Raises:
        CheckpointError: If there is no run, or nothing saved.
        ConfigError: If the network needs images, or the options name nothing.
    """

    def __init__(
        self, run: Path, clouds: Iterable[Path], options: LabelOptions, bin_columns: int | None = None
    ) -> None:
        self.run, self.options = run, options
        folder = RunFolder(run)
        if not folder.exists:
            raise CheckpointError("no run here", where=run, hint="Make one with: ditr-cache train STORE RUN")
        folder.check_kind("train")
        self.config = load_config(TrainConfig, [folder.config()])
        if self.config.model.injection != "none":
            raise ConfigError(
                f"this network is shown image features (model.injection={self.config.model.injection}), and a file of "
                "points has none",
                where=run,
                hint="Make a store of points and images with `ditr-cache extract`, or train a network that sees points "
                "only, for instance a distilled one: ditr-cache distill --help",
            )
        if options.splits is not None:
            raise ConfigError("files of points have no splits", where="--split")
        if options.protocol == "test":
            check_test(self.config, folder)
        began = folder.run()
        dataset = str(began["store"]["identity"]["dataset"]["name"])
        self.labels = LabelSet(began["label_set"], tuple(began["classes"]), began.get("label_map", {}), dataset)
        self._bin_columns = bin_columns or (5 if dataset == "nuscenes" else 4)
        self._paths = _by_name(clouds, options.samples)
        self.samples = tuple(self._paths)
        self.device = pick_device(options.device)
        self.checkpoint = find_checkpoint(folder, options.checkpoint)
        self.seconds = 0.0
        """Spent on labelling."""
        self._clock = Clock(self.device)
        self._labelling = build_labelling(self.config, self.checkpoint, self.labels, None, self.device, options)

    @property
    def cost(self) -> Cost:
        """So far."""
        return self._clock.cost

    def about(self) -> dict[str, Any]:
        """What decides the labels."""
        return {
            "run": str(self.run.resolve()),
            "checkpoint": self.checkpoint.name,
            "protocol": self.options.protocol,
            "label_set": self.labels.name,
            "bin_columns": self._bin_columns,
            "clouds": str(next(iter(self._paths.values())).parent.resolve()),
        }

    def changed(self, sample_id: str) -> int:
        """When a cloud's file was last written, moved or replaced, in nanoseconds."""
        found = self._paths[sample_id].stat()
        return max(found.st_mtime_ns, found.st_ctime_ns)

    def points(self, sample_id: str) -> PointCloud:
        """A cloud as it is in its file."""
        return read_cloud(self._paths[sample_id], self._bin_columns)

    def label(self, samples: Iterable[str]) -> Iterator[Labelled]:
        """Label clouds one after the other.

        Raises:
            SampleError: If a cloud cannot be read, or lacks what the network is shown.
        """
        for name in samples:
            start = time.perf_counter()
            with self._clock.measure("read"):
                sample = self._sample(name)
            nothing = FactoredFeatures(np.zeros((0, 1), np.float16), sample.index)
            label_N = self._labelling(name, sample, nothing, None, self._clock)
            self.seconds += time.perf_counter() - start
            yield Labelled(name, label_N, None, sample.index >= 0)

    def _sample(self, name: str) -> Sample:
        points, wanted = self.points(name), self.config.data.features
        missing = [what for what in wanted if what != "coord" and getattr(points, what) is None]
        if missing:
            raise SampleError(
                f"no {' and no '.join(missing)}, which the network is shown ({', '.join(wanted)})",
                where=self._paths[name],
            )
        return Sample(
            coord=points.coord,
            point=np.arange(len(points)),
            index=np.full(len(points), -1, np.int32),
            color=points.color.astype(np.float32) if points.color is not None and "color" in wanted else None,
            normal=points.normal if "normal" in wanted else None,
            strength=points.strength if "strength" in wanted else None,
        )


def _by_name(clouds: Iterable[Path], pattern: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in clouds:
        if not path.exists():
            raise ConfigError("no such file", where=path)
        if path.stem in found:
            raise ConfigError(f"two clouds of one name: {found[path.stem].name} and {path.name}", where=path.parent)
        found[path.stem] = path
    chosen = {name: path for name, path in found.items() if fnmatchcase(name, pattern)}
    if not chosen:
        what = f"none of the {len(found)} clouds matches {pattern!r}" if found else f"no files {', '.join(SUFFIXES)}"
        raise ConfigError(what, where="--samples")
    return chosen
