# SPDX-License-Identifier: Apache-2.0
"""How much features say before anything is trained on them: linear probe, k nearest neighbours, consistency."""
