# SPDX-License-Identifier: Apache-2.0
"""What the commands do: one class each, `.run() -> Report`. Nothing here prints, exits or reads arguments."""
