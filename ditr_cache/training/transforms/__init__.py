# SPDX-License-Identifier: Apache-2.0
"""Augmentations of the official recipes, a small class each."""
