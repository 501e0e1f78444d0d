# SPDX-License-Identifier: Apache-2.0
"""Compare this implementation with numbers of the official one: `python tests/parity.py FILE.npz`.

FILE.npz is any fixture in the format of tests/golden/README.md. Prints JSON:

max_abs_diff       over outputs in evaluation and in training, and the training loss; of `losses.npz` over all values
max_rel_grad_diff  over the gradient norms of parameters whose reference is >= 1e-6; if one of the others, which are
                   analytically zero, is not below 1e-6 here, its norm / 1e-6
codes_equal        whether every integer in the file is reproduced: codes and depth, or counts of the metrics
items              one entry for each thing compared

Everything runs in float32. One thing there is a matter of luck: pooling hands the gradient of a maximum to its winner,
and of two values that lie closer than float32 can tell, any order of summation may make either win (one pair of 3e-7
in `ditr_shuffled` moves some norms by 1e-3). So where gradients are off by more than rounding, the network runs once
more in float64. If other points win there, and by no more than float32 can tell (`widest_gap`), both gradients are
right, and the closer one counts; the items show both.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditr_cache.config.model import ModelConfig
from ditr_cache.errors import ConfigError
from ditr_cache.models.losses import cosine_loss, cross_entropy, lovasz_softmax
from ditr_cache.models.ptv3.level import Clusters, build_pyramid
from ditr_cache.models.ptv3.model import PointTransformerV3
from ditr_cache.models.ptv3.pooling import SerialisedPooling
from ditr_cache.training.metrics import ConfusionMatrix
from ditr_cache.types import FactoredFeatures, PointBatch

VOXEL = 0.02
"""Metres, by the rule of the fixtures."""
ZERO = 1e-6
"""Gradient norms below this are analytically zero."""
ROUNDING = 1e-4
"""Relative differences of gradients that float32 alone makes are an order of magnitude below this."""
TIE = 1e-5
"""Values of order 1 that lie closer than this may change places in float32."""

# arguments of the official constructor that change nothing here, or only what the fixtures leave at this value
_FIXED = {
    "qk_scale": (None,),
    "attn_drop": (0, 0.0),
    "proj_drop": (0, 0.0),
    "pre_norm": (True,),
    "cls_mode": (False,),
    "enc_mode": (False,),
    "pdnorm_bn": (False,),
    "pdnorm_ln": (False,),
    "drop_path": (0, 0.0),
}
_IGNORED = {
    "in_channels", "image_channels", "enable_flash", "upcast_softmax", "pdnorm_decouple", "pdnorm_adaptive",
    "pdnorm_affine", "pdnorm_conditions",
}  # fmt: skip


@dataclass
class Comparison:
    """What was compared so far."""

    items: dict[str, Any] = field(default_factory=dict)
    max_abs_diff: float = 0.0
    max_rel_grad_diff: float = 0.0
    codes_equal: bool = True

    def values(self, name: str, ours: torch.Tensor, reference: np.ndarray) -> None:
        """Compare floating-point values."""
        ours = ours.detach().double().numpy()
        assert ours.shape == reference.shape, f"{name}: shape {ours.shape} against {reference.shape}"
        difference = float(np.abs(ours - reference.astype(np.float64)).max(initial=0))
        # a NaN must not pass for a small difference
        difference = difference if np.isfinite(difference) else sys.float_info.max
        self.items[name] = difference
        self.max_abs_diff = max(self.max_abs_diff, difference)

    def integers(self, name: str, ours: np.ndarray | int, reference: np.ndarray) -> None:
        """Compare integers."""
        self.items[name] = bool(np.array_equal(np.asarray(ours), reference))
        self.codes_equal &= self.items[name]

    def gradients(self, item: str, ours: dict[str, torch.Tensor | None], data: dict[str, np.ndarray]) -> None:
        """Compare norms of gradients."""
        names, norms = data["grad_names"], data["grad_norms"]
        missing = set(names.tolist()) ^ set(ours)
        assert not missing, f"gradients of other parameters: {sorted(missing)}"
        worst, zeros = 0.0, 0.0
        for name, norm in zip(names.tolist(), norms.tolist(), strict=True):
            gradient = ours[name]
            own = 0.0 if gradient is None else float(gradient.double().norm())
            if norm >= ZERO:
                worst = max(worst, abs(own - norm) / norm if np.isfinite(own) else sys.float_info.max)
            else:
                zeros = max(zeros, own)
        self.items[item] = {"parameters": len(names), "max_rel_diff": worst, "max_norm_where_zero": zeros}
        self.max_rel_grad_diff = max(self.max_rel_grad_diff, worst, zeros / ZERO if zeros >= ZERO else 0.0)


def compare(
    path: str | Path, sparse_conv: str = "torch", injection: str = "factored", dtype: torch.dtype = torch.float32
) -> Comparison:
    """Run one fixture.

    Args:
        path: Of the `.npz` file.
        sparse_conv: Back end, `torch` or `spconv`.
        injection: `factored` or `dense`.
        dtype: To compute in.
    """
    with np.load(path, allow_pickle=False) as file:
        data = dict(file)
    if "config" in data:
        return _compare_network(data, sparse_conv, injection, dtype)
    return _compare_losses(data)


def rule_weights(keys: list[str], shapes: list[str]) -> dict[str, torch.Tensor]:
    """Weights by the rule of the fixtures; entries that the rule leaves alone are missing."""
    out = {}
    for key, text in zip(keys, shapes, strict=True):
        shape = tuple(int(n) for n in text.split("x")) if text else ()
        if key.endswith("num_batches_tracked"):
            continue
        random = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
        x = random.standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)
        if key.endswith("running_mean"):
            x = 0.1 * x
        elif key.endswith("running_var"):
            x = 1 + 0.1 * np.abs(x)
        elif len(shape) == 1:
            x = 1 + 0.1 * x if key.endswith("weight") else 0.1 * x
        else:
            x = x / np.sqrt(np.prod(shape[1:]))
        out[key] = torch.from_numpy(np.asarray(x, np.float32))
    return out


def model_config(official: dict[str, Any], sparse_conv: str, injection: str) -> ModelConfig:
    """Our settings for the official constructor's arguments."""
    for name, allowed in _FIXED.items():
        if official.get(name, allowed[0]) not in allowed:
            raise ConfigError(f"{name}={official[name]!r} has no counterpart here", where="config")
    if not official.get("enable_flash", True) and not official.get("enable_rpe", False):
        raise ConfigError("the path without flash attention is only followed with relative positions", where="config")
    ours = {k: v for k, v in official.items() if k not in _IGNORED and k not in _FIXED}
    ours["injection"] = "none" if official.get("image_channels") is None else "decoder"
    return ModelConfig(
        **ours, drop_path=0.0, compatibility="official", sparse_conv=sparse_conv, factored=injection == "factored"
    )


