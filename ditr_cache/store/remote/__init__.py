# SPDX-License-Identifier: Apache-2.0
"""Stores on servers: object storage, web servers, and whatever else fsspec reaches."""

from ditr_cache.store.remote.storage import RemoteStorage

__all__ = ["RemoteStorage"]
