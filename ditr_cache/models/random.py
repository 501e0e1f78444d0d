# SPDX-License-Identifier: Apache-2.0
"""Random draws of a network, each from a generator that the caller seeded; global state is never read.

O curves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ditr_cache.errors import ConfigError

__all__ = ["device_generator", "draw_permutations", "draw_weights"]


def draw_permutations(poolings: int, curves: int, generator: torch.Generator | None) -> Tensor:
    """How the curves are permuted after encoding and at each pooling.

    Args:
        poolings: Of the encoder.
        curves: O.
        generator: On the CPU.

    Returns:
        `[1 + poolings, O]` int64.

    Raises:
        ConfigError: If there is no generator.
    """
    if generator is None:
        raise ConfigError(
            "shuffling the curves needs a generator: nothing is drawn from global state",
            hint="Pass permutations=..., or generator=torch.Generator().manual_seed(...), "
            "or set model.shuffle_orders=false.",
        )
    return torch.stack([torch.randperm(curves, generator=generator) for _ in range(1 + poolings)])


def device_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """A generator on `device`, seeded by one draw from the caller's on the CPU; None stays None.

    Masks as long as a cloud are drawn where they are used: drawing them on the host would cost a copy for every block.
    """
    if generator is None:
        return None
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


@torch.no_grad()
def draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights anew, from the distributions of torch's own initialisation.

    Linear and convolution weights and biases are uniform within 1 / sqrt(fan in), norm layers start at one and zero,
    tables of relative positions are normal with deviation 0.02.

    Args:
        model: Changed in place, whatever device it is on.
        generator: On the CPU, so that a seed means the same weights on every device.
    """
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        weight = own.get("weight")
        if weight is not None and weight.dim() > 1:
            bound = 1 / math.sqrt(weight[0].numel())
            for parameter in own.values():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        elif "rpe_table" in own:
            table = own["rpe_table"]
            drawn = nn.init.trunc_normal_(torch.empty(table.shape), std=0.02, generator=generator)
            table.copy_(drawn)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
            module.reset_parameters()
        elif own:
            raise AssertionError(f"no rule to draw {type(module).__name__}")
