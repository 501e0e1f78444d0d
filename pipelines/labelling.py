# SPDX-License-Identifier: Apache-2.0
"""The network of a run, let loose on the samples of a store."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ditr_cache.config import load_config
from ditr_cache.errors import CheckpointError, ConfigError
from ditr_cache.models.segmentor import Segmentor
from ditr_cache.models.weights import initialise
from ditr_cache.pipelines.label_files import LabelSet
from ditr_cache.store.locate import DEFAULT_CACHE_SIZE
from ditr_cache.store.reader import FeatureStore, open_store
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.dataset import FeatureStoreDataset, split_samples
from ditr_cache.training.distributed import pick_device
from ditr_cache.training.inference import Clock, Cost, Network
from ditr_cache.training.protocol import Labelling, PlainPass, TestProtocol
from ditr_cache.training.run_folder import RunFolder
from ditr_cache.training.sampler import Draw
from ditr_cache.training.store_check import check_classes, check_complete, check_same
from ditr_cache.training.transforms import GridSample
from ditr_cache.types import Float64, Int32, PointCloud

__all__ = ["LabelOptions", "Labelled", "Labeller", "build_labelling", "check_test", "find_checkpoint"]


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """Which samples, how, where."""

    protocol: Literal["plain", "test"] = "plain"
    """`plain`: one pass a sample, as during training. `test`: the official sum over fragments of copies."""
    splits: tuple[str, ...] | None = None
    """Splits of the store; None: those that the run was evaluated on."""
    samples: str = "*"
    """Only sample ids that match this pattern."""
    checkpoint: Literal["best", "last"] = "best"
    """Which weights; `best` are the last ones of a run that was never evaluated."""
    device: str = "auto"
    """`auto` takes CUDA where there is one."""
    fragments_a_pass: int = 1
    """Fragments of the test protocol that share a pass."""
    allow_incomplete: bool = False
    """Take a store of which blocks are missing."""
    cache_dir: Path | None = None
    """Where to keep what was read from a server; None: nowhere."""
    cache_size: int = DEFAULT_CACHE_SIZE
    """Bytes that the cache may take."""


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """One sample and its classes."""

    id: str
    label: Int32
    """`[N]` predicted classes."""
    segment: Int32 | None
    """`[N]` labels, -1 where there are none; None for a sample without labels."""
    visible: NDArray[np.bool_]
    """`[N]` whether at least one of the drawn views sees the point."""


class Labeller:
    """Opens a run and a store and checks that they belong together.

    Args:
        run: Folder of the run.
        store: A folder or a URL.
        options: Which samples, how, where.

    Raises:
        CheckpointError: If there is no run, or nothing trained in it.
        IdentityMismatchError: If the store is not of the run's identity.
        IncompleteStoreError: If blocks are missing and that is not allowed.
        ConfigError: If no sample is left, or labels or points are missing.
    """

    def __init__(self, run: Path, store: str | os.PathLike[str], options: LabelOptions) -> None:
        self.run, self.options = run, options
        folder = RunFolder(run)
        if not folder.exists:
            raise CheckpointError("no run here", where=run, hint="Make one with: ditr-cache train STORE RUN")
        folder.check_kind("train")
        self.config = load_config(TrainConfig, [folder.config()])
        self.store = open_store(store, cache_dir=options.cache_dir, cache_size=options.cache_size)
        check_complete(self.store, allow_incomplete=options.allow_incomplete)
        _check_store(self.store, folder)
        began = folder.run()
        check_classes(self.store, began["label_set"], began["classes"])
        if options.protocol == "test":
            check_test(self.config, folder)
        self.labels = _labels(self.store, began)
        self.samples = _choose(self.store, options.splits or self.config.data.val_splits, options.samples)
        self.device = pick_device(options.device)
        self.checkpoint = find_checkpoint(folder, options.checkpoint)
        self.seconds = 0.0
        """Spent on labelling."""
        self._clock = Clock(self.device)
        self._data = _data(self.store, self.samples, self.config, self.labels.name)
        self._labelling = build_labelling(
            self.config, self.checkpoint, self.labels, began["image_channels"], self.device, options
        )

    @property
    def cost(self) -> Cost:
        """So far."""
        return self._clock.cost

    def about(self) -> dict[str, Any]:
        """What decides the labels."""
        return {
            "run": str(self.run.resolve()),
            "checkpoint": self.checkpoint.name,
            "digest": self.store.digest,
            "protocol": self.options.protocol,
            "label_set": self.labels.name,
        }

    def changed(self, sample_id: str) -> int:
        """Never: what is in a store is that of its digest."""
        return 0

    def points(self, sample_id: str) -> PointCloud:
        """A sample's points as stored, with their origin and normals."""
        receipt, position = self.store.samples.locate(sample_id)
        points = self.store.block(receipt).read_points(position)
        assert points is not None
        return points

    def poses(self, sample_id: str) -> list[Float64]:
        """World to camera `[4, 4]` of a sample's views."""
        receipt, position = self.store.samples.locate(sample_id)
        block = self.store.block(receipt)
        pose_V44, sample_V = (block.array(name).read_all() for name in ("world_to_camera", "view_sample"))
        return list(pose_V44[sample_V == position])

    def __iter__(self) -> Iterator[Labelled]:
        return self.label(self.samples)

    def label(self, samples: Iterable[str]) -> Iterator[Labelled]:
        """Label samples one after the other; the features of each are read once.

        Args:
            samples: Ids.
        """
        for name in samples:
            start = time.perf_counter()
            with self._clock.measure("read"):
                item = self._data[Draw(0, 0, name)]
            before = self.cost.fragments
            label_N = self._labelling(name, item.sample, item.features, item.cls, self._clock)
            self._clock.count(images=(self.cost.fragments - before) * self._views(name))
            self.seconds += time.perf_counter() - start
            yield Labelled(name, label_N, item.sample.segment, item.sample.index >= 0)

    def _views(self, sample_id: str) -> int:
        """How many views of a sample the network is shown."""
        if self.config.model.injection == "none":
            return 0
        count, have = self.config.data.views.evaluation_count, len(self.store.samples[sample_id].view_names)
        return have if count is None else min(count, have)


