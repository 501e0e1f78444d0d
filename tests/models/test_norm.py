# SPDX-License-Identifier: Apache-2.0
import copy
import functools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from ditr_cache.errors import ConfigError
from ditr_cache.models.norm import ConditionalNorm, PointBatchNorm, synchronise_batch_norm


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_norm(channels=5, seed=0):
    """With weights that are not one and zero, so that a mix-up shows."""
    norm = PointBatchNorm(channels).double()
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * randn(channels, seed=seed))
        norm.bias.copy_(randn(channels, seed=seed + 1))
    return norm


def states(norm):
    return {k: v.clone() for k, v in norm.state_dict().items()}


def assert_same_state(a, b, **tolerance):
    for name, value in a.state_dict().items():
        torch.testing.assert_close(value, b.state_dict()[name], **tolerance)


def test_defaults_and_names_are_upstreams():
    norm = PointBatchNorm(4)
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)
    assert list(norm.state_dict()) == list(nn.BatchNorm1d(4).state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_without_weights_it_is_torchs(training):
    norm = make_norm()
    reference = nn.BatchNorm1d(5, eps=1e-3, momentum=0.01).double()
    reference.load_state_dict(norm.state_dict())
    norm.train(training)
    reference.train(training)
    for step in range(3):
        x = randn(20, 5, seed=step)
        torch.testing.assert_close(norm(x), reference(x), rtol=0, atol=0)
    assert_same_state(norm, reference, rtol=0, atol=0)


def weighted_case():
    x = randn(7, 5, seed=3) * 2 + 1
    weight = torch.tensor([3, 1, 0, 5, 2, 0, 9])
    return x, weight, torch.repeat_interleave(torch.arange(7), weight)


def test_weights_are_repetitions_forward_backward_and_in_the_statistics():
    x, weight, repeated = weighted_case()
    norm, reference = make_norm(), make_norm()
    pull = randn(len(repeated), 5, seed=9)
    rows, points = x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(2):
        out = norm(rows, weight)[repeated]
        expected = reference(points[repeated])
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        (out * pull).sum().backward()
        (expected * pull).sum().backward()
    torch.testing.assert_close(rows.grad, points.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.weight.grad, reference.weight.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.bias.grad, reference.bias.grad, rtol=0, atol=1e-12)
    assert_same_state(norm, reference, rtol=0, atol=1e-14)
    assert int(norm.num_batches_tracked) == 2


def test_gradients_against_finite_differences():
    x, weight, _ = weighted_case()
    norm = make_norm()

    def normalise(x, scale, bias):
        return torch.func.functional_call(norm, {"weight": scale, "bias": bias}, (x, weight))

    inputs = [t.detach().clone().requires_grad_() for t in (x, norm.weight, norm.bias)]
    assert torch.autograd.gradcheck(normalise, inputs)


def test_rows_of_weight_zero_change_nothing_for_the_others():
    x, weight, _ = weighted_case()
    far = torch.where((weight == 0)[:, None], 1e6, x)
    a, b = make_norm(), make_norm()
    used = weight > 0
    torch.testing.assert_close(a(x, weight)[used], b(far, weight)[used], rtol=0, atol=0)
    assert_same_state(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_large_means_do_not_cancel_in_float32(weighted, autocast):
    # differences of 1 on a mean of 1000: x squared has no digit left for them in float32
    x = randn(500, 4, dtype=torch.float32) + 1000
    weight = torch.arange(500) % 7 if weighted else torch.ones(500)
    narrow = PointBatchNorm(4)
    reference = PointBatchNorm(4).double()
    points = torch.repeat_interleave(torch.arange(500), weight.long())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = narrow(x, weight)[points]
    torch.testing.assert_close(out.double(), reference(x.double()[points]), rtol=0, atol=1e-5)
    torch.testing.assert_close(narrow.running_var.double(), reference.running_var, rtol=1e-6, atol=0)


@pytest.mark.parametrize("weight", [None, torch.ones(1), torch.tensor([0, 1])])
def test_a_single_point_becomes_the_bias_and_leaves_the_running_statistics_alone(weight):
    norm = make_norm()
    before = states(norm)
    rows = 1 if weight is None else len(weight)
    x = torch.zeros(rows, 5, dtype=torch.float64) + 3
    x.requires_grad_()
    out = norm(x, weight)
    torch.testing.assert_close(out[-1], norm.bias)
    out.sum().backward()
    assert x.grad.isfinite().all()
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(norm.state_dict()[name], before[name], rtol=0, atol=0)


@pytest.mark.parametrize("rows", [0, 2])
def test_no_points_at_all(rows):
    norm = make_norm()
    x = torch.ones(rows, 5, dtype=torch.float64)
    assert norm(x, torch.zeros(rows)).shape == (rows, 5)
    assert norm(x[:0]).shape == (0, 5)
    assert all(v.isfinite().all() for v in norm.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_have_float32_statistics_and_narrow_outputs(dtype):
    x = (randn(400, 3) * 0.1 + 8).to(dtype)
    weight = torch.arange(400) % 3
    norm, reference = PointBatchNorm(3), PointBatchNorm(3).double()
    out = norm(x, weight)
    expected = reference(x.double(), weight)
    assert out.dtype == dtype
    # one rounding of the output and none of the statistics
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), reference.running_var, rtol=1e-5, atol=0)


def test_evaluation_ignores_the_batch():
    norm = make_norm().eval()
    x, weight, _ = weighted_case()
    before = states(norm)
    expected = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x, weight), expected)
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())


