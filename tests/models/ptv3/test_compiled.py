# SPDX-License-Identifier: Apache-2.0
import copy
import logging
import shutil
from collections.abc import Iterator

import pytest
import torch
from ptv3_cases import cloud, make_batch, tiny_model

from ditr_cache.models.ptv3 import compiled as module

# the compiler's own imports warn
pytestmark = pytest.mark.filterwarnings("default")

ONE_WIDTH = {
    "stride": (2,),
    "enc_depths": (1, 2),
    "enc_channels": (8, 8),
    "enc_num_head": (2, 2),
    "enc_patch_size": (16, 16),
    "dec_depths": (1,),
    "dec_channels": (8,),
    "dec_num_head": (2,),
    "dec_patch_size": (16,),
    "drop_path": 0.3,
}


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(module._Compiler, "works", True)
    module.compiled.cache_clear()
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def results(**changes) -> list[torch.Tensor]:
    """Outputs in training and evaluation at three sizes, and gradients."""
    model = tiny_model(dtype=torch.float32, **ONE_WIDTH, **changes)
    out = []
    for points in (200, 150, 30):
        batch = make_batch(cloud(points, points), dtype=torch.float32)
        model.train().zero_grad()
        trained = model(batch, generator=torch.Generator().manual_seed(points))
        trained.square().mean().backward()
        out += [trained.detach(), *(p.grad.clone() for p in model.parameters())]
        with torch.no_grad():
            out.append(model.eval()(batch))
    return out


def said(caplog) -> list[str]:
    """By us; torch may log what went wrong inside of it."""
    return [record.message for record in caplog.records if record.name == module.__name__]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_is_eager(caplog):
    torch._dynamo.utils.counters.clear()
    for ours, eager in zip(results(compile=True), results(), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    # two halves in training, with and without drop path, and in evaluation: shared by four blocks and three sizes
    assert 4 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
    assert said(caplog) == []


def test_without_a_compiler_it_warns_once_and_goes_on(caplog):
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        with caplog.at_level(logging.WARNING, logger=module.__name__):
            fallen_back = results(compile=True)
        assert [message.partition(",")[0] for message in said(caplog)] == ["torch.compile does not work here"]
    assert all(torch.equal(a, b) for a, b in zip(fallen_back, results(), strict=True))


def test_a_model_that_compiles_can_be_copied():
    model = tiny_model(dtype=torch.float32, **ONE_WIDTH, compile=True)
    assert len(copy.deepcopy(model).state_dict()) == len(model.state_dict())
