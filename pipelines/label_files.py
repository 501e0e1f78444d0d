# SPDX-License-Identifier: Apache-2.0
"""Predicted labels as files: NumPy, PLY, SemanticKITTI, nuScenes.

Shape letters: N points, K classes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import ConfigError
from ditr_cache.pipelines.palette import class_colours
from ditr_cache.types import Int32, PointCloud

__all__ = ["FORMATS", "LabelFormat", "LabelSet", "encoder", "raw_ids"]

LabelFormat = Literal["npy", "ply", "label", "lidarseg", "lidarseg-challenge"]
"""`npy`: int32 classes. `ply`: points with class colours and classes. `label`: SemanticKITTI's uint32 raw ids.
`lidarseg`: nuScenes' uint8 raw ids, as in its own label files. `lidarseg-challenge`: uint8 class + 1, as the benchmark
wants them."""
FORMATS: tuple[LabelFormat, ...] = get_args(LabelFormat)

_SUFFIXES: Mapping[LabelFormat, str] = {
    "npy": ".npy",
    "ply": ".ply",
    "label": ".label",
    "lidarseg": "_lidarseg.bin",
    "lidarseg-challenge": "_lidarseg.bin",
}
_NAMESAKES = {"semantic_kitti": frozenset({20})}
"""Raw ids that are called like their class, where that is not its lowest: other-vehicle is 20, and 13 is bus."""


@dataclass(frozen=True, slots=True)
class LabelSet:
    """What a store says of the labels that a network was trained on."""

    name: str
    """Array, e.g. `segment`."""
    classes: tuple[str, ...]
    """K names."""
    raw: Mapping[str, int]
    """Raw id -> class, -1 for none; empty where the data set's files hold classes."""
    dataset: str
    """Name of the data set."""


def encoder(form: LabelFormat, labels: LabelSet) -> tuple[str, Callable[[Int32, PointCloud], bytes]]:
    """The suffix of a format's files, and what turns a cloud's classes `[N]` and points into one.

    Raises:
        ConfigError: If the format needs raw ids, and there are none, or they do not fit the format.
    """
    if form == "npy":
        return _SUFFIXES[form], lambda label_N, _: _npy(label_N)
    if form == "ply":
        return _SUFFIXES[form], lambda label_N, points: _ply(label_N, points, len(labels.classes))
    if form == "lidarseg-challenge":
        id_K, dtype = np.arange(1, len(labels.classes) + 1), "<u1"
    else:
        id_K, dtype = raw_ids(labels), {"label": "<u4", "lidarseg": "<u1"}[form]
    highest = {"label": 0xFFFF, "lidarseg": 0xFF, "lidarseg-challenge": 0xFF}[form]
    if id_K.max() > highest:
        raise ConfigError(f"raw id {id_K.max()} does not fit format {form}, whose ids end at {highest}")
    return _SUFFIXES[form], lambda label_N, _: id_K.astype(dtype)[label_N].tobytes()


def raw_ids(labels: LabelSet) -> NDArray[np.int64]:
    """`[K]` one raw id for each class: the one that is called like it, else the lowest.

    Raises:
        ConfigError: If there are no raw ids, or a class has none.
    """
    if not labels.raw:
        raise ConfigError(
            f"there are no raw ids for {labels.name}: the files of the data set hold classes",
            hint="Take the format npy or ply.",
        )
    namesakes = _NAMESAKES.get(labels.dataset, frozenset())
    found: dict[int, int] = {}
    for raw, label in sorted((int(raw), label) for raw, label in labels.raw.items()):
        if label not in found or raw in namesakes:
            found[label] = raw
    lost = [name for k, name in enumerate(labels.classes) if k not in found]
    if lost:
        raise ConfigError(f"no raw id stands for {', '.join(lost)}")
    return np.array([found[k] for k in range(len(labels.classes))], np.int64)


def _npy(label_N: Int32) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, label_N.astype("<i4"), allow_pickle=False)
    return buffer.getvalue()


def _ply(label_N: Int32, points: PointCloud, classes: int) -> bytes:
    """Coordinates of the world: doubles where the points have an origin of their own, which floats could not hold."""
    real, name = ("<f8", "double") if points.origin.any() else ("<f4", "float")
    channels = ("red", "green", "blue")
    row = np.dtype([(axis, real) for axis in "xyz"] + [(c, "u1") for c in channels] + [("label", "<i4")])
    out_N = np.empty(len(label_N), row)
    coord_N3 = points.coord + points.origin
    colour_N3 = class_colours(classes)[label_N]
    for i, axis in enumerate("xyz"):
        out_N[axis] = coord_N3[:, i]
    for i, channel in enumerate(channels):
        out_N[channel] = colour_N3[:, i]
    out_N["label"] = label_N
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(label_N)}"]
    lines += [f"property {name} {axis}" for axis in "xyz"]
    lines += [f"property uchar {channel}" for channel in channels]
    lines += ["property int label", "end_header", ""]
    return "\n".join(lines).encode("ascii") + out_N.tobytes()
