# SPDX-License-Identifier: Apache-2.0
"""Conformance suites that readers and backbones of other packages can subclass: does it keep the contract?"""