def point_batch(data: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> PointBatch:
    """The inputs of a fixture."""
    image = None
    if "patch_features" in data:
        rows = torch.from_numpy(data["patch_features"]).to(dtype)
        image = FactoredFeatures(rows, torch.from_numpy(data["patch_index"].astype(np.int32)))
    return PointBatch(
        grid_coord=torch.from_numpy(data["grid_coord"]),
        coord=torch.from_numpy(data["grid_coord"].astype(np.float32) * np.float32(VOXEL)),
        feat=torch.from_numpy(data["feat"]).to(dtype),
        offset=torch.from_numpy(data["offset"].astype(np.int64)),
        image=image,
    )


def _compare_network(data: dict[str, np.ndarray], sparse_conv: str, injection: str, dtype: torch.dtype) -> Comparison:
    result = Comparison()
    official = json.loads(str(data["config"]))
    config = model_config(official, sparse_conv, injection)
    model = PointTransformerV3(config, official["in_channels"], official.get("image_channels"))
    _load(model, data)
    model.to(dtype)
    batch = point_batch(data, dtype)
    permutations = data.get("order_permutations")
    if permutations is None:
        permutations = np.tile(np.arange(len(config.order)), (1 + len(config.stride), 1))
    permutations = torch.from_numpy(permutations.astype(np.int64))

    finest = build_pyramid(batch, config, permutations).levels[0]
    # the file holds the codes as encoded, the level as permuted
    result.integers("codes", finest.codes[permutations[0].argsort()].numpy(), data["serialized_code"])
    result.integers("depth", finest.depth, data["serialized_depth"])

    model.eval()
    with torch.no_grad():
        result.values("eval_output", model(batch, permutations), data["eval_output"])
    model.train()
    gradients, winners = _train(model, batch, permutations, data, result)
    result.gradients("gradients", gradients, data)
    if result.max_rel_grad_diff > ROUNDING and dtype == torch.float32:
        wide = Comparison()
        wide_gradients, wide_winners = _train(
            model.double(), point_batch(data, torch.float64), permutations, data, wide
        )
        wide.gradients("gradients_float64", wide_gradients, data)
        gaps = torch.cat([there.gaps(here) for here, there in zip(winners, wide_winners, strict=True)])
        widest = float(gaps.nan_to_num(sys.float_info.max).max()) if len(gaps) else 0.0
        result.items |= {
            "gradients_float64": wide.items["gradients_float64"],
            "winners_in_float64_only": len(gaps),
            "widest_gap": widest,
        }
        if len(gaps) and widest < TIE:
            result.max_rel_grad_diff = min(result.max_rel_grad_diff, wide.max_rel_grad_diff)
    return result


@dataclass
class Maxima:
    """What one pooling chose from."""

    x_NC: torch.Tensor
    """`[N, C]` values."""
    point_MC: torch.Tensor
    """`[M, C]` the point that holds the maximum of each cluster."""

    def gaps(self, other: Maxima) -> torch.Tensor:
        """By how much maxima exceed the values of the points that won elsewhere, where those are others."""
        gap_MC = self.x_NC.gather(0, self.point_MC) - self.x_NC.gather(0, other.point_MC)
        return gap_MC[self.point_MC != other.point_MC]


def _train(
    model: PointTransformerV3,
    batch: PointBatch,
    permutations: torch.Tensor,
    data: dict[str, np.ndarray],
    result: Comparison,
) -> tuple[dict[str, torch.Tensor | None], list[Maxima]]:
    """One pass forward and backward; gradients, and which point won each maximum of each pooling."""
    winners: list[Maxima] = []

    def remember(pooling: SerialisedPooling, arguments: tuple[torch.Tensor, Clusters, object]) -> None:
        x_NC, clusters, _ = arguments
        winners.append(_maxima(pooling.proj(x_NC).detach(), clusters))

    hooks = [m.register_forward_pre_hook(remember) for m in model.modules() if isinstance(m, SerialisedPooling)]
    model.zero_grad()
    output = model(batch, permutations)
    for hook in hooks:
        hook.remove()
    result.values("train_output", output, data["train_output"])
    loss = (output * torch.from_numpy(data["loss_weight"]).to(output.dtype)).mean()
    result.values("train_loss", loss, data["train_loss"])
    loss.backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}, winners


