# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: how it began, so that it can go on as it was.

config.yaml    all settings
run.json       the store, versions, git revision and device of every start
samples.json   samples and the digests of their coordinates
log.jsonl, tensorboard/, checkpoints/
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

import ditr_cache
from ditr_cache.errors import CheckpointError, TrainingError
from ditr_cache.store.filesystem import Filesystem
from ditr_cache.training.checkpoint import Checkpoints

__all__ = ["FREE", "RunFolder", "config_difference", "git_revision"]

_LOADER = frozenset({"run.workers", "run.worker_kind", "run.prefetch"})
FREE = frozenset({"run.device", "run.threads", "run.log_every", "run.checkpoint_every"}) | _LOADER
"""Settings that decide how a run is done and not what comes out; they may change when it goes on."""


_BEFORE = frozenset({".lock", "samples.json", "run.json"})
"""What there may be of a run that was killed before it had begun."""


class RunFolder:
    """A run on disk.

    Args:
        path: Its folder.
        fs: File operations.
    """

    def __init__(self, path: Path, fs: Filesystem | None = None) -> None:
        self.path, self._fs = path, fs or Filesystem()

    @property
    def log(self) -> Path:
        """A JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Checkpoints:
        """Saved moments."""
        return Checkpoints(self.path / "checkpoints", self._fs)

    @property
    def exists(self) -> bool:
        """Whether a run began here."""
        return (self.path / "config.yaml").is_file()

    def check_kind(self, kind: str) -> None:
        """Refuse a run of another command.

        Args:
            kind: `train` or `distill`.

        Raises:
            CheckpointError: If it is one, or there is no run.
        """
        if not self.exists:
            raise CheckpointError(
                "no run here", where=self.path, hint=f"Name the folder that `ditr-cache {kind}` was given."
            )
        found = self.run().get("kind", "train")
        if found != kind:
            hint = "Fine-tune it first: ditr-cache train STORE NEW_RUN --init RUN" if found == "distill" else None
            raise CheckpointError(f"this is a run of `{found}`, not of `{kind}`", where=self.path, hint=hint)

    def check_new(self) -> None:
        """Refuse to begin a run over something else.

        Raises:
            TrainingError: If the folder is in use, with both ways forward.
        """
        if self.exists:
            raise TrainingError(
                "there is a run in this folder", where=self.path, hint="Go on with it: --resume. Or name a new folder."
            )
        if self.path.exists() and not self.path.is_dir():
            raise TrainingError("this is a file, a run is a folder", where=self.path, hint="Name a new folder.")
        names = sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else []
        others = [n for n in names if n not in _BEFORE and not (n.startswith(".") and n.endswith(".tmp"))]
        if others:
            raise TrainingError(
                f"the folder is not empty and holds no run (it holds {others[0]})",
                where=self.path,
                hint="Name a new folder.",
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training here; the kernel lets go when this one dies.

        Raises:
            TrainingError: If one is at it.
        """
        self._fs.make_folder(self.path)
        fd = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise TrainingError("another process is training in this folder", where=self.path) from error
            yield
        finally:
            os.close(fd)

    def begin(self, config: BaseModel, run: Mapping[str, Any], samples: Mapping[str, str]) -> None:
        """Write down how the run begins. `config.yaml` comes last: with it, there is a run.

        Args:
            config: All settings.
            run: The store and what else decides the numbers; `starts` are added by `start`.
            samples: Digest of the coordinates by sample.
        """
        self._write("samples.json", json.dumps(samples, indent=0).encode())
        self._write("run.json", _pretty({**run, "starts": []}))
        self._write("config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())

    def start(self, entry: Mapping[str, Any], config: BaseModel) -> None:
        """Add what this process is to `run.json`, and keep the settings that it uses."""
        run = self.run()
        self._write("run.json", _pretty({**run, "starts": [*run.get("starts", []), dict(entry)]}))
        self._write("config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).encode())

    def config(self) -> dict[str, Any]:
        """The settings of the run, as a layer for `load_config`.

        Raises:
            CheckpointError: If they cannot be read.
        """
        return self._mapping("config.yaml", yaml.safe_load)

    def run(self) -> dict[str, Any]:
        """What `begin` and `start` wrote.

        Raises:
            CheckpointError: If it cannot be read.
        """
        return self._mapping("run.json", json.loads)

    def samples(self) -> dict[str, str]:
        """Digest of the coordinates by sample, as the run began.

        Raises:
            CheckpointError: If it cannot be read.
        """
        return self._mapping("samples.json", json.loads)

    def _mapping(self, name: str, parse: Any) -> dict[str, Any]:
        path = self.path / name
        try:
            value = parse(path.read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise CheckpointError(
                f"cannot be read ({type(error).__name__})", where=path, hint="Name the folder of a run."
            ) from error
        if not isinstance(value, dict):
            raise CheckpointError("is not what a run writes", where=path)
        return value

    def _write(self, name: str, data: bytes) -> None:
        self._fs.replace(self.path / name, data)


def config_difference(before: BaseModel, now: BaseModel) -> list[str]:
    """Lines `key: the run has X, asked for Y`, but for the settings in `FREE`."""
    return [
        f"{key}: the run has {json.dumps(have)}, asked for {json.dumps(want)}"
        for key, have, want in _differences(before.model_dump(mode="json"), now.model_dump(mode="json"), "")
        if key not in FREE
    ]


def git_revision() -> dict[str, Any] | None:
    """Revision of the code that runs, and whether it was changed since; None outside of a work tree."""
    folder = Path(ditr_cache.__file__).parent
    try:
        # an installed copy may lie in somebody else's work tree, which does not track it
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        return {
            "revision": _git(folder, "rev-parse", "HEAD"),
            "modified": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(  # noqa: S603 # fixed arguments
        ["git", "-C", str(folder), *args],  # noqa: S607 # found on PATH, as anywhere
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()


def _differences(have: Any, want: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(have, dict) and isinstance(want, dict):
        for key in [*have, *(k for k in want if k not in have)]:
            yield from _differences(have.get(key), want.get(key), f"{path}.{key}" if path else key)
    elif have != want:
        yield path, have, want


def _pretty(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
