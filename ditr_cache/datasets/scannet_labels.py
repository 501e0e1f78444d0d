# SPDX-License-Identifier: Apache-2.0
"""ScanNet's label sets, and the labels of a raw scan."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ditr_cache.datasets.arrays import labels, lookup
from ditr_cache.datasets.files import read_json
from ditr_cache.datasets.ply import read_vertices
from ditr_cache.errors import DatasetError, SampleError
from ditr_cache.types import Int32

__all__ = ["CLASSES_20", "CLASSES_200", "NYU40_TO_20", "RAW_TO_200", "read_categories", "read_labels"]

_NAMES_20 = (
    "wall,floor,cabinet,bed,chair,sofa,table,door,window,bookshelf,picture,counter,desk,curtain,refrigerator,"
    "shower curtain,toilet,sink,bathtub,otherfurniture"
)
_NAMES_200 = (
    "wall,chair,floor,table,door,couch,cabinet,shelf,desk,office chair,bed,pillow,sink,picture,window,toilet,"
    "bookshelf,monitor,curtain,book,armchair,coffee table,box,refrigerator,lamp,kitchen cabinet,towel,clothes,tv,"
    "nightstand,counter,dresser,stool,cushion,plant,ceiling,bathtub,end table,dining table,keyboard,bag,backpack,"
    "toilet paper,printer,tv stand,whiteboard,blanket,shower curtain,trash can,closet,stairs,microwave,stove,shoe,"
    "computer tower,bottle,bin,ottoman,bench,board,washing machine,mirror,copier,basket,sofa chair,file cabinet,fan,"
    "laptop,shower,paper,person,paper towel dispenser,oven,blinds,rack,plate,blackboard,piano,suitcase,rail,radiator,"
    "recycling bin,container,wardrobe,soap dispenser,telephone,bucket,clock,stand,light,laundry basket,pipe,"
    "clothes dryer,guitar,toilet paper holder,seat,speaker,column,bicycle,ladder,bathroom stall,shower wall,cup,"
    "jacket,storage bin,coffee maker,dishwasher,paper towel roll,machine,mat,windowsill,bar,toaster,bulletin board,"
    "ironing board,fireplace,soap dish,kitchen counter,doorframe,toilet paper dispenser,mini fridge,"
    "fire extinguisher,ball,hat,shower curtain rod,water cooler,paper cutter,tray,shower door,pillar,ledge,"
    "toaster oven,mouse,toilet seat cover dispenser,furniture,cart,storage container,scale,tissue box,light switch,"
    "crate,power outlet,decoration,sign,projector,closet door,vacuum cleaner,candle,plunger,stuffed animal,"
    "headphones,dish rack,broom,guitar case,range hood,dustpan,hair dryer,water bottle,handicap bar,purse,vent,"
    "shower floor,water pitcher,mailbox,bowl,paper bag,alarm clock,music stand,projector screen,divider,"
    "laundry detergent,bathroom counter,object,bathroom vanity,closet wall,laundry hamper,bathroom stall door,"
    "ceiling light,trash bin,dumbbell,stair rail,tube,bathroom cabinet,cd case,closet rod,coffee kettle,structure,"
    "shower head,keyboard piano,case of water bottles,coat rack,storage organizer,folded chair,fire alarm,"
    "power strip,calendar,poster,potted plant,luggage,mattress"
)
_RAW_200 = (
    "1 2 3 4 5 6 7 8 9 10 11 13 14 15 16 17 18 19 21 22 23 24 26 27 28 29 31 32 33 34 35 36 38 39 40 41 42 44 45 46 "
    "47 48 49 50 51 52 54 55 56 57 58 59 62 63 64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79 80 82 84 86 87 88 89 "
    "90 93 95 96 97 98 99 100 101 102 103 104 105 106 107 110 112 115 116 118 120 121 122 125 128 130 131 132 134 "
    "136 138 139 140 141 145 148 154 155 156 157 159 161 163 165 166 168 169 170 177 180 185 188 191 193 195 202 208 "
    "213 214 221 229 230 232 233 242 250 261 264 276 283 286 300 304 312 323 325 331 342 356 370 392 395 399 408 417 "
    "488 540 562 570 572 581 609 748 776 1156 1163 1164 1165 1166 1167 1168 1169 1170 1171 1172 1173 1174 1175 1176 "
    "1178 1179 1180 1181 1182 1183 1184 1185 1186 1187 1188 1189 1190 1191"
)
CLASSES_20 = tuple(_NAMES_20.split(","))
CLASSES_200 = tuple(_NAMES_200.split(","))
NYU40_TO_20: Mapping[int, int] = {
    nyu40: i for i, nyu40 in enumerate((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39))
}
RAW_TO_200: Mapping[int, int] = {int(raw): i for i, raw in enumerate(_RAW_200.split())}


def read_categories(path: Path) -> Mapping[str, int]:
    """Raw category name -> raw category id, from `scannetv2-labels.combined.tsv`.

    Raises:
        DatasetError: If the table is not that.
        OSError: If the medium fails.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["raw_category"]: int(row["id"]) for row in csv.DictReader(file, delimiter="\t")}
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise DatasetError(f"not ScanNet's table of labels: {error}", where=path) from error


