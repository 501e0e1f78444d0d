# SPDX-License-Identifier: Apache-2.0
"""DITR without the ViT in the loop."""
