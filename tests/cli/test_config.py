# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import yaml

from ditr_cache.config import ExtractConfig, config_names, load_config, read_named_yaml


@pytest.mark.parametrize("name", ["extract", *config_names("extract")])
def test_shown_yaml_means_the_same(name, run):
    done = run("config", "show", name)
    assert (done.code, done.err) == (0, "")
    layers = [] if name == "extract" else [read_named_yaml("extract", name)]
    expected = load_config(ExtractConfig, layers)
    assert load_config(ExtractConfig, [yaml.safe_load(done.out)]) == expected
    assert json.loads(run("config", "show", name, "--json").out) == expected.model_dump(mode="json")


def test_every_setting_is_explained(run):
    lines = run("config", "show", "extract").out.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        assert line.lstrip().startswith("#") or above.lstrip().startswith("# "), line


def test_order_of_precedence(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("images: {budget: 100}\nstore: {dtype: int8}\nbackbone: {weights: '1e3'}\n")
    done = run("config", "show", "scannet", "-s", "images.budget=200", "-c", tmp_path / "mine.yaml", "--json")
    shown = json.loads(done.out)
    assert shown["images"] == {"size": [420, 560], "budget": 200, "filter": "bilinear"}
    assert shown["store"]["dtype"] == "int8"
    assert shown["backbone"]["weights"] == "1e3"


def test_list(run):
    assert run("config", "list").out.split() == config_names("extract")
    assert json.loads(run("config", "list", "--json").out) == {"extract": config_names("extract")}


def test_schema_covers_every_section(run):
    schema = json.loads(run("config", "schema").out)
    assert set(schema["properties"]) == set(ExtractConfig.model_fields)
    assert schema["additionalProperties"] is False


def test_all_mistakes_at_once(run):
    done = run("config", "show", "extract", "-s", "imagse.size=3", "-s", "store.dtype=f64", "-s", "run.batch_size=0")
    assert (done.code, done.out) == (2, "")
    assert "imagse: there is no such setting" in done.err
    assert "store.dtype: " in done.err
    assert "run.batch_size: " in done.err
    assert "ditr-cache config show extract" in done.err


@pytest.mark.parametrize("name", ["nope", "no/such/file.yaml", "."])
def test_unknown_name(name, run):
    done = run("config", "show", name)
    assert done.code == 2
    assert "Installed: nerfstudio" in done.err
