# SPDX-License-Identifier: Apache-2.0
"""What the processes do that tests start and kill. Real files, real flushing."""

import os
from collections.abc import Sequence

from ditr_cache.pipelines.merge import Merge
from ditr_cache.pipelines.pull import Pull
from ditr_cache.pipelines.push import Push
from ditr_cache.store.subset import Selection

PART = Selection(samples=("*s1", "scène 0/*"), views=3)


def push(sources: Sequence[str], target: str, environment: dict[str, str]) -> None:
    """The whole store, blocks as they are."""
    os.environ.update(environment)
    Push(sources[0], target, jobs=2).run()


def pull(sources: Sequence[str], target: str, environment: dict[str, str]) -> None:
    """A part of it, blocks made anew."""
    os.environ.update(environment)
    Pull(sources[0], target, PART, jobs=2).run()


def merge(sources: Sequence[str], target: str, environment: dict[str, str]) -> None:
    """All of them."""
    os.environ.update(environment)
    Merge(sources, target, jobs=2).run()
