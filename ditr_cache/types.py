# SPDX-License-Identifier: Apache-2.0
"""The values that cross rooms.

Shape suffixes used throughout the package: N points, V views, H hits, R rows of a block, P rows of one read,
D feature channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = [
    "BlockPlan",
    "Camera",
    "DepthSource",
    "FactoredFeatures",
    "ImageSource",
    "PointBatch",
    "PointCloud",
    "PointFeatures",
    "SamplePlan",
    "Scene",
    "View",
]

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]


class ImageSource(Protocol):
    """An image that is fetched only when asked for; small and picklable until then."""

    def read(self) -> bytes | UInt8:
        """Encoded bytes (JPEG, PNG) or decoded RGB `[H, W, 3]`.

        Raises:
            OSError: If the medium fails.
            FrameError: If the frame does not exist or is truncated.
        """
        ...


class DepthSource(Protocol):
    """A depth map that is fetched only when asked for."""

    def read(self) -> Float32:
        """Depth along z in metres, `[h, w]` at any resolution; 0 where there is none.

        Raises:
            OSError: If the medium fails.
            FrameError: If the frame does not exist or is truncated.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PointCloud:
    """N labelled points."""

    coord: Float32
    """`[N, 3]` metres, relative to `origin`."""
    origin: Float64 = field(default_factory=lambda: np.zeros(3))
    """`[3]` metres; zero for data that is float32 at its source."""
    color: UInt8 | None = None
    """`[N, 3]` RGB."""
    normal: Float32 | None = None
    """`[N, 3]` unit vectors."""
    strength: Float32 | None = None
    """`[N]` lidar return strength in the data set's own units."""
    segments: Mapping[str, Int32] = field(default_factory=dict)
    """Label sets by array name (`segment`, `segment20`, `segment200`), each `[N]`; -1 is ignored."""
    instance: Int32 | None = None
    """`[N]`; -1 is ignored."""

    def __len__(self) -> int:
        return len(self.coord)


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """A pinhole camera with OpenCV axes (x right, y down, z forward) and OpenCV distortion."""

    intrinsics: Float64
    """`[3, 3]` K, in pixels of the source image."""
    world_to_camera: Float64
    """`[4, 4]` T, metres."""
    height: int
    """H of the source image in pixels."""
    width: int
    """W of the source image in pixels."""
    distortion: Float64 = field(default_factory=lambda: np.zeros(8))
    """`[8]` k1 k2 p1 p2 k3 k4 k5 k6; zeros if none."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One posed image."""

    name: str
    """Unique in its scene."""
    camera: Camera
    image: ImageSource
    depth: DepthSource | None = None
    problem: str | None = None
    """Why this frame cannot be used, where the reader knows already (its camera then holds NaN)."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One sample: an indoor scene or an outdoor keyframe."""

    id: str
    points: PointCloud
    views: tuple[View, ...]
    """In recording order. Poses are as found: whoever uses them checks them."""


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """What a reader knows of a sample before it opens it."""

    id: str
    """Sample id, e.g. `scene0000_00` or `scene-0061/<token>`."""
    split: str
    """`train`, `val`, `test`, or what the data set calls it."""
    views: tuple[str, ...]
    """Names of all its views, in the order of `Scene.views`."""


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """Samples that are stored together: one indoor scene, or a run of consecutive outdoor keyframes."""

    id: str
    samples: tuple[SamplePlan, ...]


@dataclass(frozen=True, slots=True, eq=False)
class FactoredFeatures:
    """One feature a point as rows and an index: the dense `[N, D]` is `rows[index]`, zero where `index` is -1.

    NumPy arrays as read; torch tensors after `.to(device)`.
    """

    rows: Any
    """`[P, D]` float16 or float32, or int8 with `affine` and `row_view`."""
    index: Any
    """`[N]` int32 into `rows`; -1 where no drawn view sees the point."""
    affine: Any = None
    """`[G, 2, D]` float32 (offset, step), int8 only: x = offset + step * (q + 128)."""
    row_view: Any = None
    """`[P]` int32, which `affine` a row belongs to, int8 only."""

    def dequantise(self) -> FactoredFeatures:
        """The same features with floating-point rows; itself if they already are."""
        if self.affine is None:
            return self
        offset_PD, step_PD = self.affine[self.row_view, 0], self.affine[self.row_view, 1]
        if isinstance(self.rows, np.ndarray):
            rows_PD = offset_PD + step_PD * (self.rows.astype(np.float32) + np.float32(128))
        else:
            rows_PD = offset_PD + step_PD * (self.rows.float() + 128)
        return FactoredFeatures(rows_PD, self.index)

    def dense(self) -> NDArray[np.float16]:
        """`[N, D]` float16, zero rows for unseen points. NumPy only; for inspection and export, not for training."""
        rows_PD = np.asarray(self.dequantise().rows).astype(np.float16, copy=False)
        out_ND = np.zeros((len(self.index), rows_PD.shape[1]), np.float16)
        seen_N = self.index >= 0
        out_ND[seen_N] = rows_PD[self.index[seen_N]]
        return out_ND

    def to(self, device: torch.device | str) -> FactoredFeatures:
        """Torch tensors on `device`; rows stay as narrow as they are stored."""
        import torch

        def move(x: Any) -> Any:
            if x is None:
                return None
            tensor = x if isinstance(x, torch.Tensor) else torch.from_numpy(x)
            return tensor.to(device, non_blocking=True)

        return FactoredFeatures(move(self.rows), move(self.index), move(self.affine), move(self.row_view))


@dataclass(frozen=True, slots=True, eq=False)
class PointFeatures:
    """What one read of a sample gives."""

    features: FactoredFeatures
    view: Int32
    """`[N]` index of the base view that serves a point (into the sample's `view_names`); -1 unseen."""
    patch: Int32
    """`[N]` raster index of its patch in that view's grid; -1 unseen."""
    points: PointCloud | None
    """The stored points; None in a store without them."""
    cls: NDArray[np.float16] | None = None
    """`[V, D]` class tokens of the drawn views, in the order of the draw; only when asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class PointBatch:
    """B clouds one after the other, as a model sees them: torch tensors on one device."""

    grid_coord: torch.Tensor
    """`[N, 3]` int32 voxel coordinates, each cloud's from 0."""
    coord: torch.Tensor
    """`[N, 3]` float32 metres."""
    feat: torch.Tensor
    """`[N, C]` float32 input channels, e.g. colour and normal."""
    offset: torch.Tensor
    """`[B]` int64, where each cloud ends."""
    image: FactoredFeatures | None = None
    """Rows of all clouds; `index` `[N]` counts through them. None for a model without images."""
    cls: torch.Tensor | None = None
    """`[V, D]` class tokens of the drawn views of all clouds, for injection of class tokens only."""
    cls_offset: torch.Tensor | None = None
    """`[B]` int64, where each cloud's class tokens end."""
    segment: torch.Tensor | None = None
    """`[N]` int64 labels; -1 is ignored."""
    condition: str | None = None
    """Name of the data set, for norm layers of its own."""

    def to(self, device: torch.device | str) -> PointBatch:
        """The same on `device`."""

        def move(x: Any) -> Any:
            if isinstance(x, FactoredFeatures):
                return x.to(device)
            return x.to(device, non_blocking=True) if hasattr(x, "to") else x

        return PointBatch(*(move(getattr(self, name)) for name in self.__slots__))
