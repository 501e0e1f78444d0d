# SPDX-License-Identifier: Apache-2.0
"""int8 rows: exact affine, half a step of error at most, constant and tiny channels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditr_cache.store.quantize import cosine_error, quantise
from ditr_cache.types import FactoredFeatures


def decode(q_RD: np.ndarray, affine_2D: np.ndarray) -> np.ndarray:
    return affine_2D[0] + affine_2D[1] * (q_RD.astype(np.float32) + np.float32(128))


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    scale=st.sampled_from([1e-44, 1e-40, 1e-38, 1e-30, 1e-3, 1.0, 6e4]),
    offset=st.sampled_from([0.0, 1.0, -300.0]),
)
def test_no_value_is_off_by_more_than_half_a_step(seed, rows, scale, offset):
    rng = np.random.default_rng(seed)
    x_RD = np.clip(rng.normal(size=(rows, 5)) * scale / 3 + offset, -65_504, 65_504).astype(np.float32)
    q_RD, affine_2D, error_R = quantise(torch.from_numpy(x_RD.copy()))
    assert (q_RD.dtype, affine_2D.dtype, error_R.dtype) == (np.int8, np.float32, np.float32)
    assert np.isfinite(affine_2D).all()
    np.testing.assert_array_equal(affine_2D[0], x_RD.min(0))
    y_RD = decode(q_RD, affine_2D)
    spacing = np.spacing(np.abs(x_RD).max(0))
    # a range too narrow for a normal step counts as constant
    half = np.maximum(affine_2D[1] / 2, 255 * np.finfo(np.float32).tiny)
    assert (np.abs(y_RD - x_RD) <= half * (1 + 1e-4) + 2 * spacing).all()
    assert (error_R >= 0).all()


def test_constant_channels_have_step_zero_and_the_lowest_code():
    x_RD = torch.tensor([[1.5, 0.0, -7.0]] * 4)
    q_RD, affine_2D, error_R = quantise(x_RD.clone())
    assert (q_RD == -128).all()
    assert affine_2D.tolist() == [[1.5, 0.0, -7.0], [0.0, 0.0, 0.0]]
    assert (error_R < 1e-6).all()


def test_the_whole_range_of_codes_is_used():
    q_RD, _, _ = quantise(torch.linspace(-3, 9, 1000)[:, None].clone())
    assert (q_RD.min(), q_RD.max()) == (-128, 127)
    assert (np.diff(q_RD[:, 0].astype(int)) >= 0).all()


def test_a_view_without_rows():
    q_RD, affine_2D, error_R = quantise(torch.empty(0, 6))
    assert (q_RD.shape, affine_2D.shape, error_R.shape) == ((0, 6), (2, 6), (0,))
    assert not affine_2D.any()


@pytest.mark.parametrize("angle", [0.0, 1e-2, 0.5, np.pi / 2, np.pi])
def test_cosine_error(angle):
    a = np.array([[3.0, 0.0], [0.0, 0.0]], np.float32)
    b = np.array([[np.cos(angle), np.sin(angle)], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(cosine_error(a, b), [1 - np.cos(angle), 0], atol=3e-7)


def test_the_measured_error_is_that_of_what_is_read():
    x_RD = torch.from_numpy(np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32))
    q_RD, affine_2D, error_R = quantise(x_RD.clone())
    read = FactoredFeatures(q_RD, np.arange(300, dtype=np.int32), affine_2D[None], np.zeros(300, np.int32)).dequantise()
    cosine = torch.nn.functional.cosine_similarity(x_RD.double(), torch.from_numpy(read.rows).double(), dim=1)
    np.testing.assert_allclose(error_R, 1 - cosine.numpy(), atol=5e-7)
    assert np.quantile(error_R, 0.99) < 1e-4
