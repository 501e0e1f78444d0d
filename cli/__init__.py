# SPDX-License-Identifier: Apache-2.0
"""The command line: one file a command. What a command does is in `ditr_cache.pipelines`; here it is asked and told."""
