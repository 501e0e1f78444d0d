# SPDX-License-Identifier: Apache-2.0
"""In what two stores differ, from their manifests alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ditr_cache.pipelines.share import open_source
from ditr_cache.store.identity import identity_difference
from ditr_cache.store.manifest import Manifest, block_items
from ditr_cache.store.receipt import Receipt

__all__ = ["Diff", "DiffReport"]


@dataclass(frozen=True, slots=True)
class DiffReport:
    """Two stores, A and B."""

    equal: bool
    """Whether settings and contents are the same."""
    manifests: tuple[str, str]
    digests: tuple[str, str]
    identity: tuple[str, ...]
    """A line for every setting that differs."""
    blocks_only_in_a: tuple[str, ...]
    blocks_only_in_b: tuple[str, ...]
    samples_only_in_a: tuple[str, ...]
    samples_only_in_b: tuple[str, ...]
    blocks_that_differ: Mapping[str, tuple[str, ...]]
    """Block id -> what of it differs: arrays, or its samples."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Diff:
    """Compares two stores. Uuids, generations and provenance are no difference.

    Args:
        a: Folder or URL.
        b: Folder or URL.
    """

    def __init__(self, a: str | os.PathLike[str], b: str | os.PathLike[str]) -> None:
        self._a, self._b = a, b

    def run(self) -> DiffReport:
        """Compare.

        Raises:
            StoreError: If one of them cannot be read.
        """
        a, b = open_source(self._a), open_source(self._b)
        mine, theirs = a.manifest.blocks, b.manifest.blocks
        identity = [
            line.replace("the store has", "A has").replace("asked for", "B has")
            for line in identity_difference(a.manifest.identity, b.manifest.identity)
        ]
        changed = {block: _difference(mine[block], theirs[block]) for block in mine if block in theirs}
        samples_a, samples_b = _samples(a.manifest), _samples(b.manifest)
        report = DiffReport(
            equal=False,
            manifests=(a.version, b.version),
            digests=(a.manifest.digest, b.manifest.digest),
            identity=tuple(identity),
            blocks_only_in_a=tuple(block for block in mine if block not in theirs),
            blocks_only_in_b=tuple(block for block in theirs if block not in mine),
            samples_only_in_a=tuple(sample for sample in samples_a if sample not in samples_b),
            samples_only_in_b=tuple(sample for sample in samples_b if sample not in samples_a),
            blocks_that_differ={block: what for block, what in changed.items() if what},
        )
        differs = report.identity or report.blocks_only_in_a or report.blocks_only_in_b or report.blocks_that_differ
        return DiffReport(**{**{name: getattr(report, name) for name in report.__slots__}, "equal": not differs})


def _difference(a: Receipt, b: Receipt) -> tuple[str, ...]:
    mine, theirs = block_items(a), block_items(b)
    arrays = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    # rows and hits have no hash of their own: that of their views stands for them
    return (*arrays, *(["samples"] if a.samples != b.samples else []))


def _samples(manifest: Manifest) -> dict[str, None]:
    return {sample.id: None for receipt in manifest.blocks.values() for sample in receipt.samples}
