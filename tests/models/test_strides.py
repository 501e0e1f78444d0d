# SPDX-License-Identifier: Apache-2.0
"""Strided and transposed convolution against dense ones, finite differences, and one back end against the other."""

import pytest
import torch
from conv_cases import cloud, crowded, everything, features, needs_spconv, seeded
from hypothesis import given, settings
from torch.nn import functional

from ditr_cache.errors import ConfigError
from ditr_cache.models.sparse_conv import StridedConv3d, TransposedConv3d, strides

KINDS = [StridedConv3d, TransposedConv3d]
BACKENDS = ["torch", pytest.param("spconv", marks=needs_spconv)]


def layer_of(kind, in_channels, out_channels, stride=2, backend="auto", dtype=torch.float64):
    layer = kind(in_channels, out_channels, stride, backend)
    layer.reset_parameters(seeded(1))
    return layer.to(dtype)


def rows(kind, table):
    """How many the layer takes."""
    return len(table.coarse_N if kind is StridedConv3d else table.batch)


def volume(x, grid, batch, extent):
    """`[B, C, *extent]` with the features of distinct voxels, 0 elsewhere."""
    index = (batch, *grid.long().unbind(1))
    return x.new_zeros(int(batch.max()) + 1, *extent, x.shape[1]).index_put(index, x).movedim(-1, 1)


def dense(kind, layer, x, grid, batch, table):
    """The same on dense volumes, by torch's own convolutions."""
    s = layer.stride
    low = table.grid_coord.amin(0)
    coarse = table.grid_coord - low
    extent = (coarse.amax(0) + 1).tolist()
    fine = grid - s * low
    if kind is StridedConv3d:
        y = functional.conv3d(volume(x, fine, batch, [s * n for n in extent]), layer.weight.movedim(-1, 1), stride=s)
        return y.movedim(1, -1)[(table.batch, *coarse.long().unbind(1))]
    y = functional.conv_transpose3d(
        volume(x, coarse, table.batch, extent), layer.weight.permute(4, 0, 1, 2, 3), stride=s
    )
    return y.movedim(1, -1)[(batch, *fine.long().unbind(1))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [2, 3])
def test_dense_convolution(kind, stride):
    grid, batch = cloud(300, 8)
    table = strides(grid, batch, stride, "torch")
    layer, x = layer_of(kind, 4, 5, stride), features(rows(kind, table), 4)
    ours = everything(layer, x, table)
    expected = everything(layer, x, table, lambda leaf, _: dense(kind, layer, leaf, grid, batch, table))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distinct", [True, False])
def test_gradcheck(kind, distinct):
    grid, batch = cloud(24, 3, distinct=distinct)
    table = strides(grid, batch, 2, "torch")
    assert (len(torch.unique(torch.cat((batch[:, None], grid), 1), dim=0)) < len(grid)) is not distinct
    layer, x = layer_of(kind, 2, 3), features(rows(kind, table), 2)

    def function(x, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (x, table))

    assert torch.autograd.gradcheck(function, (x, layer.weight))


@needs_spconv
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize(("in_channels", "out_channels", "stride"), [(16, 16, 2), (5, 40, 2), (6, 3, 3)])
def test_back_ends_are_equal(kind, in_channels, out_channels, stride, distinct):
    grid, batch = cloud(1500, 11, clouds=3, distinct=distinct)
    results, tables = [], [strides(grid, batch, stride, backend) for backend in ("torch", "spconv")]
    for name in ("grid_coord", "batch", "coarse_N"):
        assert torch.equal(*(getattr(table, name) for table in tables))
    x = features(rows(kind, tables[0]), in_channels, torch.float32)
    for table in tables:
        layer = layer_of(kind, in_channels, out_channels, stride, table.backend, torch.float32)
        results.append(everything(layer, x, table))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@needs_spconv
def test_down_then_up_share_their_pairs():
    grid, batch = cloud(200, 6)
    table = strides(grid, batch, 2, "spconv")
    down, up = (layer_of(kind, 4, 4, dtype=torch.float32).eval() for kind in KINDS)
    y = down(features(len(grid), 4, torch.float32), table)
    pairs = table.strides._pairs
    up(y, table).sum().backward()
    assert table.strides._pairs is pairs
    assert down.weight.grad.abs().sum() > 0


@settings(deadline=None, max_examples=50)
@given(case=crowded())
def test_every_point_is_part_of_one_coarse_voxel(case):
    grid, batch, _ = case
    table = strides(grid, batch, 2)
    assert torch.equal(table.grid_coord[table.coarse_N], grid.div(2, rounding_mode="floor"))
    assert torch.equal(table.batch[table.coarse_N], batch)
    everywhere = torch.cat((table.batch[:, None], table.grid_coord), 1)
    assert torch.equal(everywhere, torch.unique(everywhere, dim=0))
    assert torch.equal(table.coarse_N[table.order_N], table.coarse_N.sort().values)
    assert torch.equal(table.pointers_M.diff(), torch.bincount(table.coarse_N))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=50)
