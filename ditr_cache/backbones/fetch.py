# SPDX-License-Identifier: Apache-2.0
"""Folders with weights: found on disk or fetched from the Hugging Face hub, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditr_cache.errors import BackboneError, WeightsUnavailableError

__all__ = ["WeightsFolder", "config_sha256", "fetch_from_hub", "open_folder", "read_json"]

_LOG = logging.getLogger(__name__)
_MAX_JSON_BYTES = 32 << 20
_PATTERNS = ["config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json"]
_NO_SETTINGS = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
"""What in a config.json says where it came from, and nothing of the network."""
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class WeightsFolder:
    """A folder in Hugging Face layout."""

    path: Path
    name: str
    """What the identity calls it."""
    revision: str | None = None
    """Commit, if it came from the hub."""

    def weight_files(self) -> list[Path]:
        """The safetensors files, sorted by name.

        Raises:
            WeightsUnavailableError: If there are none.
            BackboneError: If the index names a file outside of the folder.
        """
        if (self.path / _SINGLE).is_file():
            return [self.path / _SINGLE]
        if not (self.path / _INDEX).is_file():
            raise WeightsUnavailableError(
                f"there is no {_SINGLE}",
                where=self.path,
                hint="Pickled weights (pytorch_model.bin) are never loaded; convert them to safetensors first.",
            )
        weight_map = read_json(self.path / _INDEX).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) and weight_map else {None}
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise BackboneError(f"names {name!r} as a file of weights", where=self.path / _INDEX)
        files = [self.path / str(name) for name in sorted(names, key=str)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise WeightsUnavailableError(f"{missing[0]} is missing", where=self.path)
        return files

    def sha256(self) -> str:
        """Over the bytes of all weight files, in the order of their names."""
        digest = hashlib.sha256()
        for file in self.weight_files():
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()


def config_sha256(settings: Mapping[str, Any]) -> str:
    """Of a config.json's settings, but for those that say where it came from.

    Args:
        settings: Its content.
    """
    kept = {key: value for key, value in settings.items() if key not in _NO_SETTINGS}
    # not as the store's own documents, which refuse infinities: these are files of others
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def open_folder(path: Path) -> WeightsFolder:
    """A local folder; a snapshot in the hub's cache is recognised, and has its repository and commit for a name.

    Raises:
        WeightsUnavailableError: If there is no such folder or no config.json in it.
    """
    if not (path / "config.json").is_file():
        what = "there is no config.json in this folder" if path.is_dir() else "there is no such folder"
        raise WeightsUnavailableError(
            what, where=path, hint="--weights takes a folder in Hugging Face layout: config.json and model.safetensors."
        )
    resolved = path.resolve()
    cache = resolved.parents[1].name if resolved.parent.name == "snapshots" else ""
    if cache.startswith("models--"):
        return WeightsFolder(path, cache.removeprefix("models--").replace("--", "/"), resolved.name)
    return WeightsFolder(path, resolved.name)


def fetch_from_hub(repo: str, name: str) -> WeightsFolder:
    """Weights of a hub repository, from the local cache where it has them.

    Args:
        repo: `owner/name`.
        name: What the identity calls it.

    Raises:
        WeightsUnavailableError: If the hub cannot be reached, knows no such repository, or wants a licence accepted.
        BackboneError: If `repo` is no valid repository id.
    """
    import huggingface_hub
    from huggingface_hub import errors

    hint = f"On a machine with access: hf download {repo} --local-dir DIR; then here: --weights DIR"
    utils: Any = huggingface_hub.utils
    bars_were_off = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    _LOG.info("fetching %s from the Hugging Face hub", repo)
    try:
        path = Path(huggingface_hub.snapshot_download(repo, allow_patterns=_PATTERNS, etag_timeout=5))
    except errors.HFValidationError as error:
        raise BackboneError(f"{repo!r} is not a repository of the Hugging Face hub", hint=str(error)) from error
    except errors.GatedRepoError as error:
        raise WeightsUnavailableError(
            "the hub gives these weights only to those who accepted their licence",
            where=repo,
            hint=f"Accept it at https://huggingface.co/{repo} and run: hf auth login\n{hint}",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsUnavailableError(
            "the hub has no such repository, or it is private", where=repo, hint=hint
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise WeightsUnavailableError(
            "these weights are not on this machine, and the Hugging Face hub cannot be reached", where=repo, hint=hint
        ) from error
    finally:
        if not bars_were_off:
            utils.enable_progress_bars()
    if not (path / "config.json").is_file():
        raise WeightsUnavailableError("only part of these weights is on this machine", where=repo, hint=hint)
    return WeightsFolder(path, name, path.name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of sane size.

    Raises:
        BackboneError: If the file is not that.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise BackboneError("is too large to be a configuration", where=path)
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, BackboneError):
            raise
        raise BackboneError(f"is not readable as JSON ({type(error).__name__})", where=path) from error
    if not isinstance(value, dict):
        raise BackboneError("is not a JSON object", where=path)
    return value
