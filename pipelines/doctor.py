# SPDX-License-Identifier: Apache-2.0
"""What is installed on this machine, and what it can do."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import ditr_cache
from ditr_cache.backbones import BACKBONES, BackboneEntry
from ditr_cache.datasets import readers
from ditr_cache.images import decoder_name

__all__ = ["BackboneState", "Doctor", "DoctorReport", "PackageState"]

_REQUIRED = ("torch", "transformers", "zarr", "numcodecs", "numpy", "pydantic", "Pillow", "huggingface-hub")
_OPTIONAL = (
    ("simplejpeg", ("simplejpeg",), "decodes JPEG faster: pip install 'ditr-cache[fast]'"),
    ("spconv", ("spconv", "spconv-cu120"), "sparse convolutions on the GPU: pip install 'ditr-cache[gpu]'"),
    ("torch_scatter", ("torch-scatter",), "pooling on the GPU: pip install 'ditr-cache[gpu]'"),
    ("obstore", ("obstore",), "object stores: pip install 'ditr-cache[s3]'"),
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class PackageState:
    """One package."""

    name: str
    version: str | None
    """None if it is not installed."""
    purpose: str


@dataclass(frozen=True, slots=True)
class BackboneState:
    """One registered backbone."""

    name: str
    repo: str | None
    """On the Hugging Face hub; None if it ships with this package."""
    patch_size: int
    dim: int
    licence: str
    weights: bool
    """Whether they are on this machine."""


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """State of an installation."""

    version: str
    python: str
    platform: str
    cores: int
    cuda_devices: tuple[str, ...]
    """Name and memory of each; none: the ViT runs on the CPU."""
    cuda_reason: str
    """Why there is none; empty if there is one."""
    jpeg_decoder: str
    required: tuple[PackageState, ...]
    optional: tuple[PackageState, ...]
    datasets: tuple[str, ...]
    backbones: tuple[BackboneState, ...]
    free_bytes: int
    """On the file system of the working directory."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Doctor:
    """Looks around. Touches no network."""

    def run(self) -> DoctorReport:
        """Collect everything."""
        devices = _cuda_devices()
        return DoctorReport(
            version=ditr_cache.__version__,
            python=platform.python_version(),
            platform=platform.platform(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            cuda_devices=devices,
            cuda_reason="" if devices else _why_no_cuda(),
            jpeg_decoder=decoder_name(),
            required=tuple(PackageState(name, _version(name), "required") for name in _REQUIRED),
            optional=tuple(PackageState(name, _any_version(name, dists), why) for name, dists, why in _OPTIONAL),
            datasets=tuple(sorted(readers())),
            backbones=tuple(_backbone(name, entry) for name, entry in BACKBONES.items()),
            free_bytes=shutil.disk_usage(Path.cwd()).free,
        )


def _cuda_devices() -> tuple[str, ...]:
    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(f"{p.name}, {p.total_memory / 1e9:.0f} GB" for p in found)


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    return f"torch was built for CUDA {torch.version.cuda}, but finds no driver or device"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _any_version(module: str, distributions: tuple[str, ...]) -> str | None:
    """The wheel's name depends on the CUDA version, the module's does not."""
    if find_spec(module) is None:
        return None
    return next((v for v in map(_version, distributions) if v is not None), "unknown version")


def _backbone(name: str, entry: BackboneEntry) -> BackboneState:
    if entry.repo is None:
        folder = files("ditr_cache.backbones") / "weights" / name
        here = any((folder / file).is_file() for file in _WEIGHTS)
    else:
        from huggingface_hub import try_to_load_from_cache

        here = any(isinstance(try_to_load_from_cache(entry.repo, file), str) for file in _WEIGHTS)
    return BackboneState(name, entry.repo, entry.patch_size, entry.dim, entry.licence, here)
