# SPDX-License-Identifier: Apache-2.0
"""Posed images and labelled points from data sets in their genuine layouts."""

from ditr_cache.datasets.base import Dataset
from ditr_cache.datasets.registry import READERS, Guess, guess_dataset, open_dataset, readers

__all__ = ["READERS", "Dataset", "Guess", "guess_dataset", "open_dataset", "readers"]
