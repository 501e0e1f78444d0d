# SPDX-License-Identifier: Apache-2.0
"""A store to where others can get it."""

from __future__ import annotations

import os

from ditr_cache.pipelines.progress import Progress
from ditr_cache.pipelines.pull import Pull
from ditr_cache.pipelines.share import DEFAULT_JOBS, ShareReport

__all__ = ["Push"]


class Push:
    """The same way as `Pull`, in the other direction: always the whole store.

    Args:
        store: Folder or URL of the store; `@sha256:<version>` behind it pins that version.
        url: Where it goes; what is there already stays.
        jobs: Threads.
        rehash: Read again what is there already.
        progress: Who listens; counts bytes.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        url: str | os.PathLike[str],
        *,
        jobs: int = DEFAULT_JOBS,
        rehash: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._pull = Pull(store, url, jobs=jobs, rehash=rehash, progress=progress)

    def run(self) -> ShareReport:
        """Bring it. A run that was killed goes on when it is run again; see `Pull.run` for errors."""
        return self._pull.run()
