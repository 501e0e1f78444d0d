# SPDX-License-Identifier: Apache-2.0
"""STORE_CARD.md: what people want to know of a store, computed from its manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ditr_cache.store.manifest import Manifest

__all__ = ["store_card"]


def store_card(manifest: Manifest) -> str:
    """Markdown; a pure function of the manifest, so that `verify` can compare it."""
    identity = manifest.identity
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
    backbone = _section(identity, "backbone")
    lines = [
        f"# Feature store: {_text(_section(identity, 'dataset').get('name'))}",
        "",
        (
            f"Frozen features of `{_text(backbone.get('name'))}` for 3D points, in the ditr-cache store format, "
            f"version {manifest.format_version}. Read with `ditr_cache.open_store(path)`."
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
    if backbone.get("random_seed") is not None:
        lines += ["", "**These features come from a ViT with random weights. They carry no meaning.**"]
    if manifest.planned:
        lines += ["", "**Incomplete:** planned blocks are missing. Run the extraction again to add them."]
    lines += ["", "## Identity", "", "```json", json.dumps(identity, indent=2, sort_keys=True), "```", ""]
    for labels, names in manifest.dataset.class_names.items():
        lines += [f"Labels `{_text(labels)}`: {', '.join(_text(n) for n in names)}", ""]
    lines += [
        "## Terms",
        "",
        (
            "Features derive from the images and carry the terms of the data set and of the backbone's weights. "
            "Check both before passing the store on."
        ),
        "",
    ]
    return "\n".join(lines)


def _section(identity: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = identity.get(key)
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    # names come from data sets: keep them from breaking out of the table
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")[:200]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
