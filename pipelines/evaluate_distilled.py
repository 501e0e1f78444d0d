# SPDX-License-Identifier: Apache-2.0
"""How well a distilled network says what the ViT sees, in numbers and in colours (paper, Fig. 3)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ditr_cache.errors import ConfigError, IdentityMismatchError
from ditr_cache.models.distiller import NOT_VISIBLE
from ditr_cache.pipelines.distilled_picture import draw_features, write_ply
from ditr_cache.pipelines.labelling import LabelOptions
from ditr_cache.pipelines.progress import Progress, Silent
from ditr_cache.store.identity import identity_difference
from ditr_cache.store.layout import block_file_name
from ditr_cache.store.reader import open_store
from ditr_cache.training.collate import collate
from ditr_cache.training.dataset import FeatureStoreDataset, Item, split_samples
from ditr_cache.training.distilled import load_distilled
from ditr_cache.training.distributed import pick_device
from ditr_cache.training.inference import evaluation_permutations
from ditr_cache.training.sampler import Draw
from ditr_cache.training.store_check import check_complete

__all__ = ["DistilledReport", "EvaluateDistilled", "SampleCosine", "is_distilled"]

_AT_ONCE = 8192
"""Points whose regressed features are in memory at a time."""


@dataclass(frozen=True, slots=True)
class SampleCosine:
    """One sample."""

    id: str
    cosine: float
    """Mean over visible voxels."""
    visible: int
    """Voxels that at least one of the drawn views sees."""
    voxels: int


@dataclass(frozen=True, slots=True)
class DistilledReport:
    """What came out."""

    run: str
    checkpoint: str
    """Folder of the weights."""
    store: str
    digest: str
    """Content digest of the store."""
    cosine: float
    """Mean over the visible voxels of all samples."""
    differences: tuple[str, ...]
    """How the store's features were made otherwise than those that were regressed."""
    samples: tuple[SampleCosine, ...]
    seconds: float
    device: str
    pictures: str | None
    """Where pictures were drawn."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class EvaluateDistilled:
    """Compares regressed with cached features, one point a voxel.

    Args:
        run: Folder of a run of `distill`.
        store: With features of the same network.
        options: Which samples, where; the plain protocol only.
        norms: Whose norm layers and head, where several data sets were distilled; None: those of the store's data set.
        pictures: Folder for a PNG and two PLY files of every sample; None draws nothing.
        progress: Who listens; counts samples.

    Raises:
        CheckpointError: If there is no distilled network.
        ConfigError: If the options name nothing, or it is not clear whose norm layers to take.
        IdentityMismatchError: If the store's features are of another network.
    """

    def __init__(
        self,
        run: Path,
        store: str | os.PathLike[str],
        options: LabelOptions | None = None,
        *,
        norms: str | None = None,
        pictures: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._options = options or LabelOptions()
        if self._options.protocol != "plain":
            raise ConfigError("distilled networks have no classes to sum up", where="--protocol")
        self._run, self._pictures, self._progress = run, pictures, progress or Silent()
        self._distilled = load_distilled(run, self._options.checkpoint)
        self._device = pick_device(self._options.device)
        self._model = self._distilled.model.to(self._device).eval()
        self._store = open_store(store, cache_dir=self._options.cache_dir, cache_size=self._options.cache_size)
        check_complete(self._store, allow_incomplete=self._options.allow_incomplete)
        self._condition = self._distilled.condition(norms, str(self._store.identity["dataset"]["name"]))
        self._differences = self._compare()
        config = self._distilled.config
        ids = split_samples(self._store, self._options.splits or config.data.val_splits)
        ids = tuple(name for name in ids if fnmatchcase(name, self._options.samples))
        if not ids:
            raise ConfigError(f"no sample matches {self._options.samples!r}", where="--samples")
        self._data = FeatureStoreDataset(self._store, ids, config.data, "eval", config.run.seed, labels=None)
        self._permutations = evaluation_permutations(self._model.backbone.config, config.run.seed)

    def _compare(self) -> tuple[str, ...]:
        """How the store differs from the one of the distillation that is most like it; one of the same network."""
        entries = [e for e in self._distilled.record["stores"] if self._condition in (None, e["name"])]
        mine = _made(self._store.identity)
        differences = [identity_difference(mine, _made(entry["identity"])) for entry in entries]
        least = min(differences, key=lambda lines: (any(line.startswith("backbone") for line in lines), len(lines)))
        network = [line for line in least if line.startswith("backbone")]
        if network:
            raise IdentityMismatchError(
                "not the features that were regressed:\n  " + "\n  ".join(network),
                where=self._store.root,
                hint="Name a store of the same backbone.",
            )
        return tuple(least)

    def run(self) -> DistilledReport:
        """Regress, compare, draw."""
        began, found = time.monotonic(), []
        self._progress.begin(len(self._data.sample_ids))
        try:
            for name in self._data.sample_ids:
                found.append(self._sample(name))
                self._progress.advance(1)
        finally:
            self._progress.end()
        visible = sum(sample.visible for sample in found)
        return DistilledReport(
            run=str(self._run),
            checkpoint=str(self._distilled.checkpoint),
            store=str(self._store.root),
            digest=self._store.digest,
            cosine=sum(sample.cosine * sample.visible for sample in found) / max(visible, 1),
            differences=self._differences,
            samples=tuple(found),
            seconds=round(time.monotonic() - began, 3),
            device=str(self._device),
            pictures=None if self._pictures is None else str(self._pictures),
        )

    @torch.inference_mode()
    def _sample(self, name: str) -> SampleCosine:
        item = self._data[Draw(0, 0, name)]
        batch = collate([item], self._data.config.features, condition=self._condition).to(self._device)
        cosine_N = self._model(batch, self._permutations)
        seen_N = cosine_N != NOT_VISIBLE
        if self._pictures is not None:
            x_NC = self._model.backbone(batch, self._permutations)
            head = self._model.head(self._condition)
            self._draw(name, item, (_unit(head(part)) for part in torch.split(x_NC, _AT_ONCE)))
        cosine = float(cosine_N[seen_N].double().mean()) if seen_N.any() else 0.0
        return SampleCosine(name, cosine, int(seen_N.sum()), len(seen_N))

    def _draw(self, name: str, item: Item, predicted: Iterator[NDArray[np.float32]]) -> None:
        assert self._pictures is not None
        self._pictures.mkdir(parents=True, exist_ok=True)
        receipt, position = self._store.samples.locate(name)
        block = self._store.block(receipt)
        pose_V44, sample_V = (block.array(key).read_all() for key in ("world_to_camera", "view_sample"))
        points = block.read_points(position)
        assert points is not None
        rows_PD = _unit(torch.from_numpy(np.asarray(item.features.dequantise().rows)).float())
        picture = draw_features(points, item.sample, rows_PD, predicted, list(pose_V44[sample_V == position]), name)
        path = self._pictures / block_file_name(name)
        picture.image.save(f"{path}.png")
        write_ply(Path(f"{path}-cached.ply"), points, picture.seat, picture.cached)
        write_ply(Path(f"{path}-predicted.ply"), points, picture.seat, picture.predicted)


def _made(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a point's feature, of whatever data set."""
    return {key: identity[key] for key in ("backbone", "images", "visibility")}


def is_distilled(run: Path) -> bool:
    """Whether a folder is that of a run of `distill`."""
    from ditr_cache.training.run_folder import RunFolder

    folder = RunFolder(run)
    return folder.exists and folder.run().get("kind") == "distill"


def _unit(x_ND: torch.Tensor) -> NDArray[np.float32]:
    """Rows of length one: the loss knows nothing of their lengths."""
    unit: NDArray[np.float32] = torch.nn.functional.normalize(x_ND.float(), dim=1).cpu().numpy()
    return unit
