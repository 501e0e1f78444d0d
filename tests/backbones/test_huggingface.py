# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from ditr_cache.backbones import BACKBONES, load_backbone
from ditr_cache.backbones import build as build_module
from ditr_cache.backbones.fetch import open_folder
from ditr_cache.backbones.huggingface import _require_compiler
from ditr_cache.config import BackboneConfig
from ditr_cache.errors import BackboneError, WeightsUnavailableError
from ditr_cache.testing.backbones import BackboneTests

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}
TOWER = {**SMALL, "image_size": 56, "patch_size": 14}
# of the parameters' bytes; the settings are those shipped for dinov2-small
GOLDEN_RANDOM = "2ca51eeccb944babbb17bd79cdefbddbaf86d019cc3862856011e50df327960a"
TEXT = {**SMALL, "vocab_size": 40, "max_position_embeddings": 8}


def _siglip_pair(kind):
    config = getattr(transformers, f"{kind}Config")
    vision = {**SMALL, "patch_size": 14, **({"image_size": 56} if kind == "Siglip" else {"num_patches": 16})}
    return getattr(transformers, f"{kind}Model")(config(vision_config=vision, text_config=TEXT))


def _build(family):
    """A small random model, as the hub would hold it."""
    t = transformers
    return {
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**TOWER)),
        "dinov2_swiglu": lambda: t.Dinov2Model(t.Dinov2Config(**TOWER, use_swiglu_ffn=True)),
        "dinov2_with_registers": lambda: t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(**TOWER, num_register_tokens=4)
        ),
        "dinov3_vit": lambda: t.DINOv3ViTModel(t.DINOv3ViTConfig(**TOWER, num_register_tokens=4)),
        "dinov3_vit_gated": lambda: t.DINOv3ViTModel(t.DINOv3ViTConfig(**TOWER, use_gated_mlp=True)),
        "siglip": lambda: _siglip_pair("Siglip"),
        "siglip_vision_model": lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**TOWER)),
        "siglip2": lambda: _siglip_pair("Siglip2"),
        "siglip2_vision_model": lambda: t.Siglip2VisionModel(
            t.Siglip2VisionConfig(**SMALL, patch_size=14, num_patches=16)
        ),
        "aimv2_vision_model": lambda: t.Aimv2VisionModel(t.Aimv2VisionConfig(**TOWER)),
        "aimv2_native": lambda: t.Aimv2VisionModel(t.Aimv2VisionConfig(**TOWER, is_native=True)),
        "vit": lambda: t.ViTModel(t.ViTConfig(**TOWER)),
    }[family]()


