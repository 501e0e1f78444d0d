# SPDX-License-Identifier: Apache-2.0
"""The linear probe: multinomial logistic regression on standardised features, solved to its only optimum.

N points, D channels, K classes that have training points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ditr_cache.errors import ConfigError

__all__ = ["PENALTIES", "LinearProbe", "choose_penalty", "held_out"]

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""What `choose_penalty` chooses among, strongest first."""

_ITERATIONS = 100
_CHUNK = 1 << 24
"""Values of a standardised piece in prediction."""
_FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class LinearProbe:
    """A fitted probe: class = argmax of weight @ (x - mean) / scale + bias."""

    class_K: Tensor
    """`[K]` int64 numbers of the classes, ascending; no other is ever predicted."""
    mean_D: Tensor
    scale_D: Tensor
    """`[D]` standard deviation of the training points; 1 for a constant channel."""
    weight_KD: Tensor
    bias_K: Tensor

    @classmethod
    def fit(cls, x_ND: Tensor, label_N: Tensor, penalty: float, start: LinearProbe | None = None) -> LinearProbe:
        """Minimise the mean cross entropy plus `penalty` / 2 times the sum of squared weights (biases are free).

        The objective is convex with one optimum. L-BFGS goes there from zero with all points in every step, so that
        there is no learning rate, no schedule and no random number; it ends after 100 iterations at the latest.

        Args:
            x_ND: Training points, float32.
            label_N: Their classes, int64, none below 0.
            penalty: Above 0.
            start: Begin at its weights, of the same points, instead.

        Raises:
            ConfigError: If there are no points.
        """
        if not len(x_ND):
            raise ConfigError("a linear probe needs training points")
        class_K, target_N = torch.unique(label_N, return_inverse=True)
        mean_D, scale_D = _moments(x_ND)
        z_ND = (x_ND - mean_D) / scale_D
        weight = x_ND.new_zeros(len(class_K), x_ND.shape[1]) if start is None else start.weight_KD.clone()
        bias = x_ND.new_zeros(len(class_K)) if start is None else start.bias_K.clone()
        parameters = [weight.requires_grad_(), bias.requires_grad_()]
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=_ITERATIONS, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits_NK = torch.addmm(bias, z_ND, weight.T)
            value = functional.cross_entropy(logits_NK, target_N) + penalty / 2 * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with torch.enable_grad():
            optimizer.step(loss)  # type: ignore[no-untyped-call]
        return cls(class_K, mean_D, scale_D, weight.detach(), bias.detach())

    def scores(self, x_ND: Tensor) -> Tensor:
        """Logits `[N, K]`, in the order of `class_K`."""
        rows = max(1, _CHUNK // x_ND.shape[1])
        pieces = [
            (piece - self.mean_D) / self.scale_D @ self.weight_KD.T + self.bias_K for piece in torch.split(x_ND, rows)
        ]
        return torch.cat(pieces)

    def predict(self, x_ND: Tensor) -> Tensor:
        """Classes `[N]` int64."""
        return self.class_K[self.scores(x_ND).argmax(1)]

    def cross_entropy(self, x_ND: Tensor, label_N: Tensor) -> float:
        """Mean over the points whose class has training points; 0 if there are none."""
        seat_N = torch.searchsorted(self.class_K, label_N).clamp_(max=len(self.class_K) - 1)
        known = (self.class_K[seat_N] == label_N).nonzero()[:, 0]
        if not len(known):
            return 0.0
        return float(functional.cross_entropy(self.scores(x_ND[known]), seat_N[known]))


def held_out(group_N: Tensor) -> Tensor:
    """`[N]` bool: every fifth group, of two at least; every fifth point where there is one group.

    Neighbouring points of a scene are alike: only whole scenes say how a probe does elsewhere.

    Args:
        group_N: `[N]` which scene a point is of.
    """
    groups, number_N = torch.unique(group_N, return_inverse=True)
    count = len(groups)
    if count == 1:
        count, number_N = len(group_N), torch.arange(len(group_N), device=group_N.device)
    held_N: Tensor = number_N % _FOLDS == min(count, _FOLDS) - 1
    return held_N


def choose_penalty(
    x_ND: Tensor,
    label_N: Tensor,
    held_N: Tensor,
    penalties: Sequence[float] = PENALTIES,
    tick: Callable[[], None] = lambda: None,
) -> float:
    """The penalty with the lowest cross entropy on points that were held out of the training points.

    Args:
        x_ND: Training points.
        label_N: Their classes.
        held_N: `[N]` bool, those that are not fitted to.
        penalties: Strongest first: each fit begins where the one before ended.
        tick: Called after each.

    Returns:
        One of them; the first where nothing or everything is held out.
    """
    fit_n, held_n = (~held_N).nonzero()[:, 0], held_N.nonzero()[:, 0]
    losses, probe = [], None
    for penalty in penalties:
        if len(fit_n) and len(held_n):
            probe = LinearProbe.fit(x_ND[fit_n], label_N[fit_n], penalty, probe)
            losses.append(probe.cross_entropy(x_ND[held_n], label_N[held_n]))
        tick()
    return penalties[losses.index(min(losses))] if losses else penalties[0]


def _moments(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel; 1 where it is nothing next to that of the others."""
    variance_D, mean_D = torch.var_mean(x_ND, 0, correction=0)
    scale_D = variance_D.sqrt()
    return mean_D, torch.where(scale_D > 1e-6 * scale_D.max(), scale_D, 1.0)
