# SPDX-License-Identifier: Apache-2.0
"""Readers by name, and which one a folder is for.

Other packages add readers through the entry point group `ditr_cache.datasets`: name -> `module:Class`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ditr_cache.datasets.base import Dataset
from ditr_cache.errors import DatasetError

__all__ = ["READERS", "Guess", "guess_dataset", "open_dataset", "readers"]

READERS: Mapping[str, str] = {
    "nerfstudio": "ditr_cache.datasets.nerfstudio:Nerfstudio",
    "nuscenes": "ditr_cache.datasets.nuscenes:NuScenes",
    "scannet": "ditr_cache.datasets.scannet:ScanNet",
    "semantic_kitti": "ditr_cache.datasets.semantic_kitti:SemanticKitti",
    "synthetic": "ditr_cache.datasets.synthetic:SyntheticRooms",
}
"""Built-in readers: name -> where its class is, imported only when it is wanted."""
GROUP = "ditr_cache.datasets"


@dataclass(frozen=True, slots=True)
class Guess:
    """Which reader a source is for, and why."""

    name: str
    """Registry name."""
    evidence: str
    """A short sentence, e.g. `found v1.0-mini/sample_data.json`."""


def readers() -> Mapping[str, str]:
    """Every reader there is: the built-in ones, and those of other packages that do not take their names."""
    return {**{point.name: point.value for point in entry_points(group=GROUP)}, **READERS}


def open_dataset(source: str | Path, name: str = "auto") -> Dataset:
    """Open a data set.

    Args:
        source: Its folder, or what a reader without folder takes (`synthetic:...`).
        name: Registry name; `auto` guesses from the files (`guess_dataset` says why).

    Raises:
        DatasetError: If there is no such folder or reader, nothing or more than one thing fits, or the reader refuses.
    """
    chosen = guess_dataset(source).name if name == "auto" else name
    known = readers()
    if chosen not in known:
        raise DatasetError(f"unknown data set {chosen!r}", hint=_supported())
    is_folder = not _names_reader(source, known)
    reader = _load(chosen, known[chosen])
    dataset: Dataset = reader(_folder(source) if is_folder else str(source))
    return dataset


def guess_dataset(source: str | Path) -> Guess:
    """Say which reader a source is for.

    Raises:
        DatasetError: If there is no such folder, or nothing or more than one thing fits.
    """
    known = readers()
    prefix = _names_reader(source, known)
    if prefix is not None:
        return Guess(prefix, f"the source starts with {prefix}:")
    folder = _folder(source)
    guesses: list[Guess] = []
    broken: list[str] = []
    for name, target in known.items():
        try:
            find = getattr(_load(name, target), "evidence", None)
        except DatasetError as error:
            broken.append(error.what)
            continue
        evidence = None if find is None else find(folder.resolve())
        if evidence is not None:
            guesses.append(Guess(name, evidence))
    if len(guesses) == 1:
        return guesses[0]
    what = "; ".join(f"{guess.name}: {guess.evidence}" for guess in guesses)
    raise DatasetError(
        f"more than one kind of data set ({what})" if guesses else "no supported data set found in this folder",
        where=source,
        hint="\n".join([_supported(), *broken]),
    )


def _names_reader(source: str | Path, known: Mapping[str, str]) -> str | None:
    """The reader named in a source such as `synthetic:rooms=4`, unless a folder has that very name."""
    prefix, colon, _ = str(source).partition(":")
    return prefix if colon and prefix in known and not Path(source).exists() else None


def _folder(source: str | Path) -> Path:
    folder = Path(source)
    if not folder.exists():
        raise DatasetError("there is no such folder", where=source)
    if not folder.is_dir():
        raise DatasetError("not a folder", where=source)
    return folder


def _load(name: str, target: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DatasetError(f"the reader {name!r} ({target}) cannot be imported: {error}") from error


def _supported() -> str:
    return f"Supported: {', '.join(sorted(readers()))}. Force one with --dataset NAME."
