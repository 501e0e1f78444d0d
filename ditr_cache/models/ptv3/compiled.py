# SPDX-License-Identifier: Apache-2.0
"""torch.compile where there is a compiler, and the same function without it where there is none."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., Any])

_LOG = logging.getLogger(__name__)

# widths of the stages x with and without drop path x training, evaluation, inference; torch gives up after 8
_GRAPHS = 64


class _Compiler:
    """What this process knows of its compiler."""

    works: ClassVar[bool] = True


@functools.cache
def compiled(function: F) -> F:
    """Compile `function` for any number of points.

    Called with its module as an argument, one compiled function serves all blocks of a width. Should compiling fail (no
    C++ compiler on a CPU, no Triton on a GPU), one warning is logged, and functions serve as they are from then on.

    Args:
        function: Dense, with a module and tensors as arguments.
    """
    # an import of torch._dynamo takes seconds: only those pay who compile
    import torch._dynamo as dynamo
    from torch._dynamo.exc import TorchDynamoException

    # torch 2.6 has the older name alone
    limit = "recompile_limit" if hasattr(dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(dynamo.config, limit, max(getattr(dynamo.config, limit), _GRAPHS))
    fast = torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if _Compiler.works:
            try:
                return fast(*args)
            except TorchDynamoException as error:
                _Compiler.works = False
                reason = str(error).strip().partition("\n")[0]
                _LOG.warning("torch.compile does not work here, going on without it: %s", reason)
        return function(*args)

    return call  # type: ignore[return-value]
