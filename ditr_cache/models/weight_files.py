# SPDX-License-Identifier: Apache-2.0
"""Files of weights: our safetensors, and the checkpoints of Pointcept and DITR.

An official checkpoint is a dict of `epoch`, `state_dict`, `optimizer`, `scheduler`, `scaler` and `best_metric_value`,
its names prefixed with `module.`. It is read with `weights_only`: nothing in it is ever called.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditr_cache.errors import WeightsError

__all__ = ["load_weights", "save_official", "save_weights", "with_backbone"]

_BACKBONE_ROOTS = ("embedding.", "stem.", "enc.", "dec.", "before.", "after.", "second.")
_TEACHER_AND_STUDENT = ("student.", "teacher.")
_PT_V3M2_MARKS = ("mask_token", "stem.linear.", ".ls1.", ".ls2.")


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in a file, under the names of `Segmentor` (`backbone.*`, `seg_head.*`), on the CPU.

    Args:
        path: `.safetensors`, or what `torch.save` made of a state dict or of an official checkpoint.

    Raises:
        WeightsError: If there is no such file, it holds more than tensors and numbers, or weights of PT-v3m2.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError("no such file", where=path)
    return _canonical(_load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path), path)


def save_weights(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a state dict as safetensors, whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _write_whole(Path(path), lambda temporary: save_file(plain, temporary))


def save_official(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a state dict as Pointcept reads it: `{"state_dict": {"module.backbone...": ...}}`, whole or not at all.

    Args:
        state: Under the names of `Segmentor`.
        path: `.pth` by custom.

    Raises:
        WeightsError: If they are MinkUNet's, for which Pointcept has other names.
    """
    if any(name.startswith("backbone.stem.") for name in state):
        raise WeightsError("weights of MinkUNet have no official layout", hint="Keep them as .safetensors.")
    plain = {f"module.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _write_whole(Path(path), lambda temporary: torch.save({"state_dict": plain}, temporary))


def with_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of a backbone alone as `Segmentor` has them."""
    return {f"backbone.{n}" if n.startswith(_BACKBONE_ROOTS) else n: tensor for n, tensor in state.items()}


def _canonical(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Without `module.`, with `backbone.`."""
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if any(mark in name for name in plain for mark in _PT_V3M2_MARKS) or any(
        name.startswith(_TEACHER_AND_STUDENT) for name in plain
    ):
        raise WeightsError(
            "weights of PT-v3m2 (Sonata, Concerto, Utonia), another network than the PT-v3m1 of DITR: its stem is a "
            "linear layer, its pooling goes by grid cell, and its pre-training keeps a student and a teacher",
            where=path,
            hint="Take weights of PT-v3m1, whose names start with backbone.embedding.stem.conv.",
        )
    return with_backbone(plain)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"not a safetensors file, or damaged ({error})", where=path) from error


def _load_torch(path: Path) -> Mapping[str, Tensor]:
    # the best mIoU in an official checkpoint is a NumPy number, which torch refuses under weights_only
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_NumpyType, "numpy.dtype"),
        (_numpy_number, "numpy.core.multiarray.scalar"),
        (_numpy_number, "numpy._core.multiarray.scalar"),
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise WeightsError("not a checkpoint, or damaged", where=path) from error
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise WeightsError(
            f"holds Python objects besides weights ({named[1] if named else 'NumPy values'}), and those are never "
            "loaded, because that can run any code",
            where=path,
            hint="Where you trust the file, keep its weights alone: "
            "torch.save({'state_dict': torch.load(FILE, weights_only=False)['state_dict']}, 'weights.pth')",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"not a checkpoint, or damaged ({type(error).__name__})", where=path) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if (
        not isinstance(found, Mapping)
        or not found
        or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in found.items())
    ):
        raise WeightsError("holds no state dict", where=path)
    return found


class _NumpyType:
    """Stands in for `numpy.dtype` in a checkpoint: only remembers its name."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: the numbers in question are native."""


def _numpy_number(kind: _NumpyType, data: bytes) -> float:
    """Stands in for NumPy's way to pickle one number; anything but a float is refused."""
    formats = {"f8": "<d", "f4": "<f"}
    if kind.name not in formats or len(data) != int(kind.name[1]):
        raise pickle.UnpicklingError("a NumPy value that is no float")
    return float(struct.unpack(formats[kind.name], data)[0])


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
