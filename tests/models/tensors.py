# SPDX-License-Identifier: Apache-2.0
"""How large the tensors are that something makes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Records the most numbers that any floating tensor made within has; with `width`, any whose rows are that wide."""

    def __init__(self, width=None):
        super().__init__()
        self.width, self.numel = width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.is_floating_point()]
        self.numel = max([self.numel, *(t.numel() for t in made if self.width in (None, *t.shape[-1:]))])
        return out
