# SPDX-License-Identifier: Apache-2.0
"""The feature store: format, writer, reader, verification. Format: docs/format.md."""