def read_labels(mesh: Path, count: int, categories: Mapping[str, int] | None) -> tuple[dict[str, Int32], Int32 | None]:
    """Label sets and instances that lie beside a scan's `_vh_clean_2.ply`; test scans have none.

    `segment20` comes from the nyu40 ids of `_vh_clean_2.labels.ply`, instances from the object ids of the annotation,
    `segment200` from its raw categories, for which `categories` is needed.

    Args:
        mesh: `<scene>_vh_clean_2.ply`.
        count: Its number of points.
        categories: Raw category ids by name.

    Raises:
        SampleError: If a file is truncated or does not fit the points.
        OSError: If the medium fails.
    """
    segments: dict[str, Int32] = {}
    painted = mesh.with_name(f"{mesh.stem}.labels.ply")
    if painted.is_file():
        vertices_N = read_vertices(painted)
        if "label" not in (vertices_N.dtype.names or ()) or len(vertices_N) != count:
            raise SampleError(f"no labels for {count} points", where=painted)
        segments["segment20"] = lookup(NYU40_TO_20, labels(vertices_N["label"], painted))
    scene = mesh.stem.removesuffix("_vh_clean_2")
    over_segments = mesh.with_name(f"{mesh.stem}.0.010000.segs.json")
    annotation = mesh.with_name(f"{scene}.aggregation.json")
    if not (over_segments.is_file() and annotation.is_file()):
        return segments, None
    try:
        segment_N = np.asarray(read_json(over_segments)["segIndices"])
        groups = _groups(read_json(annotation)["segGroups"])
    except (DatasetError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise SampleError(f"not ScanNet's annotation: {error}", where=annotation) from error
    if segment_N.shape != (count,) or segment_N.dtype.kind != "i":
        raise SampleError(f"segIndices are not {count} integers", where=over_segments)
    # later groups win where two claim a segment, as in the official preparation
    objects = {segment: i for i, (_, _, claimed) in enumerate(groups) for segment in claimed}
    distinct, inverse_N = np.unique(segment_N, return_inverse=True)
    group_N = np.array([objects.get(int(segment), -1) for segment in distinct], np.int64)[inverse_N]
    instance_N = np.array([*(object_id for object_id, _, _ in groups), -1], np.int32)[group_N]
    if categories is not None:
        ids = [RAW_TO_200.get(categories.get(category, 0), -1) for _, category, _ in groups]
        segments["segment200"] = np.array([*ids, -1], np.int32)[group_N]
    return segments, instance_N


def _groups(records: Any) -> list[tuple[int, str, list[int]]]:
    """Object id, raw category and claimed segments of every annotated object."""
    groups = [
        (int(record["objectId"]), str(record["label"]), [int(segment) for segment in record["segments"]])
        for record in records
    ]
    if any(not 0 <= object_id < 2**31 for object_id, _, _ in groups):
        raise ValueError("object ids must be small and positive")
    return groups
