# SPDX-License-Identifier: Apache-2.0
"""Pictures of predictions: right and wrong are where they should be, and 200 classes still fit."""

import numpy as np
import pytest

from ditr_cache.pipelines.cloud_picture import _RIGHT, _WRONG, cloud_picture
from ditr_cache.pipelines.confusion_picture import confusion_picture
from ditr_cache.pipelines.palette import UNLABELLED, _oklab, class_colours
from ditr_cache.pipelines.splat import BACKGROUND, axes, vantage

UP, AHEAD = np.array([0.0, 0, 1]), np.array([0.0, 1, 0])


def names(k):
    return [f"class number {i}" for i in range(k)]


def floor(side=60):
    grid = np.stack(np.meshgrid(np.linspace(0, 4, side), np.linspace(0, 4, side)), -1).reshape(-1, 2)
    return np.c_[grid, np.zeros(len(grid))].astype(np.float32)


def share_of(pixels, colour):
    return (np.asarray(pixels) == np.asarray(colour)).all(-1).mean()


def test_colours_of_the_first_classes_never_change():
    np.testing.assert_array_equal(class_colours(200)[:20], class_colours(20))


@pytest.mark.parametrize(("k", "apart"), [(20, 0.13), (200, 0.05)])
def test_colours_can_be_told_apart(k, apart):
    lab = _oklab(np.vstack([class_colours(k), [UNLABELLED], [BACKGROUND]]).astype(np.float64))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + np.eye(k + 2)
    assert distance.min() > apart


def test_errors_are_red_where_they_are():
    coord = floor()
    segment = np.zeros(len(coord), np.int32)
    segment[coord[:, 0] > 3] = -1
    prediction = np.where(coord[:, 0] < 1, 1, 0).astype(np.int32)
    seen = vantage(coord, UP, AHEAD, (120, 160))
    picture = np.asarray(cloud_picture(seen, prediction, segment, names(2), "room"))
    third = picture.shape[1] // 3
    truth, predicted, errors = (picture[60:180, i * third + 10 : (i + 1) * third] for i in range(3))
    colours = class_colours(2)
    assert share_of(truth, colours[1]) == 0
    assert share_of(truth, colours[0]) > 0.1
    assert share_of(predicted, colours[1]) > 0.04
    assert share_of(errors, _WRONG) == pytest.approx(share_of(predicted, colours[1]), rel=0.1)
    assert share_of(errors, UNLABELLED) == pytest.approx(share_of(truth, UNLABELLED), rel=0.1)
    assert share_of(errors, _RIGHT) > share_of(errors, _WRONG)
    # left is left: x is small there
    columns = np.nonzero((errors == _WRONG).all(-1))[1]
    assert columns.max() < 0.5 * errors.shape[1]


def test_without_labels_there_is_the_prediction_alone():
    coord = floor()
    seen = vantage(coord, UP, AHEAD, (120, 160))
    with_labels = cloud_picture(seen, np.zeros(len(coord), np.int32), np.zeros(len(coord), np.int32), names(2), "a")
    alone = cloud_picture(seen, np.zeros(len(coord), np.int32), None, names(2), "a")
    assert alone.width < with_labels.width / 2


def test_legends_of_many_classes_fit():
    coord = floor()
    prediction = (np.arange(len(coord)) % 200).astype(np.int32)
    picture = cloud_picture(vantage(coord, UP, AHEAD, (480, 640)), prediction, None, names(200), "a")
    assert picture.height < 850
    assert cloud_picture(vantage(coord[:0], UP, AHEAD, (48, 64)), prediction[:0], prediction[:0], names(2), "none")


def test_cells_of_a_confusion_matrix():
    counts = np.array([[90, 10, 0], [0, 5, 5], [0, 0, 0]])
    picture = np.asarray(confusion_picture(counts, names(3), "t")).astype(int)
    blue = (picture[..., 2] - picture[..., 0] > 60).nonzero()
    red = (picture[..., 0] - picture[..., 2] > 60).nonzero()
    # right ones lie left of and below wrong ones in this matrix
    assert blue[1].mean() < red[1].mean()
    assert share_of(picture, [255, 255, 255]) > 0.3


def test_two_hundred_classes_of_which_some_occur():
    counts = np.zeros((200, 200), int)
    counts[3, 3], counts[3, 7], counts[199, 199] = 10, 2, 1
    small = confusion_picture(counts, names(200), "t")
    large = confusion_picture(np.eye(200, dtype=int), names(200), "t")
    assert small.width < 900 < 3000 < large.width < 4000
    assert confusion_picture(np.zeros((200, 200), int), names(200), "nothing at all")


def test_up_is_where_the_cameras_have_it():
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]  # x right, camera down is -z, ahead is y
    broken = np.full((4, 4), np.nan)
    up, ahead = axes([broken, pose])
    np.testing.assert_allclose(up, [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(ahead, [0, 1, 0], atol=1e-12)
    np.testing.assert_array_equal(axes([broken])[0], [0, 0, 1])
