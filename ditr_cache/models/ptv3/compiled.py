# SPDX-License-Identifier: Apache-2.0
"""torch.compile where there is a compiler, and the same function without it where there is none."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., Any])

_LOG = logging.getLogger(__name__)

# widths of the stages x with and without drop path x training, evaluation, inference; torch gives up after 8
_GRAPHS = 64


@functools.cache
def compiled(function: F) -> F:
    """Compile `function` for any number of points.

    Called with the module as its argument, one compiled function serves all blocks of a width. Should compiling fail
    (no C++ compiler on a CPU, no Triton on a GPU), one warning is logged and `function` itself serves from then on.

    Args:
        function: Dense, with a module and tensors as arguments.
    """
    # an import of torch._dynamo takes seconds: only those pay who compile
    import torch._dynamo as dynamo
    from torch._dynamo.exc import TorchDynamoException

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, _GRAPHS)
    fast = torch.compile(function, dynamic=True)
    available = True

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        nonlocal available
        if available:
            try:
                return fast(*args)
            except TorchDynamoException as error:
                available = False
                _warn(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        return function(*args)

    return call  # type: ignore[return-value]


@functools.cache
def _warn(reason: str) -> None:
    _LOG.warning("torch.compile does not work here (%s): going on without it", reason)
