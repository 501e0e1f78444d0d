# SPDX-License-Identifier: Apache-2.0
"""MinkUNet, a residual U-Net of sparse convolutions (Choy et al., arXiv 1904.08755)."""
