# SPDX-License-Identifier: Apache-2.0
"""What training minimises: cross entropy, Lovasz-softmax, and the cosine loss of D-DITR.

N points, L labelled points, K classes, Q present classes, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["cosine_loss", "cross_entropy", "label_weight", "lovasz_softmax"]

_SORTED_AT_ONCE = 1 << 23
"""Numbers that Lovasz-softmax sorts in one go: 0.2 GB of temporaries."""


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore: int = -1,
    weight: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Mean cross entropy of the labelled points.

    Args:
        logits: `[N, K]`.
        labels: `[N]` integers.
        ignore: Label of points without one.
        weight: `[K]` class weights; the mean is weighted by them too.
        denominator: What the sum is divided by; None: the batch's own `label_weight`. To normalise over several
            processes whose gradients are averaged, pass the mean of their label weights.

    Returns:
        A scalar; 0 with zero gradient if no point has a label.
    """
    logits, labels = _wide(logits), labels.long()
    weight = None if weight is None else weight.to(logits)
    total = functional.cross_entropy(logits, labels, weight, ignore_index=ignore, reduction="sum")
    if denominator is None:
        denominator = label_weight(labels, ignore, weight)
    divisor = torch.as_tensor(denominator, dtype=logits.dtype, device=logits.device)
    return total / divisor.clamp(min=torch.finfo(logits.dtype).tiny)


def label_weight(labels: Tensor, ignore: int = -1, weight: Tensor | None = None) -> Tensor:
    """What mean cross entropy divides by: the number of labelled points, or the sum of their class weights.

    Args:
        labels: `[N]` integers.
        ignore: Label of points without one.
        weight: `[K]` class weights.

    Returns:
        A scalar, float64 without class weights.
    """
    labelled_N = labels != ignore
    if weight is None:
        return labelled_N.sum().double()
    return (weight[labels.long().masked_fill(~labelled_N, 0)] * labelled_N).sum()


def lovasz_softmax(logits: Tensor, labels: Tensor, ignore: int = -1) -> Tensor:
    """Lovasz-softmax: the convex surrogate of 1 - IoU, mean over the classes that are present.

    Berman, Triki, Blaschko, CVPR 2018, equations 8 and 9. With errors sorted from large to small, the extension is
    linear in them; its slope at place p is what the Jaccard loss gains there. With I points of the class left and a
    union of U after p, that is 1 / U at a point of the class and I / (U (U - 1)) at another one: no two large numbers
    are subtracted.

    Args:
        logits: `[N, K]`.
        labels: `[N]` integers.
        ignore: Label of points without one.

    Returns:
        A scalar; 0 with zero gradient if no point has a label.
    """
    logits, labels = _wide(logits), labels.long()
    labelled = (labels != ignore).nonzero()[:, 0]
    if len(labelled) == 0:
        return logits[:0].sum()
    labels_L = labels.index_select(0, labelled)
    classes_Q = torch.unique(labels_L)
    chance_QL = logits.index_select(0, labelled).softmax(1).index_select(1, classes_Q).T
    total = logits.new_zeros(())
    at_once = max(1, _SORTED_AT_ONCE // len(labelled))
    for chance_qL, class_q in zip(torch.split(chance_QL, at_once), torch.split(classes_Q, at_once), strict=True):
        is_class_qL = labels_L == class_q[:, None]
        error_qL = torch.where(is_class_qL, 1 - chance_qL, chance_qL)
        total = total + (error_qL * _lovasz_slope(error_qL.detach(), is_class_qL)).sum()
    return total / len(classes_Q)


def _lovasz_slope(error_qL: Tensor, is_class_qL: Tensor) -> Tensor:
    """`[q, L]` derivative of each class's loss with respect to each error."""
    order_qL = error_qL.argsort(dim=1, descending=True, stable=True)
    sorted_qL = is_class_qL.gather(1, order_qL)
    hit_qL = sorted_qL.cumsum(1)
    left_qL = hit_qL[:, -1:] - hit_qL
    union_qL = torch.arange(1, error_qL.shape[1] + 1, device=error_qL.device) + left_qL
    # counted as integers, divided as floats; where the point is not of the class the union is at least 2
    left_qL, union_qL = left_qL.to(error_qL.dtype), union_qL.to(error_qL.dtype)
    slope_qL = torch.where(sorted_qL, 1, left_qL / (union_qL - 1).clamp(min=1)) / union_qL
    return torch.zeros_like(error_qL).scatter_(1, order_qL, slope_qL)


def cosine_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cos over visible points (DITR, equation 1).

    Args:
        pred: `[N, D]` of the network.
        target: `[N, D]` image features; a row of zeros belongs to a point that no view sees.

    Returns:
        A scalar; 0 with zero gradient if no point is visible.
    """
    visible_N = (target != 0).any(1)
    apart_N = 1 - functional.cosine_similarity(_wide(pred), _wide(target), dim=1)
    return torch.where(visible_N, apart_N, 0).sum() / visible_N.sum().clamp(min=1)


def _wide(x: Tensor) -> Tensor:
    """Float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
