# SPDX-License-Identifier: Apache-2.0
"""Layers and overrides: later ones win, key by key, and nobody's mapping is changed."""

import json
from typing import Any

from pydantic import BaseModel

from ditr_cache.config import load_config


class Nested(BaseModel):
    a: dict[str, Any] = {}


def test_later_layers_win_key_by_key():
    layers = [{"a": {"b": {"c": 1, "d": [1]}}}, {"a": {"b": {"c": 2}, "e": 3}}]
    assert load_config(Nested, layers, ["a.b.f=4"]).a == {"b": {"c": 2, "d": [1], "f": 4}, "e": 3}


def test_layers_are_left_as_they_are():
    """Arms of an experiment share theirs: what one overrides must not reach the next."""
    layer = {"a": {"b": {"c": 1, "d": [1]}}}
    kept = json.dumps(layer)
    assert load_config(Nested, [layer], ["a.b.c=2"]).a == {"b": {"c": 2, "d": [1]}}
    assert json.dumps(layer) == kept
    assert load_config(Nested, [layer]).a == layer["a"]
