# SPDX-License-Identifier: Apache-2.0
"""Training with less: some scenes only, or the labels of some points only (ScanNet's data-efficient benchmark).

N points of a sample, K of which may be learned from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ditr_cache.config import canonical_json
from ditr_cache.errors import ConfigError
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.point_lists import read_point_lists
from ditr_cache.training.sample import Sample

__all__ = ["Annotations", "EveryPoint", "ListedPoints", "limit_scenes", "read_scenes"]

_SHOWN = 3


class Annotations(Protocol):
    """Which labels of a sample may be learned from."""

    def limit(self, sample_id: str, sample: Sample) -> Sample:
        """The labelled sample with no others; its points are all that the store has, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class EveryPoint:
    """All labels."""

    def limit(self, sample_id: str, sample: Sample) -> Sample:
        """As it is."""
        return sample


@dataclass(frozen=True, slots=True, eq=False)
class ListedPoints:
    """Those of listed points."""

    points: Mapping[str, NDArray[np.int64]]
    """`[K]` positions by sample."""

    @classmethod
    def read(cls, path: Path, store: FeatureStore, sample_ids: Sequence[str]) -> ListedPoints:
        """Take the lists of some samples from a file.

        Args:
            path: As `read_point_lists`. What it says of other samples is left alone.
            store: Knows how many points they have.
            sample_ids: Each needs a list.

        Raises:
            ConfigError: If the file cannot be read, lacks a sample, or lists points that a sample does not have.
        """
        found = read_point_lists(path)
        missing = [name for name in sample_ids if name not in found]
        if missing:
            raise ConfigError(
                f"{path} lists no points of {_some(missing)}",
                where="data.annotations",
                hint=f"It has {_some(list(found))}. Leave samples out of training with data.scenes.",
            )
        for name in sample_ids:
            have = store.samples[name].points
            low, high = int(found[name].min(initial=0)), int(found[name].max(initial=0))
            if low < 0 or high >= max(have, 1):
                raise ConfigError(
                    f"{path} lists point {low if low < 0 else high} of {name}, which has points 0 to {have - 1}",
                    where="data.annotations",
                    hint="Lists count the points of a scene as its source has them (ScanNet: vertices of the mesh).",
                )
        return cls({name: found[name] for name in sample_ids})

    def limit(self, sample_id: str, sample: Sample) -> Sample:
        """-1 but for the listed points, which transforms are told of: few as they are, none should be thinned out."""
        assert sample.segment is not None
        listed_N = np.zeros(len(sample), bool)
        listed_N[self.points[sample_id]] = True
        known_N = np.where(listed_N, sample.segment, np.int32(-1))
        return sample.replace(segment=known_N, listed=listed_N)

    def digest(self) -> str:
        """sha256 of samples and points."""
        plain = {name: sorted(set(points.tolist())) for name, points in self.points.items()}
        return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def read_scenes(path: Path) -> tuple[str, ...]:
    """Names in a text file, one a line; empty lines are left out.

    Raises:
        ConfigError: If it cannot be read, or names nothing.
    """
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no readable text file ({type(error).__name__})", where="data.scenes") from error
    if not names:
        raise ConfigError(f"{path} names no scene", where="data.scenes")
    return names


def limit_scenes(sample_ids: Sequence[str], path: Path) -> tuple[str, ...]:
    """The samples that a file names.

    Args:
        sample_ids: What may be trained on.
        path: As `read_scenes`. A name is that of a sample, or of a scene with all its samples: what stands before the
            slash of their ids.

    Returns:
        Some of `sample_ids`, in their order.

    Raises:
        ConfigError: As `read_scenes`; or if a name is none of theirs.
    """
    wanted = set(read_scenes(path))
    known = {part for name in sample_ids for part in (name, name.partition("/")[0])}
    unknown = sorted(wanted - known)
    if unknown:
        raise ConfigError(
            f"{path} names {_some(unknown)}, and no training sample is called so",
            where="data.scenes",
            hint=f"Training samples: {_some(list(sample_ids))}.",
        )
    return tuple(name for name in sample_ids if name in wanted or name.partition("/")[0] in wanted)


def _some(names: Sequence[str]) -> str:
    """A few of many."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
