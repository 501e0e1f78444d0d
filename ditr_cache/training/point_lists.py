# SPDX-License-Identifier: Apache-2.0
"""Files that say which points of a scene may be learned from: ScanNet's "limited annotations", and plainer ones.

The published files (`points20` and the like; Hou et al., arXiv 2012.09165) are what `torch.save` made of a dict of
NumPy arrays. torch refuses NumPy's constructors where nothing may be called, so stand-ins take their place that keep
the bytes and the name of a type. Anything else than a dict of lists of integers is refused, and nothing is ever run.

K points of a list.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditr_cache.errors import ConfigError

__all__ = ["read_point_lists"]

_WHERE = "data.annotations"
_TYPES = frozenset({"i8", "i4", "i2", "u8", "u4", "u2"})


def read_point_lists(path: Path) -> dict[str, NDArray[np.int64]]:
    """The points of every scene.

    Args:
        path: What `torch.save` made of a dict of arrays, tensors or lists; or an `.npz` of arrays; or a folder of
            `<scene>.txt` with a number a line.

    Returns:
        `[K]` positions by name of the scene.

    Raises:
        ConfigError: If it is none of these.
    """
    found: Any
    if path.is_dir():
        found = _read_folder(path)
    elif not path.is_file():
        raise ConfigError(f"no such file or folder: {path}", where=_WHERE)
    else:
        found = _read_npz(path) if path.suffix == ".npz" else _read_torch(path)
    if not (isinstance(found, Mapping) and found and all(isinstance(name, str) for name in found)):
        raise ConfigError(f"{path} is no dict of scenes and their points", where=_WHERE)
    return {name: _positions(name, value, path) for name, value in found.items()}


def _positions(name: str, value: Any, path: Path) -> NDArray[np.int64]:
    from torch import Tensor

    if isinstance(value, _Array):
        value = value.numbers()
    elif isinstance(value, Tensor):
        value = value.numpy()
    array = np.asarray(value) if isinstance(value, list | tuple | np.ndarray) else None
    if array is not None and array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    if array is None or array.ndim != 1 or array.dtype.kind not in "iu":
        raise ConfigError(f"{path} has no list of whole numbers for {name}", where=_WHERE)
    return array.astype(np.int64)


def _read_folder(path: Path) -> dict[str, list[int]]:
    found = {}
    for file in sorted(path.glob("*.txt")):
        try:
            found[file.stem] = [int(line) for line in file.read_text("utf-8").split()]
        except ValueError as error:
            raise ConfigError(f"{file} has a line that is no whole number", where=_WHERE) from error
    return found


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive.items())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is no .npz of arrays of numbers", where=_WHERE) from error


def _read_torch(path: Path) -> Any:
    import torch

    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_Type, "numpy.dtype"),
        (_Array, "numpy.ndarray"),
        (_new_array, "numpy.core.multiarray._reconstruct"),
        (_new_array, "numpy._core.multiarray._reconstruct"),
        # an array of nothing has bytes()
        (_no_bytes, "builtins.bytes"),
    ]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            # of pickles that torch did not write
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not what torch.save makes of a dict of scenes and their points; Python objects of other kinds "
            "are never loaded, because that can run any code",
            where=_WHERE,
            hint="Or give an .npz of arrays by scene, or a folder of <scene>.txt with a number a line.",
        ) from error


class _Type:
    """Stands in for `numpy.dtype`: remembers its name and its byte order."""

    def __init__(self, name: str = "", *_: object) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, byte order, ...)."""
        self.order = state[1]


class _Array:
    """Stands in for `numpy.ndarray`: keeps what it would have been made of."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """(version, shape, type, whether columns come first, bytes)."""
        _, self._shape, self._type, _, self._data = state

    def numbers(self) -> Any:
        """`[K]` if it is a list of integers, else None."""
        kind = self._type
        if not isinstance(kind, _Type) or kind.name not in _TYPES or not isinstance(self._data, bytes):
            return None
        array = np.frombuffer(self._data, np.dtype(f"{'>' if kind.order == '>' else '<'}{kind.name}"))
        return array if self._shape == array.shape else None


def _new_array(*_: object) -> _Array:
    """Stands in for what NumPy calls before it fills an array."""
    return _Array()


def _no_bytes() -> bytes:
    """Stands in for `bytes`, which given a number would allocate that many."""
    return b""
