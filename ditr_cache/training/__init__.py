# SPDX-License-Identifier: Apache-2.0
"""Data path, loop and metrics of stage two."""