def _maxima(x_NC: torch.Tensor, clusters: Clusters) -> Maxima:
    cluster_NC = clusters.cluster_N[:, None].expand_as(x_NC)
    top_MC = x_NC.new_full((len(clusters), x_NC.shape[1]), -torch.inf).scatter_reduce(0, cluster_NC, x_NC, "amax")
    point_NC = torch.arange(len(x_NC))[:, None].where(~(x_NC < top_MC[clusters.cluster_N]), len(x_NC))
    first_MC = torch.full_like(top_MC, len(x_NC), dtype=torch.int64).scatter_reduce(0, cluster_NC, point_NC, "amin")
    return Maxima(x_NC, first_MC)


def _load(model: PointTransformerV3, data: dict[str, np.ndarray]) -> None:
    keys, shapes = data["state_keys"].tolist(), data["state_shapes"].tolist()
    ours = {name: "x".join(map(str, t.shape)) for name, t in model.state_dict().items()}
    assert ours == dict(zip(keys, shapes, strict=True)), "names or shapes of weights differ from the file's"
    report = model.load_state_dict(rule_weights(keys, shapes), strict=False)
    assert all(name.endswith("num_batches_tracked") for name in report.missing_keys)


def _compare_losses(data: dict[str, np.ndarray]) -> Comparison:
    result = Comparison()
    logits = torch.from_numpy(data["logits"]).requires_grad_()
    labels = torch.from_numpy(data["labels"])
    lovasz = lovasz_softmax(logits, labels)
    lovasz.backward()
    result.values("lovasz", lovasz, data["lovasz"])
    assert logits.grad is not None
    result.values("lovasz_grad", logits.grad, data["lovasz_grad"])
    reference = float(np.linalg.norm(data["lovasz_grad"].astype(np.float64)))
    result.max_rel_grad_diff = abs(float(logits.grad.double().norm()) - reference) / reference
    result.values("cross_entropy", cross_entropy(logits, labels), data["cross_entropy"])
    cosine = cosine_loss(torch.from_numpy(data["cos_pred"]), torch.from_numpy(data["cos_target"]))
    result.values("cosine_loss", cosine, data["cosine_loss"])
    matrix = ConfusionMatrix(logits.shape[1])
    matrix.update(logits.detach().argmax(1), labels)
    for name in ("intersection", "union", "target"):
        result.integers(name, getattr(matrix, name), data[name])
    return result


def main() -> None:
    """Compare one file and print the result as JSON."""
    parser = argparse.ArgumentParser(description="Compare with numbers of the official implementation.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--sparse-conv", choices=("torch", "spconv"), default="torch")
    parser.add_argument("--injection", choices=("factored", "dense"), default="factored")
    options = parser.parse_args()
    result = compare(options.file, options.sparse_conv, options.injection)
    summary = {name: getattr(result, name) for name in ("max_abs_diff", "max_rel_grad_diff", "codes_equal", "items")}
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
