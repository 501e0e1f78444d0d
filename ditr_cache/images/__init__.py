# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a file to the pixels a ViT sees: decode, resize, augmented variants."""

from ditr_cache.images.decode import decode, decoder_name
from ditr_cache.images.resize import resize, target_size
from ditr_cache.images.variants import augment, variants

__all__ = ["augment", "decode", "decoder_name", "resize", "target_size", "variants"]
