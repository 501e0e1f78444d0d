# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ditr_cache.errors import ConfigError
from ditr_cache.training.config import OptimConfig
from ditr_cache.training.optim import build_optimizer, clip_gradients, parameter_groups, set_rates
from ditr_cache.training.schedule import OneCycle


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.block0 = nn.Linear(4, 4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_blocks_learn_at_a_tenth_of_the_rate():
    base, block = parameter_groups(Net(), OptimConfig())
    assert (base.names, base.max_lr) == (("stem.weight", "stem.bias"), 6e-3)
    assert block.names == ("block0.weight", "block0.bias")
    assert block.max_lr == pytest.approx(6e-4)
    optimizer = build_optimizer(Net(), OptimConfig())
    assert [(g["max_lr"], g["weight_decay"], g["eps"]) for g in optimizer.param_groups] == [
        (6e-3, 0.05, 1e-8),
        (pytest.approx(6e-4), 0.05, 1e-8),
    ]


def test_fine_tuning_slows_the_backbone_around_the_blocks():
    """S3DIS, upstream: 6e-3, backbone 6e-4, blocks 6e-5."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Net()
            self.seg_head = nn.Linear(4, 2)

    config = OptimConfig(backbone_lr_factor=0.1, block_lr_factor=0.01)
    groups = {g.name: g for g in parameter_groups(Whole(), config)}
    assert {name: g.max_lr for name, g in groups.items()} == pytest.approx(
        {"base": 6e-3, "backbone": 6e-4, "block": 6e-5}
    )
    assert groups["base"].names == ("seg_head.weight", "seg_head.bias")
    assert groups["backbone"].names == ("backbone.stem.weight", "backbone.stem.bias")
    assert [g.name for g in parameter_groups(Whole(), OptimConfig())] == ["base", "block"]


def test_empty_groups_are_left_out():
    assert [g.name for g in parameter_groups(nn.Linear(2, 2), OptimConfig())] == ["base"]
    assert [g.name for g in parameter_groups(Net(), OptimConfig(block_pattern="stem|block"))] == ["block"]


def test_nothing_to_train_and_bad_patterns_are_refused():
    with pytest.raises(ConfigError, match="no parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), OptimConfig())
    with pytest.raises(ConfigError, match=r"optim\.block_pattern: not a regular expression"):
        parameter_groups(Net(), OptimConfig(block_pattern="("))


@settings(deadline=None, max_examples=40)
@given(
    total=st.integers(2, 400),
    pct=st.floats(0.02, 0.9),
    div=st.floats(1, 50),
    final=st.floats(1, 1e4),
    cycled=st.booleans(),
)
def test_one_cycle_is_that_of_torch(total, pct, div, final, cycled):
    if pct * total <= 1.01:
        pct = 1.5 / total  # torch divides by zero where the way up is one update long or shorter
    config = OptimConfig(
        pct_start=pct, div_factor=div, final_div_factor=final, momentum=(0.85, 0.95) if cycled else None
    )
    net = Net()
    ours = build_optimizer(net, config)
    theirs = torch.optim.AdamW([{"params": net.stem.parameters()}, {"params": net.block0.parameters()}], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        theirs,
        max_lr=[6e-3, 6e-4],
        total_steps=total,
        pct_start=pct,
        div_factor=div,
        final_div_factor=final,
        cycle_momentum=cycled,
    )
    schedule = OneCycle.of(config, total)
    theirs.step()
    for updates in range(total):
        set_rates(ours, schedule, updates)
        for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert mine["lr"] == pytest.approx(other["lr"], rel=1e-9, abs=1e-15)
            assert mine["betas"] == pytest.approx(other["betas"])
        if updates + 1 < total:
            reference.step()


@given(total=st.integers(1, 30), updates=st.integers(0, 100), pct=st.floats(0, 1))
def test_rates_stay_in_their_bounds(total, updates, pct):
    rates = OneCycle.of(OptimConfig(pct_start=pct), total).at(updates)
    assert 1 / (10 * 1000) - 1e-12 <= rates.factor <= 1 + 1e-12
    assert 0.85 - 1e-12 <= rates.momentum <= 0.95 + 1e-12


def test_no_updates_are_refused():
    with pytest.raises(ConfigError, match="0 updates"):
        OneCycle.of(OptimConfig(), 0)


def test_clipping():
    net = nn.Linear(2, 1, bias=False)
    net.weight.grad = torch.tensor([[3.0, 4.0]])
    assert clip_gradients(net, None) is None
    assert clip_gradients(net, 1.0) == pytest.approx(5.0)
    assert net.weight.grad.norm() == pytest.approx(1.0, rel=1e-5)
