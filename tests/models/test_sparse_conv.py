# SPDX-License-Identifier: Apache-2.0
"""Submanifold convolution against a dense one, against finite differences, and one back end against the other."""

import subprocess
import sys

import pytest
import torch
from conv_cases import cloud, crowded, everything, features, needs_spconv, seeded
from hypothesis import given, settings
from torch.nn import functional

from ditr_cache.errors import ConfigError
from ditr_cache.models.sparse_conv import SubmanifoldConv3d, neighbours, spconv_backend, torch_backend


@pytest.fixture(params=["by pairs", "by table"])
def way(request, monkeypatch):
    """Both ways of the torch back end, whatever it would choose."""
    monkeypatch.setattr(torch_backend, "_MIN_FILL", {"by pairs": 2.0, "by table": 0.0}[request.param])
    monkeypatch.setattr(torch_backend, "_MAX_MATRIX", 1 << 30)
    # several runs even for these small clouds
    monkeypatch.setattr(torch_backend, "_MIN_RUN", 16)
    monkeypatch.setitem(torch_backend._RUN_BYTES, "cpu", 0)


def layer_of(in_channels, out_channels, kernel_size, backend="auto", dtype=torch.float64, bias=True):
    layer = SubmanifoldConv3d(in_channels, out_channels, kernel_size, bias, backend)
    layer.reset_parameters(seeded(1))
    return layer.to(dtype)


def dense(layer, x, grid, batch):
    """The same on a dense volume, by torch's own convolution."""
    low, high = grid.amin(0), grid.amax(0)
    index = (batch, *(grid - low).long().unbind(1))
    volume = x.new_zeros(int(batch.max()) + 1, *(high - low + 1).tolist(), x.shape[1]).index_put(index, x)
    y = functional.conv3d(volume.movedim(-1, 1), layer.weight.movedim(-1, 1), layer.bias, padding="same")
    return y.movedim(1, -1)[index]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_dense_convolution(kernel_size):
    grid, batch = cloud(300, 7)
    layer, x = layer_of(4, 5, kernel_size), features(len(grid), 4)
    table = neighbours(grid, batch, kernel_size, "torch")
    ours = everything(layer, x, table)
    expected = everything(layer, x, table, lambda leaf, _: dense(layer, leaf, grid, batch))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("distinct", [True, False])
def test_gradcheck(distinct):
    grid, batch = cloud(24, 3, distinct=distinct)
    layer, x = layer_of(2, 3, 3), features(len(grid), 2)
    table = neighbours(grid, batch, 3, "torch")
    assert (len(torch.unique(torch.cat((batch[:, None], grid), 1), dim=0)) < len(grid)) is not distinct

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, table))

    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("wanted", ["input", "weight"])
def test_only_the_gradient_that_is_wanted(wanted):
    grid, batch = cloud(60, 4)
    layer, x = layer_of(3, 6, 3, bias=False), features(len(grid), 3)
    table = neighbours(grid, batch, 3, "torch")
    _, *both = everything(layer, x, table)
    layer.weight.requires_grad_(wanted == "weight")
    leaf = x.detach().clone().requires_grad_(wanted == "input")
    y = layer(leaf, table)
    (y * torch.randn(y.shape, generator=seeded(3), dtype=torch.float64)).sum().backward()
    got, unwanted = (leaf.grad, layer.weight.grad)[:: 1 if wanted == "input" else -1]
    torch.testing.assert_close(got, both[wanted == "weight"], rtol=1e-12, atol=1e-12)
    assert unwanted is None


@needs_spconv
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize(
    ("kernel_size", "in_channels", "out_channels"), [(1, 5, 3), (3, 16, 16), (3, 5, 40), (5, 6, 32)]
)
def test_back_ends_are_equal(kernel_size, in_channels, out_channels, distinct):
    grid, batch = cloud(1500, 11, clouds=3, distinct=distinct)
    x = features(len(grid), in_channels, torch.float32)
    results = []
    for backend in ("torch", "spconv"):
        layer = layer_of(in_channels, out_channels, kernel_size, backend, torch.float32)
        results.append(everything(layer, x, neighbours(grid, batch, kernel_size, backend)))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@needs_spconv
