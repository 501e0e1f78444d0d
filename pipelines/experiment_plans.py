# SPDX-License-Identifier: Apache-2.0
"""The paper's experiments as lists of arms: which store, which settings, and what the paper found on its data sets.

Numbers are mIoU in per cent, from arXiv 2503.18944: of full-size networks on full-size data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ditr_cache.errors import ConfigError, IdentityMismatchError
from ditr_cache.store.identity import identity_difference
from ditr_cache.store.reader import FeatureStore

__all__ = ["EXPERIMENTS", "Arm", "Plan", "limited", "of_network"]

PLAIN = "model.injection=none"
FRACTIONS = (1, 5, 10, 20, 100)
"""Per cent of the training samples (Table 7)."""
VIEWS = (1, 2, 5, 10, 20)


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table; one run a seed."""

    name: str
    """Of its folders."""
    label: str
    """For people."""
    settings: tuple[str, ...]
    """On top of those of the experiment."""
    store: int = 0
    """Which of the stores."""
    int8: bool = False
    """From the store with its features as int8."""
    distilled: bool = False
    """Starts from a network that was distilled on all training samples."""
    online: bool = False
    """With the ViT in every step, which only exists here."""
    percent: int = 100
    """Of the training samples whose labels may be used; as many steps all the same."""
    samples: int | None = None
    """How many that are; None: all. Set by `limited`."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """What the paper found, by data set."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One experiment."""

    title: str
    arms: tuple[Arm, ...]
    notes: tuple[str, ...] = ()
    """What was left out, and why."""


def _paper(scannet200: float, nuscenes: float) -> dict[str, float]:
    return {"ScanNet200": scannet200, "nuScenes": nuscenes}


def _injection(stores: Sequence[FeatureStore]) -> Plan:
    arms = [
        Arm("none", "none (PTv3)", (PLAIN,), paper=_paper(35.2, 79.9)),
        Arm("before", "before the encoder", ("model.injection=before",), paper=_paper(40.1, 82.3)),
        Arm("between", "between two encoder-decoders", ("model.injection=between",), paper=_paper(40.4, 82.2)),
        Arm("decoder", "in the decoder (DITR)", ("model.injection=decoder",), paper=_paper(41.2, 83.1)),
        Arm("decoder_last", "in its last block", ("model.injection=decoder_last",), paper=_paper(40.1, 82.5)),
        Arm("after", "after the decoder", ("model.injection=after",), paper=_paper(37.6, 82.5)),
    ]
    if all("cls" in receipt.arrays for receipt in stores[0].manifest.blocks.values()):
        arms.append(Arm("cls", "class tokens in the decoder", ("model.injection=cls",), paper=_paper(37.4, 79.4)))
        return Plan("Where image features enter (paper, Table 5)", tuple(arms))
    note = "class tokens are not in the store: extract it with a backbone that has one"
    return Plan("Where image features enter (paper, Table 5)", tuple(arms), (note,))


_BACKBONES = {
    "vit-large": _paper(38.2, 80.2),
    "aimv2-large": _paper(39.1, 82.8),
    "siglip2-giant": _paper(38.1, 83.6),
    "dinov2-reg-small": _paper(38.2, 82.8),
    "dinov2-reg-base": _paper(40.7, 83.0),
    "dinov2-reg-large": _paper(41.2, 83.1),
    "dinov2-reg-giant": _paper(40.8, 84.2),
    "dinov3-large": _paper(42.3, 83.9),
}


def _backbones(stores: Sequence[FeatureStore]) -> Plan:
    if len(stores) < 2:
        raise ConfigError(
            "backbones are compared by their stores: name several, of the same samples",
            hint="Extract one for each: ditr-cache extract SOURCE STORE -s backbone.name=...",
        )
    _check_points(stores)
    arms = [Arm("none", "none (PTv3)", (PLAIN,), paper=_paper(35.2, 80.4))]
    names = [str(store.identity["backbone"]["name"]) for store in stores]
    for i, (name, store) in enumerate(zip(names, stores, strict=True)):
        # one backbone may come with several resolutions, or layers
        label = name if names.count(name) == 1 else f"{name} ({store.root})"
        arms.append(Arm(f"store-{i + 1}", label, (), store=i, paper=_BACKBONES.get(name, {})))
    return Plan("Image backbones (paper, Table 6)", tuple(arms))


def _check_points(stores: Sequence[FeatureStore]) -> None:
    """Refuse stores of different samples or points."""
    points = [{info.id: info.coord_sha256 for info in store.samples.values()} for store in stores]
    for store, found in zip(stores[1:], points[1:], strict=True):
        if found != points[0]:
            raise ConfigError(f"not the samples and points of {stores[0].root}", where=store.root)


_SCRATCH = {1: 26.0, 5: 47.8, 10: 56.7, 20: 62.9, 100: 72.2}
_DISTILLED = {1: 34.1, 5: 56.6, 10: 65.2, 20: 68.3, 100: 76.2}


def _data_efficiency(stores: Sequence[FeatureStore]) -> Plan:
    arms = []
    for percent in FRACTIONS:
        for distilled, found in ((False, _SCRATCH), (True, _DISTILLED)):
            way = "D-DITR" if distilled else "scratch"
            arms.append(
                Arm(
                    f"{way.lower()}-{percent:03d}",
                    f"{way}, {percent} % of the labelled samples",
                    (PLAIN,),
                    distilled=distilled,
                    percent=percent,
                    paper={"ScanNet, MinkUNet": found[percent]},
                )
            )
    return Plan("Data efficiency (paper, Table 7)", tuple(arms))


