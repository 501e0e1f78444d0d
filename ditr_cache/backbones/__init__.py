# SPDX-License-Identifier: Apache-2.0
"""Frozen image networks: from a batch of images to patch features."""

from ditr_cache.backbones.base import Backbone, BackboneIdentity, PatchMaps
from ditr_cache.backbones.registry import BACKBONES, BackboneEntry, load_backbone

__all__ = ["BACKBONES", "Backbone", "BackboneEntry", "BackboneIdentity", "PatchMaps", "load_backbone"]
