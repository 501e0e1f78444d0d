# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch
from ptv3_cases import cloud, identity, make_batch, tiny_config

from ditr_cache.models.ptv3.attention import RelativePositionBias, SerialisedAttention
from ditr_cache.models.ptv3.level import build_pyramid
from ditr_cache.models.random import draw_weights


def by_definition(attention, x, level, curve, length):
    """Point by point, from the words of the papers."""
    n, channels = x.shape
    q, k, v = attention.qkv(x).view(n, 3, attention.heads, -1).unbind(1)
    out = torch.zeros_like(v)
    order = torch.argsort(level.codes[curve])
    starts = (0, *level.ends[:-1])
    for start, end in zip(starts, level.ends, strict=True):
        size = min(length, end - start)
        for local in range(end - start):
            first = start + min(local // size * size, end - start - size)
            mates, point = order[first : first + size], order[start + local]
            scores = torch.einsum("he,khe->hk", q[point], k[mates]) * q.shape[-1] ** -0.5
            if isinstance(attention.rpe, RelativePositionBias):
                reach, table = attention.rpe.reach, attention.rpe.rpe_table
                step = (level.grid_coord[point] - level.grid_coord[mates]).clamp(-reach, reach) + reach
                for axis in range(3):
                    scores = scores + table[axis * (2 * reach + 1) + step[:, axis].long()].T
            out[point] = torch.einsum("hk,khe->he", scores.softmax(1), v[mates])
    return attention.proj(out.reshape(n, channels))


@pytest.mark.parametrize("counts", [(100,), (16,), (7,), (1,), (50, 7, 16, 33, 1), (5, 9)])
@pytest.mark.parametrize("relative", [False, True])
def test_attention_by_definition(counts, relative):
    config = tiny_config(enable_rpe=relative, compatibility="fixed")
    batch = make_batch(*(cloud(i, n) for i, n in enumerate(counts)))
    level = build_pyramid(batch, config, identity(config)).levels[0]
    attention = SerialisedAttention(8, 2, 16, relative=relative).double()
    draw_weights(attention, torch.Generator().manual_seed(0))
    x = torch.randn(len(level), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.randn(len(level), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for curve in (0, 3):
        gradients = []
        outputs = []
        for function in (attention, lambda *a: by_definition(attention, *a, 16)):
            out = function(x, level, curve)
            outputs.append(out)
            gradients.append(torch.autograd.grad((out * weight).sum(), [x, *attention.parameters()]))
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
        for ours, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_table_reaches_as_far_as_upstream():
    assert [len(RelativePositionBias(k, 1).rpe_table) for k in (48, 128, 1024)] == [3 * 23, 3 * 31, 3 * 63]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("relative", [False, True])
@torch.no_grad()
def test_upcast_computes_wider(dtype, relative):
    config = tiny_config(enable_rpe=relative)
    level = build_pyramid(make_batch(cloud(0, 60)), config, identity(config)).levels[0]
    generator = torch.Generator().manual_seed(0)
    qkv = 3 * torch.randn(60, 24, generator=generator)
    errors = {}
    for upcast in (False, True):
        attention = SerialisedAttention(8, 2, 16, upcast=upcast, relative=relative)
        draw_weights(attention, torch.Generator().manual_seed(0))
        exact = attention.attend(qkv.to(dtype).float(), level, 0)
        out = attention.attend(qkv.to(dtype), level, 0)
        assert out.dtype == dtype
        errors[upcast] = float((out.float() - exact).abs().mean())
    assert errors[True] <= errors[False]
    # what is left is the rounding of the result
    assert errors[True] < float(torch.finfo(dtype).eps) * float(exact.abs().mean())


def test_all_curves_differ():
    config = tiny_config()
    level = build_pyramid(make_batch(cloud(0, 200)), config, identity(config)).levels[0]
    attention = SerialisedAttention(8, 2, 16)
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    outputs = [attention(x, level, curve) for curve in range(5)]
    assert torch.equal(outputs[0], outputs[4])
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(outputs[:4], 2))