@given(case=crowded())
def test_the_order_of_points_does_not_matter(backend, case):
    grid, batch, order = case
    dtype, tolerance = (torch.float64, 1e-12) if backend == "torch" else (torch.float32, 1e-5)
    down, up = layer_of(StridedConv3d, 3, 4, dtype=dtype), layer_of(TransposedConv3d, 4, 2, dtype=dtype)
    x = features(len(grid), 3, dtype)
    tables = strides(grid, batch, 2, backend), strides(grid[order], batch[order], 2, backend)
    coarse, permuted = down(x, tables[0]), down(x[order], tables[1])
    torch.testing.assert_close(permuted, coarse, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(up(permuted, tables[1]), up(coarse, tables[0])[order], rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=30)
@given(case=crowded())
def test_the_rule_for_shared_voxels(case):
    """Down by the mean of a voxel's points, up the same for all of them: written out."""
    grid, batch, _ = case
    table = strides(grid, batch, 2, "torch")
    down, up = layer_of(StridedConv3d, 2, 3), layer_of(TransposedConv3d, 3, 2)
    x = features(len(grid), 2).detach()
    y = down(x, table)
    for m in range(len(y)):
        expected = torch.zeros(3, dtype=torch.float64)
        for offset in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
            inside = (batch == table.batch[m]) & (grid == 2 * table.grid_coord[m] + torch.tensor(offset)).all(1)
            if inside.any():
                expected = expected + down.weight[(slice(None), *offset)] @ x[inside].mean(0)
        torch.testing.assert_close(y[m], expected, rtol=1e-10, atol=1e-10)
    z = up(y, table)
    for n in range(len(grid)):
        expected = up.weight[(slice(None), *(grid[n] % 2).tolist())] @ y[table.coarse_N[n]]
        torch.testing.assert_close(z[n], expected, rtol=1e-10, atol=1e-10)


def test_clouds_do_not_see_each_other():
    grid, batch = cloud(200, 5, clouds=2)
    down, up = layer_of(StridedConv3d, 3, 4), layer_of(TransposedConv3d, 4, 2)
    x, table = features(len(grid), 3), strides(grid, batch)
    z = up(down(x, table), table)
    for number in range(2):
        own = batch == number
        alone = strides(grid[own], batch[own])
        torch.testing.assert_close(z[own], up(down(x[own], alone), alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_as_in_a_linear_layer(kind, dtype, backend):
    if backend == "spconv" and dtype == torch.float16:
        pytest.skip("spconv has no float16 on a CPU")
    grid, batch = cloud(300, 6)
    table = strides(grid, batch, 2, backend)
    layer, x = layer_of(kind, 8, 8, dtype=torch.float32), features(rows(kind, table), 8, torch.float32)
    exact = everything(layer, x, table)
    with torch.autocast("cpu", dtype):
        assert layer(x, table).dtype == dtype
        rounded = everything(layer, x, table)
    for found, expected in zip(rounded[1:], exact[1:], strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() <= 4 * torch.finfo(dtype).eps * expected.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 1])
def test_next_to_nothing(backend, count):
    grid, batch = torch.full((count, 3), -1, dtype=torch.int32), torch.zeros(count, dtype=torch.int64)
    table = strides(grid, batch, 2, backend)
    down, up = (layer_of(kind, 2, 2, dtype=torch.float32) for kind in KINDS)
    x = features(count, 2, torch.float32)
    y = up(down(x, table), table)
    y.sum().backward()
    expected = functional.linear(functional.linear(x, down.weight[:, 1, 1, 1]), up.weight[:, 1, 1, 1])
    torch.testing.assert_close(y, expected)
    assert x.grad.shape == x.shape


def test_a_table_of_something_else_is_refused():
    grid, batch = cloud(20, 4)
    table = strides(grid, batch, 2, "torch")
    for kind in KINDS:
        x = features(rows(kind, table), 2)
        with pytest.raises(ValueError, match="does not fit"):
            layer_of(kind, 2, 2, 3)(x, table)
        with pytest.raises(ValueError, match="does not fit"):
            layer_of(kind, 2, 2)(x[1:], table)
        with pytest.raises(ValueError, match="runs with spconv, the table was built for torch"):
            layer_of(kind, 2, 2, 2, "spconv")(x, table)
    with pytest.raises(ValueError, match="stride of 2 at least, not 1"):
        strides(grid, batch, 1)


def test_extents_without_keys_are_refused():
    grid = torch.tensor([[0, 0, 0], [2**22, 2**22, 2**22]])
    with pytest.raises(ConfigError, match="voxels have no 63-bit keys"):
        strides(grid, torch.zeros(2, dtype=torch.int64))
