# SPDX-License-Identifier: Apache-2.0
"""STORE_CARD.md: what people want to know of a store, computed from its manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ditr_cache.store.licences import backbone_licence, dataset_licence
from ditr_cache.store.manifest import Manifest, SourceEntry

__all__ = ["known_cards", "store_card"]

_CITATION = """@article{ditr,
  title   = {DINO in the Room: Leveraging 2D Foundation Models for 3D Segmentation},
  author  = {Karim Knaebel and Kadir Yilmaz and Daan de Geus and Alexander Hermans and David Adrian and Timm Linder
             and Bastian Leibe},
  journal = {arXiv:2503.18944},
  year    = {2025}
}"""


def store_card(manifest: Manifest) -> str:
    """Markdown; a pure function of the manifest, so that `verify` can compare it."""
    lines = [*_facts(manifest), *_sources(manifest.sources), *_warnings(manifest)]
    lines += [*_origin(manifest), *_identity(manifest), *_usage(manifest)]
    lines += ["## Citation", "", "```bibtex", _CITATION, "```", ""]
    return "\n".join(lines)


def known_cards(manifest: Manifest) -> tuple[str, ...]:
    """The card in every form in which this program has ever written it; today's first."""
    first = [*_facts(manifest), *_warnings(manifest), *_identity(manifest)]
    first += [
        "## Terms",
        "",
        (
            "Features derive from the images and carry the terms of the data set and of the backbone's weights. "
            "Check both before passing the store on."
        ),
        "",
    ]
    return store_card(manifest), "\n".join(first)


def _facts(manifest: Manifest) -> list[str]:
    receipts = list(manifest.blocks.values())
    samples = [sample for receipt in receipts for sample in receipt.samples]
    splits: dict[str, int] = {}
    for sample in samples:
        splits[sample.split] = splits.get(sample.split, 0) + 1
    total = {
        key: sum(getattr(receipt.coverage, key) for receipt in receipts)
        for key in ("points", "seen", "hits", "rows", "views")
    }
    by_split = ", ".join(f"{n:,} {_text(split)}" for split, n in sorted(splits.items()))
    errors = [r.int8_cosine_error_p99 for r in receipts if r.int8_cosine_error_p99 is not None]
    lines = [
        f"# Feature store: {_text(_section(manifest.identity, 'dataset').get('name'))}",
        "",
        (
            f"Frozen features of `{_text(_section(manifest.identity, 'backbone').get('name'))}` for 3D points, in the "
            f"ditr-cache store format, version {manifest.format_version}. Read with `ditr_cache.open_store(path)`."
        ),
        "",
        "| | |",
        "|---|---|",
        f"| content digest | `{manifest.digest}` |",
        f"| blocks | {len(receipts):,} present, {len(manifest.planned):,} planned and missing |",
        f"| samples | {len(samples):,} ({by_split or 'none'}) |",
        f"| views | {total['views']:,} |",
        f"| points | {total['points']:,}, of which {_share(total['seen'], total['points'])} are seen by a view |",
        f"| rows | {total['rows']:,} stored patch features serve {total['hits']:,} (point, view) pairs |",
        f"| size | {sum(r.size for r in receipts):,} bytes |",
        (
            f"| frames left out | {sum(len(r.dropped) for r in receipts):,} failed, "
            f"{sum(len(r.skipped) for r in receipts):,} without a valid pose |"
        ),
    ]
    if errors:
        lines.append(f"| int8 | cosine error p99 of the worst block {max(errors):.1e} |")
    return lines


def _sources(sources: Iterable[SourceEntry]) -> list[str]:
    lines = []
    for source in sources:
        what = [f"samples {', '.join(f'`{_text(p)}`' for p in source.samples)}" if source.samples else "all samples"]
        what += [f"at most {source.views:,} views of each"] if source.views is not None else []
        what += ["without points"] if not source.points else []
        what += ["points added from a copy of the data set"] if source.attached else []
        what += [f"converted to {source.dtype}"] if source.dtype is not None else []
        lines.append(f"- version `{source.version}`, content digest `{source.digest}`: {'; '.join(what)}")
    return ["", "Taken from another store:", "", *lines] if lines else []


def _warnings(manifest: Manifest) -> list[str]:
    lines = []
    if _section(manifest.identity, "backbone").get("random_seed") is not None:
        lines += ["", "**These features come from a ViT with random weights. They carry no meaning.**"]
    if manifest.planned:
        lines += ["", "**Incomplete:** planned blocks are missing. Run the extraction again to add them."]
    return lines


def _origin(manifest: Manifest) -> list[str]:
    """Where it all comes from, and on what terms."""
    dataset, backbone = _section(manifest.identity, "dataset"), _section(manifest.identity, "backbone")
    images, features = _section(manifest.identity, "images"), _section(manifest.identity, "features")
    random = backbone.get("random_seed") is not None
    rows = [
        ("data set", f"{_text(dataset.get('name'))}, version {_text(dataset.get('version'))}"),
        ("its terms", dataset_licence(dataset.get("name"))),
        ("backbone", f"{_text(backbone.get('name'))}, layer {_text(backbone.get('layer'))}"),
        ("its weights", "random" if random else f"sha256 `{_text(backbone.get('weights_sha256'))}`"),
        ("their licence", "none: they are random" if random else backbone_licence(backbone.get("name"))),
        ("images", ", ".join(f"{_text(k)} {_text(images[k])}" for k in ("size", "budget", "filter") if k in images)),
        ("features", _text(features.get("dtype"))),
        ("points", "left out: join them with `ditr-cache attach`" if features.get("points") is False else "included"),
    ]
    return [
        "",
        "## Origin and terms",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows),
        "",
        (
            "Features derive from the images, and may carry the terms of the data set as well as those of the weights. "
            "The lines above are pointers and no legal advice: read both before you pass the store on."
        ),
    ]


def _identity(manifest: Manifest) -> list[str]:
    text = json.dumps(manifest.identity, indent=2, sort_keys=True)
    lines = ["", "## Identity", "", "```json", text, "```", ""]
    for labels, names in manifest.dataset.class_names.items():
        lines += [f"Labels `{_text(labels)}`: {', '.join(_text(n) for n in names)}", ""]
    return lines


def _usage(manifest: Manifest) -> list[str]:
    samples = (sample.id for receipt in manifest.blocks.values() for sample in receipt.samples)
    return [
        "## How to load",
        "",
        "```python",
        "import ditr_cache",
        "",
        'store = ditr_cache.open_store("STORE")  # a folder or a URL',
        f"read = store.read({json.dumps(next(samples, 'SAMPLE'))}, count=10, seed=0)",
        "read.features.rows, read.features.index  # [P, D] and [N]; index -1: no drawn view sees the point",
        "```",
        "",
        "```text",
        "ditr-cache verify STORE",
        "ditr-cache train STORE RUN",
        "```",
        "",
        (
            "Every object's SHA-256 is in the manifest, whose own is the version of the store: `ditr-cache info STORE` "
            "prints it, `ditr-cache pull URL@sha256:VERSION STORE` gets that one or none."
        ),
        "",
    ]


def _section(identity: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = identity.get(key)
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    # names come from data sets: keep them from breaking out of the table
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")[:200]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