def limited(plan: Plan, total: int) -> Plan:
    """Say of arms on a part of the samples how many these are.

    Of several parts that are as many samples, the one that is nearest to what its name says stays.

    Args:
        plan: Any.
        total: Samples for training.
    """
    counts = {arm.percent: max(1, round(total * arm.percent / 100)) for arm in plan.arms}
    nearest = {
        count: min((p for p in counts if counts[p] == count), key=lambda p: abs(p * total - 100 * count))
        for count in counts.values()
    }
    arms = tuple(
        arm
        if arm.percent == 100
        else replace(arm, label=f"{arm.label} ({counts[arm.percent]} of {total})", samples=counts[arm.percent])
        for arm in plan.arms
        if nearest[counts[arm.percent]] == arm.percent
    )
    gone = ", ".join(f"{percent} %" for percent, count in counts.items() if nearest[count] != percent)
    notes = (f"left out, for another part is as many of the {total} samples: {gone}",) if gone else ()
    return replace(plan, arms=arms, notes=(*plan.notes, *notes))


def of_network(plan: Plan, network: str) -> Plan:
    """With labels that name the network; the paper's are of PTv3, where nothing else is said."""
    if network != "minkunet":
        return plan
    arms = tuple(replace(arm, label=arm.label.replace("PTv3", "MinkUNet")) for arm in plan.arms)
    return replace(plan, arms=arms)


def _visibility(stores: Sequence[FeatureStore]) -> Plan:
    # visible and invisible points of ScanNet200 and SemanticKITTI
    parts = ("ScanNet200 visible", "ScanNet200 invisible", "SemanticKITTI visible", "SemanticKITTI invisible")
    plain = dict(zip(parts, (35.2, 34.5, 68.5, 68.1), strict=True))
    ditr = dict(zip(parts, (41.5, 39.7, 71.6, 68.3), strict=True))
    return Plan(
        "Visible and invisible points (paper, Table 8)",
        (Arm("ptv3", "PTv3", (PLAIN,), paper=plain), Arm("ditr", "DITR", ("model.injection=decoder",), paper=ditr)),
    )


def _views(stores: Sequence[FeatureStore]) -> Plan:
    most = max(len(info.view_names) for info in stores[0].samples.values())
    counts = [str(n) for n in VIEWS if n < most] + ["null"]
    arms = tuple(
        Arm(
            f"views-{n if n != 'null' else 'all'}",
            "1 view" if n == "1" else f"{n if n != 'null' else f'all (up to {most})'} views",
            (f"data.views.count={n}", f"data.views.evaluation_count={n}"),
        )
        for n in counts
    )
    note = "visible points are those that an arm's own views see: other ones in every row"
    return Plan("Views of a sample, in training and evaluation", arms, (note,))


def _dtype(stores: Sequence[FeatureStore]) -> Plan:
    dtype = next(iter(stores[0].manifest.blocks.values())).arrays["features"].dtype
    if dtype != "float16":
        raise ConfigError(f"the store's features are {dtype}: name one with float16", where=stores[0].root)
    return Plan("Features as float16 and as int8", (Arm("float16", "float16", ()), Arm("int8", "int8", (), int8=True)))


def _online(stores: Sequence[FeatureStore]) -> Plan:
    _check_points(stores)
    for store in stores[1:]:
        # a resolution or a ViT of its own would be compared with the others' variants
        lines = identity_difference(_but_variants(store), _but_variants(stores[0]))
        if lines:
            raise IdentityMismatchError(
                f"not the same features as in {stores[0].root}:\n  " + "\n  ".join(lines), where=store.root
            )
    arms = [Arm("cached-1", "cached, plain images", ("data.views.variants=0",))]
    for i, store in enumerate(stores):
        kept = store.identity["variants"]
        count = (1 + int(kept["jitter"])) * (1 + int(kept["flip"]))
        if count > 1:
            what = " and ".join([*["mirrored"] * kept["flip"], *["jittered"] * bool(kept["jitter"])])
            label = f"cached, {count} variants ({what})"
            arms.append(Arm(f"cached-{count}", label, ("data.views.variants=random",), store=i))
        elif i:
            raise ConfigError(
                "the store has no image variants", where=store.root, hint="Name it first, or leave it out."
            )
    notes = () if len(arms) > 1 else ("no store has image variants: extract one with -s variants.flip=true",)
    settings = ("data.views.variants=0", "run.workers=0")
    arms.append(Arm("online", "ViT in every step, mirrored and jittered anew", settings, online=True))
    if len({arm.name for arm in arms}) < len(arms):
        raise ConfigError("two stores have as many image variants: name one of them")
    return Plan("Cached variants and a ViT in every step", tuple(arms), notes)


def _but_variants(store: FeatureStore) -> dict[str, object]:
    return {key: value for key, value in store.identity.items() if key not in ("variants", "features")}


EXPERIMENTS: Mapping[str, Callable[[Sequence[FeatureStore]], Plan]] = {
    "injection": _injection,
    "backbones": _backbones,
    "data-efficiency": _data_efficiency,
    "visibility": _visibility,
    "views": _views,
    "dtype": _dtype,
    "online": _online,
}
"""By name."""
