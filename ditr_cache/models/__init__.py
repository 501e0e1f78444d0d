# SPDX-License-Identifier: Apache-2.0
"""The 3D networks."""
