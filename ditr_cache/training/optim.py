# SPDX-License-Identifier: Apache-2.0
"""AdamW with the official parameter groups: what lies in a transformer block learns at a tenth of the rate.

Official fine-tuning has a third group: the backbone around the blocks, slower than the new head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

from ditr_cache.errors import ConfigError
from ditr_cache.training.config import OptimConfig
from ditr_cache.training.schedule import OneCycle

__all__ = ["ParameterGroup", "build_optimizer", "clip_gradients", "parameter_groups", "set_rates"]


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    name: str
    """`base`, `backbone` or `block`."""
    max_lr: float
    """Learning rate at the top of the cycle."""
    names: tuple[str, ...]
    """Of its parameters, in the order of the model."""


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[ParameterGroup]:
    """Split the trainable parameters by name. Groups without a parameter are left out.

    Raises:
        ConfigError: If the pattern is not a regular expression, or nothing can be trained.
    """
    try:
        pattern = re.compile(config.block_pattern)
    except re.error as error:
        raise ConfigError(f"not a regular expression: {error}", where="optim.block_pattern") from error
    factors = {"base": 1.0, "backbone": config.backbone_lr_factor, "block": config.block_lr_factor}

    def group_of(name: str) -> str:
        if pattern.search(name):
            return "block"
        slower = name.startswith("backbone.") and config.backbone_lr_factor != 1
        return "backbone" if slower else "base"

    found: dict[str, list[str]] = {group: [] for group in factors}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[group_of(name)].append(name)
    groups = [ParameterGroup(key, config.lr * factors[key], tuple(names)) for key, names in found.items() if names]
    if not groups:
        raise ConfigError("the model has no parameter that can be trained")
    return groups


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the groups, at their highest rates; `set_rates` moves them before every step.

    Args:
        model: On the device that it trains on.
        config: Rates and decay.
    """
    parameters = dict(model.named_parameters())
    return torch.optim.AdamW(
        [
            {"params": [parameters[name] for name in group.names], "lr": group.max_lr, "max_lr": group.max_lr}
            for group in parameter_groups(model, config)
        ],
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def set_rates(optimizer: torch.optim.Optimizer, schedule: OneCycle, updates: int) -> float:
    """Put the rates of one update into the optimiser.

    Args:
        optimizer: Of `build_optimizer`.
        schedule: Where on its cycle a run is.
        updates: How many updates were applied before this one.

    Returns:
        The learning rate of the first group.
    """
    rates = schedule.at(updates)
    for group in optimizer.param_groups:
        group["lr"] = group["max_lr"] * rates.factor
        if rates.momentum is not None:
            group["betas"] = (rates.momentum, group["betas"][1])
    return float(optimizer.param_groups[0]["lr"])


def clip_gradients(model: nn.Module, most: float | None) -> float | None:
    """Scale all gradients so that their common norm is at most `most`; None leaves them.

    Returns:
        The norm before; None if nothing was asked for.
    """
    if most is None:
        return None
    return float(nn.utils.clip_grad_norm_(model.parameters(), most))