FAMILIES = [
    "dinov2",
    "dinov2_swiglu",
    "dinov2_with_registers",
    "dinov3_vit",
    "dinov3_vit_gated",
    "siglip",
    "siglip_vision_model",
    "siglip2",
    "siglip2_vision_model",
    "aimv2_vision_model",
    "aimv2_native",
    "vit",
]
INTERPOLATED = ("siglip", "siglip_vision_model", "vit")
PREFIX = {"dinov2_with_registers": 5, "dinov3_vit": 5, "dinov2": 1, "dinov2_swiglu": 1, "dinov3_vit_gated": 1, "vit": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder and reference model of a family."""
    made = {}

    def make(family):
        if family not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(FAMILIES.index(family))
                model = _build(family).eval()
                for parameter in model.parameters():  # norms, registers and scales that are not at 1 or 0
                    parameter.data += 0.05 * torch.randn(parameter.shape)
            folder = tmp_path_factory.mktemp(family)
            with build_module._quiet():
                model.save_pretrained(folder)
            made[family] = folder, getattr(model, "vision_model", model)
        return made[family]

    return make


def images(rows, columns, count=2, patch=14, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, rows * patch, columns * patch), generator=generator, dtype=torch.uint8)


def normalised(backbone, images_B3hw):
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (backbone.mean, backbone.std))
    return (images_B3hw.float() / 255 - mean) / std


def reference(family, model, backbone, images_B3hw, **options):
    """What transformers itself gives, called as its documentation has it."""
    x = normalised(backbone, images_B3hw)
    if family.startswith("siglip2"):
        from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

        patches = torch.stack([torch.from_numpy(convert_image_to_patches(image.numpy(), 14)) for image in x])
        grid = torch.tensor([[x.shape[2] // 14, x.shape[3] // 14]] * len(x))
        mask = torch.ones(patches.shape[:2], dtype=torch.int32)
        arguments = {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": grid}
    else:
        arguments = {"pixel_values": x, **({"interpolate_pos_encoding": True} if family in INTERPOLATED else {})}
    with torch.no_grad():
        return model(**arguments, **options)


# transformers has no AIMv2 with learned positions at other sizes than the trained one
@pytest.mark.parametrize(
    ("family", "grid"),
    [(f, g) for f in FAMILIES for g in ((4, 4), (3, 5), (6, 2)) if f != "aimv2_vision_model" or g == (4, 4)],
)
def test_features_are_those_of_transformers(saved, family, grid):
    folder, model = saved(family)
    backbone = load_backbone(BackboneConfig(weights=folder), "cpu")
    x = images(*grid)
    maps = backbone(x)
    tokens = reference(family, model, backbone, x).last_hidden_state
    prefix = PREFIX.get(family, 0)
    assert tokens.shape[1] == prefix + grid[0] * grid[1]
    assert torch.equal(maps.rows, tokens[:, prefix:])
    if prefix:
        assert torch.equal(maps.cls, tokens[:, 0])
    else:
        assert maps.cls is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("norm", [True, False])
def test_inner_layers(saved, family, norm):
    folder, model = saved(family)
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    seen = []
    handle = blocks[1].register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
    x = images(4, 4)
    try:
        backbone = load_backbone(BackboneConfig(weights=folder, layer=2, norm=norm), "cpu")
        reference(family, model, backbone, x)
    finally:
        handle.remove()
    final = next(getattr(model, n) for n in ("layernorm", "norm", "post_layernorm", "rms_norm") if hasattr(model, n))
    with torch.no_grad():
        expected = (final(seen[0]) if norm else seen[0])[:, PREFIX.get(family, 0) :]
    assert torch.equal(backbone(x).rows, expected)
    assert (backbone.identity.layer, backbone.identity.layers) == (2, 3)
    same = load_backbone(BackboneConfig(weights=folder, layer=-2, norm=norm), "cpu")
    assert same.identity == backbone.identity
    assert torch.equal(same(x).rows, expected)


@pytest.mark.parametrize("family", FAMILIES)
class TestContract(BackboneTests):
    grids = ((3, 5), (1, 2))

    @pytest.fixture
    def backbone(self, saved, family):
        return load_backbone(BackboneConfig(weights=saved(family)[0]), "cpu")


def test_aimv2_positions_at_other_sizes_are_resized_ones(saved):
    folder, model = saved("aimv2_vision_model")
    backbone = load_backbone(BackboneConfig(weights=folder), "cpu")
    trained = backbone(images(4, 4)).rows
    table = model.embeddings.position_embedding.weight.detach()
    resized = torch.nn.functional.interpolate(
        table.T.reshape(1, 48, 4, 4), (3, 6), mode="bicubic", antialias=True, align_corners=False
    )
    native = transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**TOWER, use_head=False)).eval()
    native.load_state_dict(model.state_dict(), strict=False)
    native.embeddings.position_embedding = torch.nn.Embedding.from_pretrained(resized.reshape(48, 18).T)
    native.embeddings.position_ids = torch.arange(18)[None]
    x = images(3, 6)
    with torch.no_grad():
        expected = native(normalised(backbone, x)).last_hidden_state
    torch.testing.assert_close(backbone(x).rows, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(backbone(images(4, 4)).rows, trained)  # no state is left behind


@pytest.mark.parametrize("family", ["aimv2_vision_model", "aimv2_native"])
def test_aimv2_in_apples_own_layout(saved, family, tmp_path):
    folder, model = saved(family)
    renamed = {}
    for key, value in model.state_dict().items():
        if key.startswith("head.") or ".k_proj." in key or ".v_proj." in key:
            continue
        if ".q_proj." in key:
            value = torch.cat([model.state_dict()[key.replace("q_proj", n)] for n in ("q_proj", "k_proj", "v_proj")])
        for ours, theirs in (
            ("embeddings.patch_embed.", "preprocessor.patchifier.proj."),
            ("embeddings.rms_norm.", "preprocessor.patchifier.norm."),
            ("embeddings.position_embedding.weight", "preprocessor.pos_embed"),
            ("encoder.layers.", "trunk.blocks."),
            (".attention.q_proj.", ".attn.qkv."),
            (".attention.out_proj.", ".attn.proj."),
            (".ffn.gate_proj.", ".mlp.fc1."),
            (".ffn.up_proj.", ".mlp.fc3."),
            (".ffn.down_proj.", ".mlp.fc2."),
            (".rms_norm1.", ".norm_1."),
            (".rms_norm2.", ".norm_2."),
        ):
            key = key.replace(ours, theirs)
        if key.startswith("rms_norm."):
            key = "trunk.post_trunk_norm." + key.removeprefix("rms_norm.")
        renamed[key] = value[None].contiguous() if key == "preprocessor.pos_embed" else value.contiguous()
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "aimv2", "auto_map": {"AutoModel": "evil.Model"}, "use_bias": False, **TOWER})
    )
    x = images(4, 4)
    converted = load_backbone(BackboneConfig(weights=tmp_path), "cpu")
    assert torch.equal(converted(x).rows, load_backbone(BackboneConfig(weights=folder), "cpu")(x).rows)
    assert converted.identity.position_embedding == (
        "sinusoidal" if "native" in family else "learned, bicubic antialiased"
    )


@pytest.mark.real_data
def test_real_weights_give_what_transformers_gives(real_weights):
    backbone = load_backbone(BackboneConfig(weights=real_weights), "cpu")
    with build_module._quiet():
        model = transformers.Dinov2Model.from_pretrained(real_weights, dtype=torch.float32).eval()
    x = images(6, 9)
    tokens = reference("dinov2", model, backbone, x).last_hidden_state
    maps = backbone(x)
    assert torch.equal(maps.rows, tokens[:, 1:])
    assert torch.equal(maps.cls, tokens[:, 0])
    found = json.loads((real_weights / "preprocessor_config.json").read_text())
    assert (list(backbone.mean), list(backbone.std)) == (found["image_mean"], found["image_std"])
    weights = (real_weights / "model.safetensors").read_bytes()
    assert backbone.identity.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert backbone.identity.name == real_weights.name


@pytest.mark.real_data
@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_autocast_stays_near_float32(real_weights, dtype, tolerance):
    x = images(4, 6)
    exact, cast = (load_backbone(BackboneConfig(weights=real_weights, dtype=d), "cpu")(x).rows for d in ("fp32", dtype))
    assert cast.dtype == torch.float32
    assert 0 < (cast - exact).norm() / exact.norm() < tolerance


@pytest.mark.real_data
def test_features_may_be_changed_in_place(real_weights):
    maps = load_backbone(BackboneConfig(weights=real_weights, layer=1), "cpu")(images(2, 3))
    maps.rows.mul_(2)
    maps.cls.zero_()
    assert not maps.rows.is_inference()


def test_layers_that_do_not_exist(saved):
    for layer in (0, 4, -4):
        with pytest.raises(BackboneError, match=r"no layer .* has 3 blocks"):
            load_backbone(BackboneConfig(weights=saved("vit")[0], layer=layer), "cpu")


def test_half_precision_files_are_computed_in_float32(saved, tmp_path):
    folder, _ = saved("dinov2")
    shutil.copy(folder / "config.json", tmp_path)
    halves = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(halves, tmp_path / "model.safetensors")
    backbone = load_backbone(BackboneConfig(weights=tmp_path), "cpu")
    assert {p.dtype for p in backbone._model.parameters()} == {torch.float32}


def test_sharded_weights(saved, tmp_path):
    folder, _ = saved("dinov2")
    with build_module._quiet():
        model = transformers.Dinov2Model.from_pretrained(folder)
        model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    backbone = load_backbone(BackboneConfig(weights=tmp_path), "cpu")
    whole = load_backbone(BackboneConfig(weights=folder), "cpu")
    assert torch.equal(backbone(images(2, 3)).rows, whole(images(2, 3)).rows)
    joined = b"".join(shard.read_bytes() for shard in shards)
    assert backbone.identity.weights_sha256 == hashlib.sha256(joined).hexdigest()
    shards[0].unlink()
    with pytest.raises(WeightsUnavailableError, match="is missing"):
        load_backbone(BackboneConfig(weights=tmp_path), "cpu")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", 7, None])
def test_an_index_cannot_name_other_places(saved, tmp_path, name):
    shutil.copy(saved("dinov2")[0] / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(BackboneError, match="as a file of weights"):
        load_backbone(BackboneConfig(weights=tmp_path), "cpu")


def test_incomplete_weights_are_refused(saved, tmp_path):
    folder, _ = saved("dinov2")
    shutil.copy(folder / "config.json", tmp_path)
    state = load_file(folder / "model.safetensors")
    name = next(k for k in state if "layer.1" in k)
    save_file({k: v for k, v in state.items() if k != name}, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match="do not fill the network"):
        load_backbone(BackboneConfig(weights=tmp_path), "cpu")
    save_file({**state, name: state[name][:-1].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match=r"cannot be loaded|do not fill"):
        load_backbone(BackboneConfig(weights=tmp_path), "cpu")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(BackboneConfig(weights=tmp_path), "cpu")


def test_pickles_are_never_loaded(saved, tmp_path):
    shutil.copy(saved("dinov2")[0] / "config.json", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsUnavailableError, match="Pickled weights"):
        load_backbone(BackboneConfig(weights=tmp_path), "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "resnet"}, "model_type 'resnet' is not supported"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"image_size": 10**7}, "image_size"),
        ({"patch_size": [14, 14]}, "patch_size"),
        ({"vision_config": 3}, "vision_config"),
    ],
)
def test_unsound_configurations(saved, tmp_path, change, message):
    folder, _ = saved("dinov2")
    shutil.copy(folder / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **change}))
    with pytest.raises(BackboneError, match=message):
        load_backbone(BackboneConfig(weights=tmp_path), "cpu")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_broken_json(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BackboneError, match="JSON"):
        load_backbone(BackboneConfig(weights=tmp_path), "cpu")


@pytest.mark.parametrize("values", [{"image_mean": [0.5]}, {"image_std": [1, 0, 1]}, {"image_mean": ["a", 1, 2]}])
def test_broken_normalisation(saved, tmp_path, values):
    shutil.copytree(saved("vit")[0], tmp_path / "x")
    (tmp_path / "x" / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(BackboneError, match="image_"):
        load_backbone(BackboneConfig(weights=tmp_path / "x"), "cpu")


def test_nothing_is_printed_and_settings_stay(saved, capfd):
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    load_backbone(BackboneConfig(weights=saved("siglip")[0]), "cpu")
    assert capfd.readouterr() == ("", "")
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before


def test_compiling_needs_a_compiler(monkeypatch, saved):
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(BackboneError, match=r"backbone.compile needs a C\+\+ compiler"):
        load_backbone(BackboneConfig(weights=saved("vit")[0], compile=True), "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BackboneError, match="triton"):
        _require_compiler(torch.device("cuda"))


def test_settings_that_are_in_no_weight_are_another_backbone(saved, tmp_path):
    folder = saved("dinov2")[0]
    plain = load_backbone(BackboneConfig(weights=folder), "cpu")
    identities = []
    for number, changes in enumerate(
        ({"num_attention_heads": 1}, {"hidden_act": "relu"}, {"transformers_version": "1"})
    ):
        copy = tmp_path / str(number) / folder.name
        shutil.copytree(folder, copy)
        settings = json.loads((copy / "config.json").read_text())
        assert all(settings.get(key) != value for key, value in changes.items())
        (copy / "config.json").write_text(json.dumps({**settings, **changes}))
        identities.append(load_backbone(BackboneConfig(weights=copy), "cpu").identity)
    assert [identity == plain.identity for identity in identities] == [False, False, True]
    assert {identity.weights_sha256 for identity in identities} == {plain.identity.weights_sha256}


def test_random_weights_are_the_same_everywhere():
    config = BackboneConfig(name="dinov2-small", random_seed=7)
    state = torch.random.get_rng_state()
    backbone = load_backbone(config, "cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert backbone.identity.random_seed == 7
    assert backbone.identity.weights_sha256 == GOLDEN_RANDOM
    torch.manual_seed(99)
    again = load_backbone(config, "cpu")
    assert torch.equal(again(images(2, 3)).rows, backbone(images(2, 3)).rows)
    other = load_backbone(config.model_copy(update={"random_seed": 8}), "cpu")
    assert other.identity.weights_sha256 != GOLDEN_RANDOM


@pytest.mark.parametrize("name", ["dinov2-small", "dinov2-reg-small"])
def test_shipped_settings(name):
    backbone = load_backbone(BackboneConfig(name=name, random_seed=0, layer=1), "cpu")
    assert (backbone.dim, backbone.patch_size) == (BACKBONES[name].dim, BACKBONES[name].patch_size)
    assert backbone.identity.registers == (4 if "reg" in name else 0)
    assert backbone.identity.layers == 12
    assert backbone(images(2, 3)).rows.shape == (2, 6, 384)


def test_a_snapshot_of_the_hubs_cache_keeps_its_name(tmp_path):
    snapshot = tmp_path / "models--facebook--dinov2-small" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    folder = open_folder(snapshot)
    assert (folder.name, folder.revision) == ("facebook/dinov2-small", "a" * 40)
