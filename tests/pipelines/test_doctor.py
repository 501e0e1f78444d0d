# SPDX-License-Identifier: Apache-2.0
import json

import torch

import ditr_cache
from ditr_cache.backbones import BACKBONES
from ditr_cache.pipelines import doctor
from ditr_cache.pipelines.doctor import Doctor


def test_report_is_what_is_here():
    report = Doctor().run()
    assert report.version == ditr_cache.__version__
    assert {p.name: p.version for p in report.required}["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert all(p.version for p in report.required)
    assert {b.name for b in report.backbones} == set(BACKBONES)
    assert {b.name: b.weights for b in report.backbones}["rooms-vit-tiny"]
    assert "synthetic" in report.datasets
    assert bool(report.cuda_devices) != bool(report.cuda_reason)
    json.dumps(report.to_dict())


def test_weights_in_the_hub_cache_are_found(monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repo, file: "/cache/x" if (repo, file) == ("facebook/dinov2-base", "model.safetensors") else None,
    )
    weights = {b.name: b.weights for b in Doctor().run().backbones}
    assert {name for name, here in weights.items() if here} == {"dinov2-base", "rooms-vit-tiny"}


def test_cuda_is_described(monkeypatch):
    properties = type("Properties", (), {"name": "Some GPU", "total_memory": 80_000_000_000})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    report = Doctor().run()
    assert report.cuda_devices == ("Some GPU, 80 GB", "Some GPU, 80 GB")
    assert report.cuda_reason == ""


def test_missing_packages_have_no_version(monkeypatch):
    monkeypatch.setattr(doctor, "_REQUIRED", ("no-such-distribution",))
    monkeypatch.setattr(doctor, "_OPTIONAL", (("no_such_module", ("no-such-distribution",), "nothing"),))
    report = Doctor().run()
    assert [p.version for p in (*report.required, *report.optional)] == [None, None]
