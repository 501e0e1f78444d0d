# SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend on what they are for, and on nothing else.

Every draw of stage two is named by keys (seed, epoch, sample, what for), and the keys decide the stream: not the
process, the worker, the number of either, or what was drawn before. A resumed run so sees what an unbroken one would.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["rng_for", "seed_for", "torch_generator_for"]


def seed_for(seed: int, *keys: int | str) -> int:
    """A seed of 63 bits for whatever takes one: the first bytes of sha256 over the keys as JSON.

    Args:
        seed: The run's seed.
        keys: What the stream is for; `1` and `"1"` are different keys.
    """
    return int.from_bytes(_digest(seed, keys)[:8], "little") >> 1


def rng_for(seed: int, *keys: int | str) -> np.random.Generator:
    """A NumPy generator of its own for every list of keys.

    PCG64 whose 128 bits of state and increment are set from sha256 directly: its raw stream is one that NumPy promises
    never to change (NEP 19), on any platform. How `Generator` makes uniform and normal numbers of it has no such
    promise between NumPy versions, so an exact resume wants the NumPy that the run began with.

    Args:
        seed: The run's seed.
        keys: What the stream is for; `1` and `"1"` are different keys.
    """
    digest = _digest(seed, keys)
    bits = np.random.PCG64(0)
    bits.state = {
        "bit_generator": "PCG64",
        # the increment must be odd
        "state": {"state": int.from_bytes(digest[:16], "little"), "inc": int.from_bytes(digest[16:], "little") | 1},
        "has_uint32": 0,
        "uinteger": 0,
    }
    return np.random.Generator(bits)


def torch_generator_for(seed: int, *keys: int | str) -> torch.Generator:
    """A torch CPU generator of its own for every list of keys."""
    import torch

    return torch.Generator().manual_seed(seed_for(seed, *keys))


def _digest(seed: int, keys: tuple[int | str, ...]) -> bytes:
    # JSON keeps lists of keys apart that a join would not, such as ("a", "b") and ("ab",)
    named = [int(seed), *(key if isinstance(key, str) else int(key) for key in keys)]
    return hashlib.sha256(json.dumps(named).encode()).digest()
