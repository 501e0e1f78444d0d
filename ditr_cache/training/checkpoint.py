# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a kill at any moment leaves whole.

    checkpoints/
      step-00001200/model.safetensors   weights under the official names
      step-00001200/state.pt            optimiser, scaler, counters: tensors, numbers and text, no code
      last.json                         names the newest folder, where a run goes on, and the one with the best mIoU

A folder is filled under a temporary name, flushed, and renamed; then `last.json` is swapped; only then is what it does
not name removed.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from ditr_cache.errors import CheckpointError
from ditr_cache.store.filesystem import Filesystem

__all__ = ["Checkpoint", "Checkpoints"]

_POINTER = "last.json"
_FOLDER = re.compile(r"step-([0-9]{8,})(-[0-9]+)?")
_TEMPORARY = ".tmp"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved moment of a run."""

    folder: Path
    step: int
    """Steps that were done."""

    def weights(self) -> dict[str, Tensor]:
        """State dict of the model, on the CPU.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        try:
            return load_file(self.folder / "model.safetensors")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot be read ({error})", where=self.folder / "model.safetensors") from error

    def state(self) -> dict[str, Any]:
        """Everything else that a run goes on with; loaded without running any of it.

        Raises:
            CheckpointError: If the file is missing, damaged, or holds more than plain values.
        """
        path = self.folder / "state.pt"
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"cannot be read ({reason})", where=path) from error
        return state


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: `RUN/checkpoints`; made when something is saved.
        fs: File operations.
    """

    def __init__(self, folder: Path, fs: Filesystem | None = None) -> None:
        self.folder, self._fs = folder, fs or Filesystem()

    def find(self, which: Literal["last", "best"] = "last") -> Checkpoint | None:
        """The newest or the best checkpoint; None if there is none yet.

        Raises:
            CheckpointError: If the pointer is not one of ours, or what it names is gone.
        """
        path = self.folder / _POINTER
        try:
            name = json.loads(path.read_text("utf-8"))[which]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError("does not name checkpoints", where=path) from error
        if name is None:
            return None
        match = _FOLDER.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise CheckpointError("does not name checkpoints", where=path)
        if not (self.folder / name).is_dir():
            raise CheckpointError(f"names {name}, which is not there", where=path)
        return Checkpoint(self.folder / name, int(match[1]))

    def save(self, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any], *, best: bool) -> Checkpoint:
        """Write a checkpoint, point to it, and remove those that nothing points to any more.

        Args:
            step: Steps done.
            weights: State dict of the model.
            state: Tensors, numbers and text, nested.
            best: Whether it is the best so far.
        """
        fs, best_before = self._fs, self.find("best")
        if not self.folder.is_dir():
            fs.make_folder(self.folder)
            fs.sync_folder(self.folder.parent)
        # what a killed run has left would be in the way
        self.prune()
        name = self._free_name(step)
        temporary = self.folder / f".{name}{_TEMPORARY}"
        fs.make_folder(temporary)
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
        fs.write(temporary / "model.safetensors", to_bytes(plain))
        with fs.open_new(temporary / "state.pt") as raw:
            buffer = io.BufferedWriter(raw)
            torch.save(dict(state), buffer)
            buffer.flush()
            fs.sync_file(raw)
            buffer.detach()
        fs.sync_folder(temporary)
        fs.rename(temporary, self.folder / name)
        fs.sync_folder(self.folder)
        pointer = {"last": name, "best": name if best else best_before and best_before.folder.name}
        fs.replace(self.folder / _POINTER, json.dumps(pointer).encode() + b"\n")
        self.prune()
        return Checkpoint(self.folder / name, step)

    def prune(self) -> None:
        """Remove what nothing points to: older checkpoints, and what a killed run did not finish."""
        found = [self.find("last"), self.find("best")]
        named = {checkpoint.folder.name for checkpoint in found if checkpoint is not None}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            unfinished = path.name.startswith(".") and path.name.endswith(_TEMPORARY)
            if unfinished or (_FOLDER.fullmatch(path.name) and path.name not in named):
                if path.is_dir():
                    self._fs.remove_tree(path)
                else:
                    self._fs.remove(path)

    def _free_name(self, step: int) -> str:
        # a run that was stopped before an evaluation saves the same step again after it
        name, again = f"step-{step:08d}", 0
        while (self.folder / name).exists():
            again += 1
            name = f"step-{step:08d}-{again}"
        return name
