# SPDX-License-Identifier: Apache-2.0
"""Is this the store that was asked for: complete, of the right identity, with the right points?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ditr_cache.config import canonical_json
from ditr_cache.errors import CheckpointError, IdentityMismatchError, IncompleteStoreError
from ditr_cache.store.identity import identity_difference
from ditr_cache.store.reader import FeatureStore
from ditr_cache.training.config import StoreExpectation

__all__ = [
    "check_classes",
    "check_complete",
    "check_expected",
    "check_limits",
    "check_same",
    "coordinates",
    "coordinates_digest",
]

_SHOWN = 10


def coordinates(store: FeatureStore, splits: Iterable[str]) -> dict[str, str]:
    """Sample id -> digest of its coordinates, for all samples of some splits."""
    wanted = set(splits)
    return {info.id: info.coord_sha256 for info in store.samples.values() if info.split in wanted}


def coordinates_digest(found: Mapping[str, str]) -> str:
    """One digest of all: which samples there are, and where their points lie, in which order."""
    return hashlib.sha256(canonical_json(sorted(found.items())).encode()).hexdigest()


def check_complete(store: FeatureStore, *, allow_incomplete: bool) -> int:
    """How many planned blocks are missing.

    Raises:
        IncompleteStoreError: If any are, and that is not allowed.
    """
    missing = len(store.manifest.planned)
    if missing and not allow_incomplete:
        raise IncompleteStoreError(
            f"{missing} of {missing + len(store.manifest.blocks)} planned blocks are not there",
            where=store.root,
            hint="Extract them by giving the extract command again, or train on what is there: --allow-incomplete",
        )
    return missing


def check_expected(store: FeatureStore, expected: StoreExpectation, digest: str) -> None:
    """Compare a store with the `store` section of a configuration.

    Args:
        store: The store.
        expected: What the configuration asks for; what it does not name is free.
        digest: Of the coordinates of the samples that are read.

    Raises:
        IdentityMismatchError: With every difference.
    """
    wanted = json.loads(canonical_json(expected.identity))
    lines = identity_difference(_parts(store.identity, wanted), wanted)
    for name, have, want in (
        ("content digest", store.digest, expected.digest),
        ("digest of the coordinates", digest, expected.coordinates),
    ):
        if want is not None and have != want:
            lines.append(f"{name}: the store has {have}, asked for {want}")
    if lines:
        raise IdentityMismatchError(
            "not the store that the settings ask for:\n  " + "\n  ".join(lines),
            where=store.root,
            hint="Name another store, or change the section `store` of the settings (-s store.identity.KEY=VALUE).",
        )


def check_same(
    store: FeatureStore, identity: Mapping[str, Any], samples: Mapping[str, str], found: Mapping[str, str]
) -> None:
    """Compare a store with the one that a run began with.

    Args:
        store: The store.
        identity: Identity of the store that the run began with.
        samples: Its samples and the digests of their coordinates.
        found: Those of `store`.

    Raises:
        IdentityMismatchError: With every difference.
    """
    lines = identity_difference(store.identity, identity)
    gone = [key for key in samples if key not in found]
    new = [key for key in found if key not in samples]
    moved = [key for key in samples if key in found and found[key] != samples[key]]
    for what, keys in (("missing", gone), ("new", new), ("with other coordinates", moved)):
        if keys:
            some = ", ".join(keys[:_SHOWN]) + ", ..." * (len(keys) > _SHOWN)
            lines.append(f"{len(keys)} sample{'s' * (len(keys) != 1)} {what}: {some}")
    if lines:
        raise IdentityMismatchError(
            "not the store that the run began with:\n  " + "\n  ".join(lines),
            where=store.root,
            hint="Name the store that it began with, or a new run folder.",
        )


def check_classes(store: FeatureStore, label_set: str, classes: Sequence[str]) -> None:
    """Compare the classes of a store with those of a run: the numbers must mean the same.

    Args:
        store: The store; one that does not name its classes passes.
        label_set: That of the run.
        classes: Those of the run.

    Raises:
        IdentityMismatchError: With every difference.
    """
    pairs = enumerate(zip_longest(store.class_names.get(label_set, classes), classes, fillvalue="none"))
    lines = [f"{k}: the store has {have}, the run has {want}" for k, (have, want) in pairs if have != want]
    if lines:
        raise IdentityMismatchError(
            f"{label_set} of the store has other classes than the run:\n  " + "\n  ".join(lines[:_SHOWN]),
            where=store.root,
            hint="Name the store that the run began with.",
        )


def check_limits(began: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare the files that limit training with those that a run began with.

    Args:
        began: Digests of what they said, by setting.
        now: Of what they say.

    Raises:
        CheckpointError: If one says something else.
    """
    changed = [f"data.{name}" for name in sorted({*began, *now}) if began.get(name) != now.get(name)]
    if changed:
        raise CheckpointError(
            f"the file of {' and that of '.join(changed)} no longer says what it said when the run began",
            hint="Put it back as it was, or name a new run folder.",
        )


def _parts(have: Any, wanted: Any) -> Any:
    """What of `have` the settings speak of."""
    if isinstance(have, Mapping) and isinstance(wanted, Mapping):
        return {key: _parts(have[key], value) for key, value in wanted.items() if key in have}
    return have
