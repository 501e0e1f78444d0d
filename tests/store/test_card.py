# SPDX-License-Identifier: Apache-2.0
"""The card says what people have to know before they use a store or pass it on."""

import pytest
from store_builder import DATASET, IDENTITY, build_store, random_block

from ditr_cache.backbones.registry import BACKBONES
from ditr_cache.datasets import READERS
from ditr_cache.store.card import known_cards, store_card
from ditr_cache.store.encode import BlockSettings
from ditr_cache.store.licences import UNKNOWN, backbone_licence, dataset_licence
from ditr_cache.store.manifest import Manifest, SourceEntry, build_manifest
from ditr_cache.store.reader import open_store
from ditr_cache.store.verify import verify_store


def manifest(identity=IDENTITY, **fields) -> Manifest:
    return build_manifest(identity, [], []).model_copy(update={"dataset": DATASET, **fields})


@pytest.mark.parametrize("name", list(BACKBONES))
def test_licences_of_weights_are_those_of_the_registry(name):
    known = BACKBONES[name]
    assert backbone_licence(name).startswith(known.licence)
    if known.repo is not None:
        assert backbone_licence(known.repo) == backbone_licence(name)


@pytest.mark.parametrize("name", ["dinov2-mine", "my-dinov3-large", "dinov2-large-2", "me/dinov2-large", "", None])
def test_weights_of_others_are_not_given_a_licence(name):
    assert backbone_licence(name) == UNKNOWN


def test_terms_of_data_sets():
    for name in READERS:
        assert (dataset_licence(name) == UNKNOWN) == (name == "nerfstudio")
    for name in ("scannet", "nuscenes", "semantic_kitti"):
        assert "not for commercial use" in dataset_licence(name)
    assert dataset_licence("mine") == UNKNOWN


def test_origin_terms_and_use(tmp_path):
    identity = {
        "dataset": {"name": "scannet", "version": "sens"},
        "backbone": {"name": "dinov3-large", "layer": 24, "weights_sha256": "ab" * 32, "random_seed": None},
        "images": {"size": [420, 560], "filter": "bilinear"},
        "features": {"dtype": "float16", "points": False},
    }
    build_store(tmp_path / "s", [random_block(1)], BlockSettings(8, "float16", points=False), identity=identity)
    card = (tmp_path / "s" / "STORE_CARD.md").read_text()
    for expected in (
        "| data set | scannet, version sens |",
        "ScanNet terms of use",
        "| backbone | dinov3-large, layer 24 |",
        f"sha256 `{'ab' * 32}`",
        "DINOv3 License",
        "| images | size [420, 560], filter bilinear |",
        "`ditr-cache attach`",
        open_store(tmp_path / "s").digest,
        "ditr-cache train STORE RUN",
        'store.read("b0/s0"',
        "DINO in the Room",
    ):
        assert expected in card
    assert "Taken from" not in card


def test_random_weights_have_no_licence():
    card = store_card(manifest())
    assert "carry no meaning" in card
    assert "| their licence | none: they are random |" in card


def test_what_it_was_taken_from():
    source = SourceEntry(version="1" * 64, digest="2" * 64, samples=("a|b*",), views=3, points=False, dtype="int8")
    card = store_card(manifest(sources=(source,)))
    assert f"- version `{'1' * 64}`, content digest `{'2' * 64}`: samples `a\\|b*`; at most 3 views of each" in card
    assert "without points; converted to int8" in card


def test_names_cannot_break_out():
    evil = "x |\n# Free for all\n```"
    card = store_card(manifest({"dataset": {"name": evil, "version": evil}, "backbone": {"name": evil}}))
    assert "\n# Free" not in card
    assert card.count("\n```") == store_card(manifest({})).count("\n```")


def test_cards_of_earlier_versions_are_known(tmp_path):
    build_store(tmp_path / "s", [random_block(1)])
    for card in known_cards(open_store(tmp_path / "s").manifest):
        (tmp_path / "s" / "STORE_CARD.md").write_text(card)
        assert verify_store(tmp_path / "s").ok
    (tmp_path / "s" / "STORE_CARD.md").write_text(card + "Free for all.\n")
    assert [p.path for p in verify_store(tmp_path / "s").problems] == ["STORE_CARD.md"]