CASES = {"weighted": (True, 4), "unweighted": (False, 9), "one process has no points": (False, 0)}


def synchronised_inputs(weighted):
    # the processes have different means and different numbers of points
    x = randn(12, 5) + torch.arange(12)[:, None] * 100
    weight = (torch.arange(12) * 7) % 5 if weighted else None
    return x, weight, randn(12, 5, seed=1)


def _synchronised_steps(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name, (weighted, split) in CASES.items():
        x, weight, pull = synchronised_inputs(weighted)
        rows = slice(0, split) if rank == 0 else slice(split, None)
        norm = synchronise_batch_norm(nn.Sequential(make_norm()), dist.group.WORLD)[0]
        x = x[rows].clone().requires_grad_()
        out = norm(x, None if weight is None else weight[rows])
        (out * pull[rows]).sum().backward()
        for grad in (norm.weight.grad, norm.bias.grad):
            dist.all_reduce(grad)
        grads = {"x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
        torch.save({"out": out.detach(), "grads": grads, "state": states(norm)}, f"{folder}/{name}.{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one_with_both_batches(tmp_path):
    mp.spawn(_synchronised_steps, (str(tmp_path),), nprocs=2)
    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-9)
    for name, (weighted, _) in CASES.items():
        x, weight, pull = synchronised_inputs(weighted)
        norm = make_norm()
        x.requires_grad_()
        out = norm(x, weight)
        (out * pull).sum().backward()
        ranks = [torch.load(tmp_path / f"{name}.{r}.pt", weights_only=True) for r in range(2)]
        close(torch.cat([r["out"] for r in ranks]), out.detach())
        close(torch.cat([r["grads"]["x"] for r in ranks]), x.grad)
        for rank in ranks:
            close(rank["grads"]["weight"], norm.weight.grad)
            close(rank["grads"]["bias"], norm.bias.grad)
            for key, value in norm.state_dict().items():
                close(rank["state"][key], value)


def test_conditions_have_layers_of_their_own():
    norm = ConditionalNorm(lambda: make_norm(3), ("rooms", "streets"))
    assert {name.rpartition(".")[0] for name in norm.state_dict()} == {"norm.0", "norm.1"}
    before = copy.deepcopy(norm)
    x = randn(10, 3)
    weight = torch.arange(10)
    torch.testing.assert_close(norm(x, "streets", weight), before.norm[1](x, weight))
    assert_same_state(norm.norm[1], before.norm[1])
    assert int(norm.norm[0].num_batches_tracked) == 0
    layers = ConditionalNorm(lambda: nn.LayerNorm(3).double(), ("rooms",))
    torch.testing.assert_close(layers(x, "rooms"), layers.norm[0](x))


@pytest.mark.parametrize("condition", ["forests", None])
def test_an_unknown_condition_is_named(condition):
    norm = ConditionalNorm(lambda: make_norm(3), ("rooms", "streets"))
    with pytest.raises(ConfigError, match=r"rooms, streets"):
        norm(randn(10, 3), condition)
