# SPDX-License-Identifier: Apache-2.0
"""What a run intends, as documents: identity and plan of the store, settings of its blocks, provenance."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ditr_cache.backbones import Backbone
from ditr_cache.config import ExtractConfig
from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import ConfigError, DatasetError
from ditr_cache.images import decoder_name, target_size, variants
from ditr_cache.pipelines.events import BlockState
from ditr_cache.pipelines.feeder import select_views
from ditr_cache.store.encode import DRAWN_VIEWS, BlockSettings
from ditr_cache.store.layout import FORMAT_VERSION, block_file_name
from ditr_cache.store.manifest import DatasetEntry, Manifest, Plan, PlannedBlock, PlannedSample
from ditr_cache.store.receipt import Receipt
from ditr_cache.store.writer import StoreWriter
from ditr_cache.types import BlockPlan

__all__ = [
    "block_settings",
    "changed_blocks",
    "check_plan",
    "check_shard",
    "check_size",
    "count_images",
    "dataset_entry",
    "open_run",
    "plan_document",
    "plan_sha256",
    "provenance",
    "store_identity",
]


def open_run(
    dataset: Dataset,
    plan: Sequence[BlockPlan],
    location: Path | str,
    config: ExtractConfig,
    backbone: Backbone,
    shard: tuple[int, int],
    *,
    redo: bool,
    retry: bool = False,
    single_writer: bool = False,
) -> tuple[StoreWriter, Sequence[BlockPlan], list[BlockState]]:
    """Open or create the store and record what the run intends; nothing is written if any of it is refused.

    Returns:
        The store; the blocks of this shard; those of them that are not there, and to `retry` those that are incomplete
        or of other data, or to `redo` all of them.

    Raises:
        IdentityMismatchError: If the store was made with other settings.
        DatasetError: If the plan is empty, or two of its blocks would be one file.
        ConfigError: If the image size fits no patches of this backbone.
    """
    check_plan(plan, dataset.name)
    check_size(config, backbone)
    store = StoreWriter.create(location, store_identity(config, dataset, backbone), single_writer=single_writer)
    store.add_plan(plan_document(dataset, plan, config))
    mine = plan[shard[0] :: shard[1]]
    done: dict[str, Receipt] = {}
    for receipt in store.receipts():
        if receipt.block not in done or receipt.generation > done[receipt.block].generation:
            done[receipt.block] = receipt
    todo = []
    for block in mine:
        there = done.get(block.id)
        if there is None:
            todo.append(BlockState(block, 0))
        elif redo or (retry and (there.dropped or has_changed(block, there, config))):
            todo.append(BlockState(block, there.generation + 1))
    return store, mine, todo


def has_changed(block: BlockPlan, there: Receipt, config: ExtractConfig) -> bool:
    """Whether the data set has other samples, views or splits than it had when a block was made."""
    noted: dict[str, set[str | None]] = {}
    for note in (*there.dropped, *there.skipped):
        noted.setdefault(note.sample, set()).add(note.view)
    made = {s.id: (s.split, {*s.views, *noted.get(s.id, ())}) for s in there.samples}
    whole = {sample for sample, views in noted.items() if None in views}
    planned = {s.id: (s.split, set(select_views(s, config))) for s in block.samples if s.id not in whole}
    return planned != made


def changed_blocks(plan: Sequence[BlockPlan], manifest: Manifest, config: ExtractConfig) -> tuple[str, ...]:
    """Ids of the blocks that are of other data than the data set has now."""
    there = manifest.blocks
    return tuple(block.id for block in plan if block.id in there and has_changed(block, there[block.id], config))


def store_identity(config: ExtractConfig, dataset: Dataset, backbone: Backbone) -> dict[str, Any]:
    """Everything that decides what the features are. A store of another identity is refused, with the difference."""
    visibility = config.visibility.model_dump(mode="json")
    if not config.visibility.zbuffer:
        del visibility["zbuffer_margin"], visibility["zbuffer_cell"]
    images = config.images.model_dump(mode="json")
    del images["budget" if config.images.size else "size"]
    return {
        "format_version": FORMAT_VERSION,
        "dataset": {"name": dataset.name, "version": dataset.version},
        "backbone": backbone.identity.to_dict(),
        "images": {**images, "mean": list(backbone.mean), "std": list(backbone.std)},
        "variants": config.variants.model_dump(mode="json"),
        "frames": config.frames.model_dump(mode="json"),
        "visibility": visibility,
        "features": {"dtype": _dtype(config), "compress": config.store.compress, "points": config.store.points},
    }


def block_settings(block: BlockPlan, config: ExtractConfig, backbone: Backbone) -> BlockSettings:
    """How the features of one block are kept: a function of the plan, never of what survived."""
    most = max((len(select_views(sample, config)) for sample in block.samples), default=0)
    return BlockSettings(
        dim=backbone.dim,
        dtype=_dtype(config),
        compress=config.store.compress,
        points=config.store.points,
        class_token=backbone.has_class_token,
        align_views=most > DRAWN_VIEWS,
    )


def check_shard(shard: tuple[int, int]) -> None:
    """Refuse a part that does not exist.

    Raises:
        ConfigError: If not 0 <= i < n.
    """
    if not 0 <= shard[0] < shard[1]:
        raise ConfigError(f"shard {shard[0]}/{shard[1]}: i/n needs 0 <= i < n")


def check_plan(plan: Sequence[BlockPlan], where: str) -> None:
    """Block ids become file names, also on file systems that ignore case.

    Raises:
        DatasetError: If two ids are one such name, or there are none.
    """
    names = [block_file_name(block.id).lower() for block in plan]
    if len(set(names)) != len(names):
        twice = next(block.id for block, name in zip(plan, names, strict=True) if names.count(name) > 1)
        raise DatasetError(f"block {twice!r} appears twice once case is ignored", where=where)
    if not plan:
        raise DatasetError("the data set has no samples", where=where)


def check_size(config: ExtractConfig, backbone: Backbone) -> None:
    """Refuse an image size before there is a store of it that suits no frame.

    Raises:
        ConfigError: If it is not a multiple of the patch size.
    """
    if config.images.size is not None:
        target_size(*config.images.size, backbone.patch_size, config.images)


def plan_document(dataset: Dataset, plan: Sequence[BlockPlan], config: ExtractConfig) -> Plan:
    """The plan, with the views that are extracted and what the labels mean."""
    return Plan(
        dataset=dataset_entry(dataset),
        blocks=tuple(
            PlannedBlock(
                id=block.id,
                samples=tuple(
                    PlannedSample(id=s.id, split=s.split, views=select_views(s, config)) for s in block.samples
                ),
            )
            for block in plan
        ),
    )


def plan_sha256(dataset: Dataset, plan: Sequence[BlockPlan], config: ExtractConfig) -> str:
    """By which processes know that they see the same data set."""
    return hashlib.sha256(plan_document(dataset, plan, config).to_bytes()).hexdigest()


def count_images(block: BlockPlan, config: ExtractConfig) -> int:
    """Images of a block: views times variants."""
    return len(variants(config.variants)) * sum(len(select_views(s, config)) for s in block.samples)


def provenance(config: ExtractConfig, backbone: Backbone) -> dict[str, str | int | float | bool | None]:
    """What is recorded with every block and never compared."""
    device = str(backbone.device)
    return {
        "ditr_cache": version("ditr-cache"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "device": torch.cuda.get_device_name(backbone.device) if backbone.device.type == "cuda" else device,
        "machine": platform.machine(),
        "decoder": decoder_name(),
        "batch_size": config.run.batch_size,
    }


def dataset_entry(dataset: Dataset) -> DatasetEntry:
    """What the labels mean."""
    return DatasetEntry(
        class_names={k: tuple(v) for k, v in dataset.class_names.items()},
        label_maps={k: {str(a): b for a, b in m.items()} for k, m in dataset.label_maps.items()},
    )


def _dtype(config: ExtractConfig) -> str:
    return {"f16": "float16", "int8": "int8"}[config.store.dtype]
