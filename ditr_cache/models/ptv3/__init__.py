# SPDX-License-Identifier: Apache-2.0
"""Point Transformer V3 (arXiv 2312.10035)."""
