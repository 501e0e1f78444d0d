# SPDX-License-Identifier: Apache-2.0
"""Numbers of the official implementation."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import parity
import pytest
import torch

from ditr_cache.errors import ConfigError
from ditr_cache.models.ptv3.level import build_pyramid
from ditr_cache.models.ptv3.model import PointTransformerV3

GOLDEN = Path(__file__).parent
NETWORKS = ("ptv3", "ptv3_rpe", "ditr", "ditr_shuffled")
SPCONV = pytest.param("spconv", marks=pytest.mark.filterwarnings("default"))


@pytest.mark.parametrize("sparse_conv", ["torch", SPCONV])
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, sparse_conv):
    if sparse_conv == "spconv":
        pytest.importorskip("spconv.pytorch")
    result = parity.compare(GOLDEN / f"{name}.npz", sparse_conv)
    assert result.codes_equal
    assert result.max_abs_diff < 1e-4
    assert result.max_rel_grad_diff < 1e-3
    assert {"eval_output", "train_output", "train_loss", "gradients"} <= set(result.items)
    # where another point wins a maximum it does so by a hair, and norms move by little
    assert result.items["gradients"]["max_rel_diff"] < 5e-3
    assert result.items.get("widest_gap", 0) < 2e-6


@pytest.mark.parametrize("name", ["ditr", "ditr_shuffled"])
def test_dense_injection(name):
    result = parity.compare(GOLDEN / f"{name}.npz", injection="dense")
    assert result.max_abs_diff < 1e-4
    assert result.max_rel_grad_diff < 1e-3


def test_losses():
    result = parity.compare(GOLDEN / "losses.npz")
    assert result.codes_equal
    assert result.max_abs_diff < 1e-6
    assert result.max_rel_grad_diff < 1e-5
    assert {"lovasz", "lovasz_grad", "cross_entropy", "cosine_loss"} <= set(result.items)


def test_float64_agrees_better_with_no_reference_than_float32_does():
    """The references are float32 themselves: what is left against float64 is their rounding."""
    assert parity.compare(GOLDEN / "ditr_shuffled.npz", dtype=torch.float64).max_abs_diff < 5e-5


@pytest.mark.parametrize("change", ["output", "code", "gradient", "nan"])
def test_comparison_notices(change, tmp_path):
    """A comparison that cannot fail is none."""
    with np.load(GOLDEN / "ditr_shuffled.npz", allow_pickle=False) as file:
        data = dict(file)
    if change == "output":
        data["train_output"][7, 3] += 1e-3
    elif change == "code":
        data["serialized_code"][2, 5] += 1
    elif change == "gradient":
        data["grad_norms"][4] *= 1.01
    else:
        data["feat"][3, 0] = np.nan
    np.savez(tmp_path / "changed.npz", **data)
    result = parity.compare(tmp_path / "changed.npz")
    good = result.max_abs_diff < 1e-4, result.codes_equal, result.max_rel_grad_diff < 1e-3
    expected = {
        "output": (False, True, True),
        "code": (True, False, True),
        "gradient": (True, True, False),
        "nan": (False, True, False),
    }
    assert good == expected[change]


def test_a_maximum_that_another_point_wins_clearly_is_no_tie():
    x = torch.tensor([[1.0, 2.0], [1.0, 5.0], [0.5, 5.0]])
    here = parity.Maxima(x, torch.tensor([[1, 2]]))
    assert here.gaps(parity.Maxima(x, torch.tensor([[0, 0]]))).tolist() == [0, 3]
    assert here.gaps(here).tolist() == []


def test_other_order_is_another_network(tmp_path):
    with np.load(GOLDEN / "ditr_shuffled.npz", allow_pickle=False) as file:
        data = dict(file)
    data["order_permutations"] = np.tile(np.arange(4), (5, 1))
    np.savez(tmp_path / "unshuffled.npz", **data)
    assert parity.compare(tmp_path / "unshuffled.npz").max_abs_diff > 0.1


def test_other_sizes(tmp_path):
    """The script takes any fixture of the format: here one of another shape, which this implementation wrote itself."""
    official = {
        "in_channels": 3, "stride": [4, 2], "enc_depths": [1, 3, 1], "enc_channels": [4, 8, 8],
        "enc_num_head": [1, 2, 2], "enc_patch_size": [16, 8, 64], "dec_depths": [2, 1], "dec_channels": [4, 8],
        "dec_num_head": [2, 1], "dec_patch_size": [32, 8], "order": ["hilbert", "z"], "enable_flash": True,
        "shuffle_orders": True, "mlp_ratio": 2, "drop_path": 0.0, "image_channels": 5,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    clouds = [np.unique(rng.integers(0, 12, (n, 3)), axis=0) for n in (300, 3, 90)]
    n = sum(map(len, clouds))
    data = {
        "config": np.array(json.dumps(official)),
        "grid_coord": np.concatenate(clouds).astype(np.int32),
        "feat": rng.normal(size=(n, 3)).astype(np.float32),
        "offset": np.cumsum([len(c) for c in clouds]),
        "patch_features": rng.normal(size=(40, 5)).astype(np.float32),
        "patch_index": rng.integers(-1, 40, n),
        "order_permutations": np.array([[1, 0], [1, 0], [0, 1]]),
        "loss_weight": rng.normal(size=(n, 4)).astype(np.float32),
    }
    config = parity.model_config(official, "torch", "factored")
    model = PointTransformerV3(config, 3, 5)
    state = model.state_dict()
    data["state_keys"] = np.array(list(state))
    data["state_shapes"] = np.array(["x".join(map(str, t.shape)) for t in state.values()])
    model.load_state_dict(parity.rule_weights(data["state_keys"].tolist(), data["state_shapes"].tolist()), strict=False)
    model.double()
    batch, permutations = parity.point_batch(data, torch.float64), torch.from_numpy(data["order_permutations"])
    finest = build_pyramid(batch, config, permutations).levels[0]
    data["serialized_code"] = finest.codes[[1, 0]].numpy()
    data["serialized_depth"] = np.array(finest.depth)
    data["eval_output"] = model.eval()(batch, permutations).detach().numpy()
    output = model.train()(batch, permutations)
    loss = (output * torch.from_numpy(data["loss_weight"])).mean()
    loss.backward()
    data["train_output"], data["train_loss"] = output.detach().numpy(), loss.detach().numpy()
    data["grad_names"] = np.array([name for name, _ in model.named_parameters()])
    data["grad_norms"] = np.array([float(p.grad.norm()) for p in model.parameters()])
    np.savez(tmp_path / "other.npz", **data)
    for injection in ("factored", "dense"):
        result = parity.compare(tmp_path / "other.npz", injection=injection)
        assert result.codes_equal
        assert result.max_abs_diff < 1e-4
        assert result.max_rel_grad_diff < 1e-3


def test_unknown_official_setting_is_refused():
    with pytest.raises(ConfigError, match="cls_mode"):
        parity.model_config({"cls_mode": True}, "torch", "factored")
    with pytest.raises(ConfigError, match="flash"):
        parity.model_config({"enable_flash": False}, "torch", "factored")


def test_command():
    command = [sys.executable, str(GOLDEN.parent / "parity.py"), str(GOLDEN / "losses.npz"), "--sparse-conv", "torch"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert set(result) == {"max_abs_diff", "max_rel_grad_diff", "codes_equal", "items"}
    assert result["max_abs_diff"] < 1e-6
