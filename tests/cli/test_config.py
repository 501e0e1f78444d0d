# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import yaml

from ditr_cache.config import ExtractConfig, config_names, load_config, read_named_yaml
from ditr_cache.training.config import TrainConfig

KINDS = {"extract": ExtractConfig, "train": TrainConfig}
NAMES = [(kind, name) for kind in KINDS for name in (None, *config_names(kind))]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_shown_yaml_means_the_same(kind, name, run):
    words = kind if name is None else f"{kind}/{name}"
    done = run("config", "show", words)
    assert (done.code, done.err) == (0, "")
    layers = [] if name is None else [read_named_yaml(kind, name)]
    expected = load_config(KINDS[kind], layers)
    assert load_config(KINDS[kind], [yaml.safe_load(done.out)]) == expected
    assert json.loads(run("config", "show", words, "--json").out) == expected.model_dump(mode="json")


@pytest.mark.parametrize(("name", "kind"), [("scannet", "extract"), ("synthetic", "extract"), ("tiny", "train")])
def test_bare_names_mean_extraction_where_there_is_such_a_one(name, kind, run):
    assert run("config", "show", name).out == run("config", "show", f"{kind}/{name}").out


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_explained(kind, run):
    lines = [line for line in run("config", "show", kind).out.splitlines() if not line.lstrip().startswith("- ")]
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
    assert run("config", "list").out.split() == [f"{kind}/{name}" for kind, name in NAMES if name]
    assert json.loads(run("config", "list", "--json").out) == {kind: config_names(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_schema_covers_every_section(kind, run):
    schema = json.loads(run("config", "schema", kind).out)
    assert set(schema["properties"]) == set(KINDS[kind].model_fields)
    assert schema["additionalProperties"] is False
    if kind == "extract":
        assert json.loads(run("config", "schema").out) == schema


def test_all_mistakes_at_once(run):
    done = run("config", "show", "extract", "-s", "imagse.size=3", "-s", "store.dtype=f64", "-s", "run.batch_size=0")
    assert (done.code, done.out) == (2, "")
    assert "imagse: there is no such setting" in done.err
    assert "store.dtype: " in done.err
    assert "run.batch_size: " in done.err
    assert "ditr-cache config show extract" in done.err


@pytest.mark.parametrize("name", ["nope", "no/such/file.yaml", ".", "extract/nope"])
def test_unknown_name(name, run):
    done = run("config", "show", name)
    assert done.code == 2
    assert "Installed: nerfstudio" in done.err
