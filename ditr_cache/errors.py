# SPDX-License-Identifier: Apache-2.0
"""Every error that the library raises on purpose.

One tree. Each leaf is also a built-in, so that callers who know nothing of this package can still catch it. A message
says what is wrong, where, and what to do next; the command line prints it as it stands.
"""

__all__ = [
    "BackboneError",
    "CheckpointError",
    "ConfigError",
    "CorruptStoreError",
    "DatasetError",
    "DitrCacheError",
    "FrameError",
    "IdentityMismatchError",
    "IncompleteStoreError",
    "MetadataError",
    "QuantisationError",
    "RemoteError",
    "SampleError",
    "SampleNotFoundError",
    "SignatureError",
    "StoreError",
    "StoreNotFoundError",
    "TrainingError",
    "WeightsError",
    "WeightsUnavailableError",
]


class DitrCacheError(Exception):
    """Root of the tree.

    Args:
        what: One sentence: what is wrong.
        where: File, frame or key it is wrong in.
        hint: What the reader can do about it, as a command where there is one.
    """

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        parts = [what if where is None else f"{where}: {what}"]
        if hint:
            parts.append(hint)
        super().__init__("\n".join(parts))
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint

    def __str__(self) -> str:
        # KeyError would print the repr of its argument.
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments do not survive the default pickling between processes
        return (_rebuild, (type(self), self.what, self.where, self.hint))


def _rebuild(kind: type[DitrCacheError], what: str, where: str | None, hint: str | None) -> DitrCacheError:
    return kind(what, where=where, hint=hint)


class ConfigError(DitrCacheError, ValueError):
    """A setting is unknown, has the wrong type or is out of range."""


class DatasetError(DitrCacheError, ValueError):
    """A data set is not in the layout its reader expects."""


class SampleError(DatasetError):
    """One sample (scene or keyframe) cannot be used; the others can."""


class FrameError(DatasetError):
    """One image or depth map cannot be used; the others can."""


class BackboneError(DitrCacheError, ValueError):
    """A backbone cannot do what is asked of it (size, layer, dtype)."""


class WeightsError(DitrCacheError, ValueError):
    """A file of weights cannot be read, or does not fit the model."""


class WeightsUnavailableError(DitrCacheError, OSError):
    """Backbone weights are neither on disk nor to be had from the hub."""


class StoreError(DitrCacheError):
    """Root of everything that concerns a store."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at that place."""


class SampleNotFoundError(StoreError, KeyError):
    """The store has no sample of that id."""


class IdentityMismatchError(StoreError, ValueError):
    """The store was made with other settings than those asked for."""


class IncompleteStoreError(StoreError, ValueError):
    """Blocks are planned but not present."""


class MetadataError(StoreError, ValueError):
    """A manifest, receipt or Zarr document says something impossible or unsafe."""


class CorruptStoreError(StoreError, OSError):
    """Stored bytes are missing or not the ones that were written."""


class RemoteError(StoreError, OSError):
    """A server cannot be reached, refuses, or does not answer as it should."""


class SignatureError(StoreError, ValueError):
    """A store is not signed, or not by whom it should be."""


class QuantisationError(StoreError, ValueError):
    """int8 would lose more than the format allows."""


class TrainingError(DitrCacheError, RuntimeError):
    """Training cannot go on: no data, a loss that is not finite, another process in the same run."""


class CheckpointError(DitrCacheError, ValueError):
    """A run folder holds nothing to go on from, or something that does not fit what is asked for."""
