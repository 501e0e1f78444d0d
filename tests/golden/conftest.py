# SPDX-License-Identifier: Apache-2.0
"""Lets the golden tests import `parity`, the script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
