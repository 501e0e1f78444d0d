# SPDX-License-Identifier: Apache-2.0
"""Settings of the data path: which arrays, which views, which transforms. Defaults are the official ScanNet recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ditr_cache.training.transforms import (
    CenterShift,
    ChromaticAutoContrast,
    ChromaticJitter,
    ChromaticTranslation,
    ElasticDistortion,
    GridSample,
    NormalizeColor,
    RandomDropout,
    RandomFlip,
    RandomJitter,
    RandomRotate,
    RandomRotateTargetAngle,
    RandomScale,
    SphereCrop,
    Transform,
)

__all__ = ["CHANNELS", "DataConfig", "Feature", "TestConfig", "ViewsConfig"]

Feature = Literal["color", "normal", "coord", "strength"]
CHANNELS: dict[Feature, int] = {"color": 3, "normal": 3, "coord": 3, "strength": 1}
"""Channels of each input feature."""

_TRAIN: tuple[Transform, ...] = (
    CenterShift(),
    RandomDropout(dropout_ratio=0.2, dropout_application_ratio=0.2),
    RandomRotate(angle=(-1, 1), axis="z", center=(0, 0, 0), p=0.5),
    RandomRotate(angle=(-1 / 64, 1 / 64), axis="x", p=0.5),
    RandomRotate(angle=(-1 / 64, 1 / 64), axis="y", p=0.5),
    RandomScale(),
    RandomFlip(),
    RandomJitter(),
    ElasticDistortion(),
    ChromaticAutoContrast(),
    ChromaticTranslation(),
    ChromaticJitter(),
    GridSample(),
    SphereCrop(point_max=102_400),
    CenterShift(apply_z=False),
    NormalizeColor(),
)
_VAL: tuple[Transform, ...] = (
    CenterShift(),
    GridSample(keep="first"),
    CenterShift(apply_z=False),
    NormalizeColor(),
)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class ViewsConfig(_Model):
    """Which views a sample is seen by (paper section 3.1)."""

    count: int | None = Field(10, ge=1)
    """Views drawn at random, in random order, each time that a sample is trained on; None: all, in recording order,
    as outdoors."""
    evaluation_count: int | None = Field(10, ge=1)
    """Views taken evenly in evaluation; None: all."""
    pick: Literal["random", "strided"] = "random"
    """How training draws; evaluation always takes `strided`."""
    rule: Literal["last", "random"] = "last"
    """Which drawn view serves a point: the `last` that sees it (official), or a `random` one for every point alone."""
    variants: Literal["random"] | Annotated[int, Field(ge=0)] = 0
    """Image variant of the drawn views in training: one number for all, or `random`, drawn for each. Evaluation: 0."""


class TestConfig(_Model):
    """The official test protocol: fragments of every turned, scaled and mirrored copy of a cloud."""

    __test__ = False  # pytest takes it for tests by its name

    before: tuple[Transform, ...] = (CenterShift(), NormalizeColor())
    """Once a cloud."""
    rotations: tuple[float, ...] = Field((0.0, 0.5, 1.0, 1.5), min_length=1)
    """Angles about z, in half turns."""
    scales: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.95, 1.0, 1.05), min_length=1)
    """Factors."""
    flip: Literal["none", "once", "each"] = "once"
    """Mirrored copies (x and y): `once` adds one that is neither turned nor scaled, `each` one of every copy."""
    voxelize: tuple[Transform, ...] = (GridSample(keep="all"),)
    """What gives every point of a copy its voxel, before it is divided into fragments."""
    after: tuple[Transform, ...] = (CenterShift(apply_z=False),)
    """For every fragment."""

    def augmentations(self) -> tuple[tuple[Transform, ...], ...]:
        """The transforms of every copy: 13 with the defaults (ScanNet)."""
        mirror = (RandomFlip(p=1),)
        copies: list[tuple[Transform, ...]] = [
            (
                *((RandomRotateTargetAngle(angle=(a,), center=(0, 0, 0), p=1),) if a else ()),
                *((RandomScale(scale=(s, s)),) if s != 1 else ()),
            )
            for s in self.scales
            for a in self.rotations
        ]
        if self.flip == "each":
            copies += [(*copy, *mirror) for copy in copies]
        return (*copies, mirror) if self.flip == "once" else tuple(copies)


class DataConfig(_Model):
    """From a store to batches."""

    features: tuple[Feature, ...] = Field(("color", "normal"), min_length=1)
    """Input channels of the network, in this order."""
    label_set: str | None = None
    """Array of labels, e.g. `segment200`; None: the store's only one."""
    train_splits: tuple[str, ...] = Field(("train",), min_length=1)
    """Splits of the store to train on."""
    val_splits: tuple[str, ...] = Field(("val",), min_length=1)
    """Splits of the store to evaluate on."""
    scenes: Path | None = None
    """Text file with the names of scenes or samples to train on, one a line; null: all. (ScanNet's `limited
    reconstructions`.) Evaluation is as ever."""
    annotations: Path | None = None
    """File with the points of every training sample whose labels may be known; null: all. (ScanNet's `limited
    annotations`: `points20` and the like; or an .npz, or a folder of <sample>.txt.) Evaluation is as ever."""
    views: ViewsConfig = ViewsConfig()
    """Which views a sample is seen by."""
    loop: int = Field(1, ge=1)
    """How often a pass goes through every sample (8 in the official ScanNet recipe: 800 epochs in 100 passes)."""
    mix_prob: float = Field(0.8, ge=0, le=1)
    """How often the clouds of a batch are merged two by two (Mix3D)."""
    train: tuple[Transform, ...] = _TRAIN
    """Transforms of training, in order; they must include `grid_sample`."""
    val: tuple[Transform, ...] = _VAL
    """Transforms of validation, in order; with `grid_sample` keeping the `first` point of a voxel."""
    test: TestConfig = TestConfig()
    """The official test protocol."""

    @model_validator(mode="after")
    def _voxels(self) -> DataConfig:
        names = ("train", "val")
        for name in names:
            if not any(isinstance(t, GridSample) and t.keep != "all" for t in getattr(self, name)):
                raise ValueError(f"{name} needs a grid_sample that keeps one point of a voxel")
        sizes = {name: [t.grid_size for t in getattr(self, name) if isinstance(t, GridSample)][-1] for name in names}
        if sizes["train"] != sizes["val"]:
            raise ValueError(f"train has voxels of {sizes['train']:g} m, val of {sizes['val']:g} m")
        if len(set(self.features)) < len(self.features):
            raise ValueError("features names one twice")
        return self

    @property
    def channels(self) -> int:
        """Input channels of the network."""
        return sum(CHANNELS[name] for name in self.features)

    @property
    def grid_size(self) -> float:
        """Edge of the voxels that the network is trained on, metres."""
        return next(t.grid_size for t in reversed(self.train) if isinstance(t, GridSample))
