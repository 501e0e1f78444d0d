# SPDX-License-Identifier: Apache-2.0
"""Which points a posed image sees (paper section 3.1)."""

from ditr_cache.geometry.camera import check_camera
from ditr_cache.geometry.visibility import Hits, find_hits

__all__ = ["Hits", "check_camera", "find_hits"]
