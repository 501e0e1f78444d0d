# SPDX-License-Identifier: Apache-2.0
"""Streams depend on their keys and on nothing else."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ditr_cache.training.seeding import rng_for, seed_for, torch_generator_for

SEED = 7705403122525768258
RAW = [12544406880737099569, 16339806838008051750, 14442384436218850808]
TORCH = 1095306451662545179
PERMUTATION = [5, 1, 0, 6, 3, 2, 7, 4]
KEYS = [
    (),
    (1,),
    ("1",),
    (0, 0),
    ("a", "b"),
    ("ab",),
    ("a", "b", ""),
    (-1,),
    (2**70,),
    ("ä",),
    ("views", 3, 7, "scene0000_00"),
]


def test_every_list_of_keys_has_a_stream_of_its_own():
    streams = {rng_for(seed, *keys).bit_generator.random_raw(4).tobytes() for seed in (0, 1) for keys in KEYS}
    assert len(streams) == 2 * len(KEYS)
    assert len({seed_for(0, *keys) for keys in KEYS}) == len(KEYS)
    assert len({torch.rand(3, generator=torch_generator_for(0, *keys)).numpy().tobytes() for keys in KEYS}) == len(KEYS)


def test_streams_are_what_they_always_were():
    """Written down once: a change here breaks every resumed run."""
    assert seed_for(0, "views", 3, 7, "scene0000_00") == SEED
    assert rng_for(0, "views", 3, 7, "scene0000_00").bit_generator.random_raw(3).tolist() == RAW
    assert torch_generator_for(1, "model", 5).initial_seed() == TORCH
    np.testing.assert_array_equal(rng_for(7).permutation(8), PERMUTATION)


def test_neither_process_nor_hash_seed_matters():
    code = "from ditr_cache.training.seeding import *; print(seed_for(0, 'views', 3, 7, 'scene0000_00'))"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hash_seed}
        )
        assert int(done.stdout) == SEED


def test_global_state_is_neither_read_nor_written():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    first = rng_for(3).random(), torch.rand(1, generator=torch_generator_for(3)).item()
    assert (np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()) == before
    np.random.seed(1)
    torch.manual_seed(1)
    assert (rng_for(3).random(), torch.rand(1, generator=torch_generator_for(3)).item()) == first


@pytest.mark.parametrize("integer", [np.int64(5), np.int32(5), 5])
def test_integers_of_any_kind_are_the_same_key(integer):
    assert seed_for(0, integer) == seed_for(0, 5)


def test_numbers_are_uniform():
    values = np.array([rng_for(0, "u", i).random() for i in range(5000)])
    counts = np.histogram(values, 20, (0, 1))[0]
    assert ((counts - 250) ** 2 / 250).sum() < 80  # chi-square, 19 degrees: p < 1e-8
