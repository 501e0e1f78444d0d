# SPDX-License-Identifier: Apache-2.0
"""Convolution by spconv 2: its CUDA kernels, or its native algorithm on a CPU.

U voxels, C channels. spconv is imported when a table is built for it, never before.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditr_cache.errors import ConfigError

__all__ = ["Sites", "SpconvConvolution", "require_spconv", "run_layer", "spconv_installed", "spconv_layer"]


class Sites(NamedTuple):
    """Voxels as spconv takes them."""

    indices: Tensor
    """`[U, 4]` int32: cloud and voxel, which counts from 0."""
    extent: list[int]
    """Of the grid."""
    clouds: int
    """How many."""


class SpconvConvolution:
    """Convolutions of one kernel size over one set of voxels, which share spconv's index pairs."""

    def __init__(self, grid_coord_U3: Tensor, batch_U: Tensor, kernel_size: int) -> None:
        """Prepare.

        Args:
            grid_coord_U3: `[U, 3]` integer, distinct within a cloud.
            batch_U: `[U]` int64.
            kernel_size: k.

        Raises:
            ConfigError: If spconv is not installed.
        """
        require_spconv()
        self.kernel_size = kernel_size
        low_3 = grid_coord_U3.amin(0) if len(grid_coord_U3) else grid_coord_U3.new_zeros(3)
        indices_U4 = torch.cat((batch_U[:, None], grid_coord_U3 - low_3), 1).int().contiguous()
        # room for the kernel at the far side, as upstream leaves
        clouds, *extent = (indices_U4.amax(0) + 1).tolist() if len(batch_U) else (0, 0, 0, 0)
        self.sites = Sites(indices_U4, [n + kernel_size for n in extent], clouds)
        self.pairs: dict[str, Any] = {}
        self.layers: dict[tuple[int, int, int, bool], torch.nn.Module] = {}

    def __call__(self, x_UC: Tensor, weight: Tensor) -> Tensor:
        """Convolve `[U, Cin]` with `[Cout, k, k, k, Cin]` to `[U, Cout]`; differentiable in both."""
        if self.kernel_size == 1 or not len(x_UC):
            # at k = 1 it reads the weight as [Cin, Cout]; of no voxels it makes an error
            return torch.nn.functional.linear(x_UC, weight[:, 0, 0, 0])
        shape = (self.kernel_size, weight.shape[-1], weight.shape[0], x_UC.is_cuda)
        layer = self.layers.get(shape) or self.layers.setdefault(shape, spconv_layer("SubMConv3d", *shape))
        out = run_layer(layer, x_UC, weight, self.sites, self.pairs)
        self.pairs = out.indice_dict
        y_UC: Tensor = out.features
        return y_UC.to(x_UC.dtype)


def spconv_installed() -> bool:
    """Whether spconv can be found; says nothing about whether its CUDA build fits."""
    return importlib.util.find_spec("spconv") is not None


@cache
def require_spconv() -> ModuleType:
    """spconv, imported.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        # it calls what Python and torch have since moved; none of that is the caller's to mend
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import spconv.pytorch as spconv
    except ImportError as error:
        raise ConfigError(
            "spconv is not installed",
            where="model.sparse_conv",
            hint="set it to auto or torch, or (Python 3.11 or older): pip install 'ditr-cache[gpu]'",
        ) from error
    module: ModuleType = spconv
    return module


def spconv_layer(
    kind: str, kernel_size: int, in_channels: int, out_channels: int, cuda: bool, **options: Any
) -> torch.nn.Module:
    """A layer of spconv itself, without weights: each call brings them.

    Always in training mode: in the other, its CUDA kernels know no gradient. Without bias: a CPU refuses that in
    evaluation.

    Args:
        kind: Name of the layer in spconv.
        kernel_size: k.
        in_channels: Width of the input.
        out_channels: Width of the output.
        cuda: Where it will run.
        options: Others of the layer.

    Raises:
        ConfigError: If spconv is not installed.
    """
    module = require_spconv()
    from spconv.core import ConvAlgo

    with torch.device("meta"):
        layer: torch.nn.Module = getattr(module, kind)(
            in_channels,
            out_channels,
            kernel_size,
            bias=False,
            indice_key="level",
            algo=None if cuda else ConvAlgo.Native,
            **options,
        )
    return layer.train()


def run_layer(layer: torch.nn.Module, x: Tensor, weight: Tensor, sites: Sites, pairs: dict[str, Any]) -> Any:
    """Convolve with one of spconv's layers.

    Args:
        layer: Of `spconv_layer`.
        x: `[U, Cin]`.
        weight: `[Cout, k, k, k, Cin]`.
        sites: Where the rows of `x` are.
        pairs: What layers have found out before.

    Returns:
        spconv's tensor. Its features are float32 where `x` is bfloat16.
    """
    # it has no kernels for bfloat16, and under autocast would take float16 whatever was asked for
    kind = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    with torch.autocast(x.device.type, enabled=False):
        tensor = require_spconv().SparseConvTensor(
            x.to(kind).contiguous(), sites.indices, list(sites.extent), sites.clouds, indice_dict=pairs
        )
        return torch.func.functional_call(layer, {"weight": weight.to(kind).contiguous()}, (tensor,))
