# SPDX-License-Identifier: Apache-2.0
"""Threads and determinism of this process, put back afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ditr_cache.training.config import RunConfig

__all__ = ["settled"]


@contextmanager
def settled(config: RunConfig, threads: int | None = None) -> Iterator[int]:
    """Within, torch computes as the settings say.

    Args:
        config: Of the run.
        threads: What the run began with, where the settings leave it open and the last digit matters.

    Yields:
        The number of threads.
    """
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    wanted = config.threads or (threads if config.deterministic else None)
    if wanted is not None:
        torch.set_num_threads(wanted)
    if config.deterministic:
        # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
