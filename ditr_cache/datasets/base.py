# SPDX-License-Identifier: Apache-2.0
"""What every data set reader offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ditr_cache.types import BlockPlan, Scene

__all__ = ["Dataset"]


class Dataset(Protocol):
    """A data set in its genuine on-disk layout.

    Readers are cheap to build and picklable; points are read by `load`, images only when a view's source is read.
    """

    @property
    def name(self) -> str:
        """Registry name; part of a store's identity."""
        ...

    @property
    def version(self) -> str:
        """Version or variant of the data (`v1.0-mini`, `sens`, a generator's parameters); part of the identity."""
        ...

    @property
    def preset(self) -> str:
        """Installed configuration (`configs/extract/<preset>.yaml`) with the official numbers for this layout."""
        ...

    @property
    def class_names(self) -> Mapping[str, tuple[str, ...]]:
        """Class names by label set (key of `PointCloud.segments`); label i is the i-th name, -1 is ignored."""
        ...

    @property
    def label_maps(self) -> Mapping[str, Mapping[int, int]]:
        """Raw label -> training label by label set; empty where the files hold training labels."""
        ...

    def plan(self) -> tuple[BlockPlan, ...]:
        """Every block with its samples and view names, without opening points or images.

        Raises:
            DatasetError: If the folder is not in this layout.
        """
        ...

    def load(self, sample_id: str) -> Scene:
        """One sample with its points and lazy views, in the order of its plan.

        Raises:
            SampleError: If this sample is unusable (truncated, empty or inconsistent files).
            OSError: If the medium fails.
        """
        ...
