# SPDX-License-Identifier: Apache-2.0
"""Where ScanNet's scenes lie, in the three arrangements that are in use.

- `pointcept`: `{train,val,test}/<scene>/coord.npy ...` with `scannet_images/<scene>/{color,depth,pose,intrinsic}`
  beside or below. The source is either of the two folders, or one that holds both (points as `scannet` or
  `scannet_pointcept`).
- `sens`: `scans/<scene>/<scene>.sens` with `<scene>_vh_clean_2.ply`. The source is the folder above `scans`, `scans`
  itself, or one scene.
- `exported`: as `sens`, with `color/`, `depth/`, `pose/` and `intrinsic/` in the scene's folder in place of the
  recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ditr_cache.datasets.files import plain_name
from ditr_cache.errors import DatasetError

__all__ = ["Layout", "SceneFiles", "find_layout"]

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """The files of one scene."""

    id: str
    split: str
    points: Path
    """Folder of `.npy` arrays, or `<scene>_vh_clean_2.ply`."""
    frames: Path | None
    """`<scene>.sens`, or a folder with `color`, `depth`, `pose` and `intrinsic`; None if the scene has no frames."""


@dataclass(frozen=True, slots=True)
class Layout:
    """All scenes of a source, in one arrangement."""

    version: str
    """`pointcept`, `sens` or `exported`."""
    evidence: str
    scenes: tuple[SceneFiles, ...]
    categories: Path | None
    """`scannetv2-labels.combined.tsv`, where there is one."""


def find_layout(source: Path) -> Layout | None:
    """The arrangement that `source` is in, or None.

    Raises:
        DatasetError: If a scene is there twice.
        OSError: If the medium fails.
    """
    layout = _pointcept(source) or _scans(source)
    if layout is not None:
        seen: set[str] = set()
        for scene in layout.scenes:
            if scene.id in seen:
                raise DatasetError(f"scene {scene.id} is there twice", where=source)
            seen.add(plain_name(scene.id, source))
    return layout


def _pointcept(source: Path) -> Layout | None:
    above = [source.parent] if source.name == "scannet_images" else []
    for points in (source, *(base / name for base in (source, *above) for name in ("scannet_pointcept", "scannet"))):
        folders = [path.parent for split in _SPLITS for path in sorted(points.glob(f"{split}/*/coord.npy"))]
        if not folders:
            continue
        images = next((p for p in (points / "scannet_images", points.parent / "scannet_images") if p.is_dir()), None)
        scenes = tuple(
            SceneFiles(f.name, f.parent.name, f, images / f.name if images and (images / f.name).is_dir() else None)
            for f in folders
        )
        found = f"found {_short(folders[0] / 'coord.npy', source)} and {'no ' if images is None else ''}scannet_images"
        return Layout("pointcept", found, scenes, None)
    return None


def _scans(source: Path) -> Layout | None:
    folders = sorted({*_scene_folders(source)})
    recorded = [folder for folder in folders if _recording(folder).is_file()]
    exported = [folder for folder in folders if (folder / "color").is_dir() and _mesh(folder).is_file()]
    if not recorded and not exported:
        return None
    # a recording holds every frame, an export those that somebody chose: never both in one data set
    chosen = recorded or exported
    splits = _split_lists(source)
    scenes = tuple(
        SceneFiles(
            id=folder.name,
            split=splits.get(folder.name, "test" if folder.parent.name == "scans_test" else "train"),
            points=_mesh(folder),
            frames=_recording(folder) if recorded else folder,
        )
        for folder in chosen
    )
    first = _recording(chosen[0]) if recorded else chosen[0] / "color"
    tables = (base / "scannetv2-labels.combined.tsv" for base in _beside(source))
    categories = next((table for table in tables if table.is_file()), None)
    return Layout("sens" if recorded else "exported", f"found {_short(first, source)}", scenes, categories)


def _scene_folders(source: Path) -> Iterator[Path]:
    """Folders that could be a scene of a raw download."""
    if _recording(source).is_file() or _mesh(source).is_file():
        yield source
    for parent in (source, source / "scans", source / "scans_test"):
        if parent.is_dir():
            yield from (path for path in parent.iterdir() if path.is_dir())


def _recording(folder: Path) -> Path:
    return folder / f"{folder.name}.sens"


def _mesh(folder: Path) -> Path:
    return folder / f"{folder.name}_vh_clean_2.ply"


def _beside(source: Path) -> tuple[Path, ...]:
    return source, source.parent, source.parent.parent


def _split_lists(source: Path) -> dict[str, str]:
    """Splits by scene from the official `scannetv2_{train,val,test}.txt`, where they lie in or above the source."""
    out: dict[str, str] = {}
    for base in _beside(source):
        for split in _SPLITS:
            path = base / f"scannetv2_{split}.txt"
            if path.is_file():
                out |= dict.fromkeys(path.read_text("utf-8", "replace").split(), split)
        if out:
            break
    return out


def _short(path: Path, source: Path) -> str:
    return str(path.relative_to(source if path.is_relative_to(source) else source.parent))