def build_labelling(
    config: TrainConfig,
    checkpoint: Path,
    labels: LabelSet,
    image_channels: int | None,
    device: torch.device,
    options: LabelOptions,
) -> Labelling:
    """The network of a run, and the protocol.

    Args:
        config: Of the run.
        checkpoint: Folder of the weights.
        labels: What it tells apart.
        image_channels: D; None for a network without images.
        device: Where it runs.
        options: Which protocol.
    """
    # every weight comes from the file: torch's own initialisation would draw from its global generator
    with torch.device("meta"):
        model = Segmentor(config.model, config.data.channels, len(labels.classes), image_channels)
    model = model.to_empty(device=device)
    initialise(model, checkpoint / "model.safetensors")
    condition, seed = labels.dataset if config.model.norm_conditions else None, config.run.seed
    network = Network(model, config.data.features, device, seed, condition)
    if options.protocol == "plain":
        return PlainPass(network, config.data.val, seed)
    return TestProtocol(network, config.data.test, options.fragments_a_pass, seed)


def _check_store(store: FeatureStore, folder: RunFolder) -> None:
    """Features made as those that the network was trained on; samples that it knows have the points that it knows.

    Samples may be missing and others may be new: networks are there for what they have not seen.
    """
    known, found = folder.samples(), {info.id: info.coord_sha256 for info in store.samples.values()}
    both = known.keys() & found.keys()
    identity = folder.run()["store"]["identity"]
    check_same(store, identity, {k: known[k] for k in sorted(both)}, {k: found[k] for k in sorted(both)})


def check_test(config: TrainConfig, folder: RunFolder) -> None:
    """See that the test protocol is meant: settings that say nothing of it have ScanNet's, with ScanNet's voxels.

    Raises:
        ConfigError: If its voxels are not those of the training.
    """
    sizes = [t.grid_size for t in config.data.test.voxelize if isinstance(t, GridSample)]
    if config.data.grid_size not in sizes[-1:]:
        size = f"{sizes[-1]:g} m" if sizes else "no size"
        raise ConfigError(
            f"the test protocol has voxels of {size}, and the network was trained on {config.data.grid_size:g} m",
            where="data.test.voxelize",
            hint=f"Write the protocol of this data set into {folder.path / 'config.yaml'}; training does not read it.",
        )


def _labels(store: FeatureStore, began: Mapping[str, Any]) -> LabelSet:
    """Classes as the run has them: a store without labels will do for predictions."""
    name = began["label_set"]
    raw = store.manifest.dataset.label_maps.get(name, {})
    return LabelSet(name, tuple(began["classes"]), raw, store.identity["dataset"]["name"])


def _choose(store: FeatureStore, splits: tuple[str, ...], pattern: str) -> tuple[str, ...]:
    in_splits = split_samples(store, splits)
    chosen = tuple(name for name in in_splits if fnmatchcase(name, pattern))
    if not chosen:
        raise ConfigError(
            f"none of the {len(in_splits)} samples matches {pattern!r}",
            where="--samples",
            hint=f"Their ids look like this: {', '.join(in_splits[:3])}",
        )
    return chosen


def find_checkpoint(folder: RunFolder, which: Literal["best", "last"]) -> Path:
    """Folder of a run's weights.

    Raises:
        CheckpointError: If nothing has been saved.
    """
    found = folder.checkpoints.find(which) or folder.checkpoints.find("last")
    if found is None:
        raise CheckpointError(
            "nothing has been saved here yet", where=folder.path, hint="Train on: ditr-cache train STORE RUN --resume"
        )
    return found.folder


def _data(store: FeatureStore, samples: tuple[str, ...], config: TrainConfig, label_set: str) -> FeatureStoreDataset:
    """Samples as they are stored: the transforms are the protocol's.

    Images are read for a network without them, too: their views decide which points count as visible.
    """
    data = config.data.model_copy(update={"label_set": label_set})
    cls = config.model.injection == "cls"
    return FeatureStoreDataset(store, samples, data, "eval", transforms=(), cls=cls, labels=False)
