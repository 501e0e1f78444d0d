# SPDX-License-Identifier: Apache-2.0
"""nuScenes' official classes and splits."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CLASSES", "LIDARSEG_TO_16", "split_of"]

CLASSES = (
    *("barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "traffic_cone"),
    *("trailer", "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation"),
)
_RAW_LABELS = (
    *((9,), (14,), (15, 16), (17,), (18,), (21,), (2, 3, 4, 6), (12,)),
    *((22,), (23,), (24,), (25,), (26,), (27,), (28,), (30,)),
)
LIDARSEG_TO_16: Mapping[int, int] = {
    **dict.fromkeys((0, 1, 5, 7, 8, 10, 11, 13, 19, 20, 29, 31), -1),
    **{raw: i for i, raws in enumerate(_RAW_LABELS) for raw in raws},
}
"""Official map of the 32 lidarseg ids to the 16 classes; -1 is ignored."""

_VAL = (
    "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775 "
    "777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073"
)


def _names(ranges: str) -> frozenset[str]:
    ends = [(part.split("-")[0], part.split("-")[-1]) for part in ranges.split()]
    return frozenset(f"scene-{i:04d}" for first, last in ends for i in range(int(first), int(last) + 1))


_VAL_SCENES = _names(_VAL)
_MINI_VAL_SCENES = _names("103 916")


def split_of(version: str, scene: str) -> str:
    """Official split of a scene: `mini_train`/`mini_val` in v1.0-mini, `test` in v1.0-test, else `train`/`val`."""
    if version.endswith("-test"):
        return "test"
    if version.endswith("-mini"):
        return "mini_val" if scene in _MINI_VAL_SCENES else "mini_train"
    return "val" if scene in _VAL_SCENES else "train"