def test_spconv_shares_its_pairs_and_knows_gradients_in_evaluation():
    grid, batch = cloud(200, 6)
    x = features(len(grid), 4, torch.float32)
    table = neighbours(grid, batch, 3, "spconv")
    first, second = (layer_of(4, 4, 3, "spconv", torch.float32).eval() for _ in range(2))
    y = first(x, table)
    pairs = dict(table.convolution.pairs)
    second(y, table).sum().backward()
    assert len(pairs) == 1
    assert all(table.convolution.pairs[key] is value for key, value in pairs.items())
    assert x.grad.abs().sum() > 0
    assert first.weight.grad.abs().sum() > 0


@needs_spconv
def test_spconv_leaves_the_global_generator_alone():
    grid, batch = cloud(50, 4)
    before = torch.get_rng_state()
    layer = layer_of(2, 2, 3, "spconv", torch.float32)
    torch.set_rng_state(before)
    layer(features(len(grid), 2, torch.float32), neighbours(grid, batch, 3, "spconv"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("backend", ["torch", pytest.param("spconv", marks=needs_spconv)])
@pytest.mark.parametrize("kernel_size", [3, 5])
@settings(deadline=None, max_examples=50)
@given(case=crowded())
def test_the_order_of_points_does_not_matter(backend, kernel_size, case):
    grid, batch, order = case
    dtype = torch.float64 if backend == "torch" else torch.float32
    layer, x = layer_of(3, 4, kernel_size, backend, dtype), features(len(grid), 3, dtype)
    y = layer(x, neighbours(grid, batch, kernel_size, backend))
    permuted = layer(x[order], neighbours(grid[order], batch[order], kernel_size, backend))
    tolerance = 1e-12 if backend == "torch" else 1e-5
    torch.testing.assert_close(permuted, y[order], rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=50)
@given(case=crowded())
def test_the_rule_for_shared_voxels(case):
    """Neighbours by the mean of their points, the centre by the point itself: written out point by point."""
    grid, batch, _ = case
    layer, x = layer_of(2, 3, 3), features(len(grid), 2).detach()
    y = layer(x, neighbours(grid, batch, 3, "torch"))
    for n in range(len(grid)):
        expected = layer.bias + layer.weight[:, 1, 1, 1] @ x[n]
        for offset in torch.cartesian_prod(*[torch.arange(3)] * 3).tolist():
            inside = (batch == batch[n]) & (grid == grid[n] + torch.tensor(offset) - 1).all(1)
            if offset != [1, 1, 1] and inside.any():
                expected = expected + layer.weight[(slice(None), *offset)] @ x[inside].mean(0)
        torch.testing.assert_close(y[n], expected, rtol=1e-10, atol=1e-10)


def test_clouds_do_not_see_each_other():
    grid, batch = cloud(200, 5, clouds=2)
    layer, x = layer_of(3, 3, 5), features(len(grid), 3)
    y = layer(x, neighbours(grid, batch, 5))
    for number in range(2):
        own = batch == number
        alone = layer(x[own], neighbours(grid[own], batch[own], 5))
        torch.testing.assert_close(y[own], alone, rtol=1e-12, atol=1e-12)


def test_margins_keep_rows_of_voxels_apart():
    """(0, 1, 9) and (0, 2, 0) follow each other in raster order, as do (0, 9, 9) and (1, 0, 0)."""
    grid = torch.tensor([[0, 1, 9], [0, 2, 0], [0, 9, 9], [1, 0, 0]])
    pairs = neighbours(grid, torch.zeros(4, dtype=torch.int64), 3, "torch").convolution.pairs
    assert sum(pairs.counts) == 0


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_as_in_a_linear_layer(dtype):
    grid, batch = cloud(300, 6)
    table = neighbours(grid, batch, 3, "torch")
    layer, x = layer_of(8, 8, 3, dtype=torch.float32), features(len(grid), 8, torch.float32)
    exact = everything(layer, x, table)
    with torch.autocast("cpu", dtype):
        y = layer(x, table)
        assert y.dtype == functional.linear(x, layer.weight[:, 0, 0, 0]).dtype == dtype
        rounded = everything(layer, x, table)
    for found, expected in zip(rounded[1:], exact[1:], strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() <= 4 * torch.finfo(dtype).eps * expected.norm()
    with torch.autocast("cpu", dtype):
        assert layer.double()(x.double(), table).dtype == torch.float64


@needs_spconv
def test_autocast_with_spconv():
    grid, batch = cloud(300, 6)
    layer, x = layer_of(8, 8, 3, dtype=torch.float32), features(len(grid), 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (layer(x, neighbours(grid, batch, 3, backend)) for backend in ("torch", "spconv"))
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert (ours - theirs).norm() <= 4 * torch.finfo(torch.bfloat16).eps * ours.norm()


@pytest.mark.parametrize("backend", ["torch", pytest.param("spconv", marks=needs_spconv)])
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_next_to_nothing(backend, count, kernel_size):
    layer, x = layer_of(2, 3, kernel_size, backend, torch.float32), features(count, 2, torch.float32)
    table = neighbours(
        torch.zeros(count, 3, dtype=torch.int32), torch.zeros(count, dtype=torch.int64), kernel_size, backend
    )
    y = layer(x, table)
    y.sum().backward()
    middle = kernel_size // 2
    expected = functional.linear(x, layer.weight[:, middle, middle, middle], layer.bias)
    torch.testing.assert_close(y, expected)
    assert x.grad.shape == x.shape


def test_initial_weights_stay_within_the_bound_and_come_from_the_generator():
    layer = layer_of(4, 8, 3, dtype=torch.float32)
    bound = (4 * 27) ** -0.5
    for parameter in layer.parameters():
        assert parameter.abs().max() <= bound
    assert layer.weight.abs().max() > 0.9 * bound
    assert torch.equal(layer.weight, layer_of(4, 8, 3, dtype=torch.float32).weight)


def test_a_table_of_something_else_is_refused():
    grid, batch = cloud(20, 4)
    table = neighbours(grid, batch, 3, "torch")
    x = features(len(grid), 2)
    with pytest.raises(ValueError, match="does not fit"):
        layer_of(2, 2, 5)(x, table)
    with pytest.raises(ValueError, match="does not fit"):
        layer_of(2, 2, 3)(x[1:], table)
    with pytest.raises(ValueError, match="runs with spconv, the table was built for torch"):
        layer_of(2, 2, 3, "spconv")(x, table)
    with pytest.raises(ValueError, match="odd kernel size, not 2"):
        neighbours(grid, batch, 2)


def test_extents_without_keys_are_refused():
    grid = torch.tensor([[0, 0, 0], [2**21, 2**21, 2**21]])
    with pytest.raises(ConfigError, match="2097153 x 2097153 x 2097153 voxels have no 63-bit keys"):
        neighbours(grid, torch.zeros(2, dtype=torch.int64), 3)


def test_spconv_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv", None)
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    spconv_backend.require_spconv.cache_clear()
    grid, batch = cloud(20, 4)
    with pytest.raises(ConfigError, match=r"spconv is not installed[\s\S]*pip install"):
        neighbours(grid, batch, 3, "spconv")


def test_spconv_is_not_imported_unless_asked_for():
    script = """
import sys, torch
from ditr_cache.models.sparse_conv import SubmanifoldConv3d, neighbours
table = neighbours(torch.zeros(1, 3, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), 3)
SubmanifoldConv3d(1, 1, 3)(torch.ones(1, 1), table)
assert table.backend == "torch" and not any(name.startswith(("spconv", "cumm")) for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
