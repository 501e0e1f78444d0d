# SPDX-License-Identifier: Apache-2.0
"""A request that went wrong is made again, later and later, and in the end there is one clear error."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from ditr_cache.errors import ConfigError, CorruptStoreError, RemoteError, StoreError
from ditr_cache.store.remote.client import scrub

__all__ = ["retrying"]

T = TypeVar("T")

ATTEMPTS = 8
"""With the pauses below: about 12 seconds, which outlasts most throttling and restarts."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


def retrying(request: Callable[[], T], where: str, *, attempts: int = ATTEMPTS) -> T:
    """What `request` returns.

    Args:
        request: Asks a server once.
        where: What it asks for, for people: a URL without credentials.
        attempts: How often to ask.

    Raises:
        CorruptStoreError: If the server says that there is no such object.
        RemoteError: If it refuses, or `request` has failed too often.
    """
    for attempt in range(1, attempts + 1):
        try:
            return request()
        except (StoreError, ConfigError):
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise CorruptStoreError(
                "missing", where=where, hint="Find all damage with: ditr-cache verify STORE"
            ) from error
        except PermissionError as error:
            raise RemoteError(
                "the server refuses",
                where=where,
                hint="Check your credentials; they are taken from the environment and the usual configuration files.",
            ) from error
        except Exception as error:
            # libraries have trees of their own, which share nothing but this root
            if attempt == attempts:
                reason = scrub(str(error)) or type(error).__name__
                raise RemoteError(
                    f"the server does not answer as it should, {attempts} times: {reason}", where=where
                ) from error
            pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 1))
            time.sleep(pause * random.uniform(0.5, 1.0))
    raise AssertionError
