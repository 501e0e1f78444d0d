# SPDX-License-Identifier: Apache-2.0
"""Installed configurations, addressable by name."""
