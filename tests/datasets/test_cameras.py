# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ditr_cache.datasets.cameras import chain, inverse, matrix, matrix_from_text, rigid, unusable_view
from ditr_cache.errors import DatasetError, FrameError

ANY = hnp.arrays(np.float64, 4, elements=st.floats())


@settings(deadline=None)
@given(ANY, ANY)
def test_quaternions_give_rotations_or_nothing(rotation, translation):
    pose = rigid(rotation, translation[:3])
    if np.isfinite(rotation).all() and 1e-100 < np.abs(rotation).max() < 1e100:
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose[:3, :3]) > 0
    inverse(chain(pose, pose))


def test_a_quarter_turn():
    pose = rigid(np.array([1, 0, 0, 1.0]), np.array([1, 2, 3.0]))
    np.testing.assert_allclose(pose @ [1, 0, 0, 1], [1, 3, 3, 1])


@pytest.mark.parametrize("bad", [np.full((4, 4), -np.inf), np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_poses_without_inverse(bad):
    assert np.isnan(inverse(bad)).all()


def test_matrix():
    np.testing.assert_array_equal(matrix([[1, 2]], (1, 2), "x"), [[1, 2]])
    for bad in ([1, 2], [[1, "a"]], None, [[1, 2], [3]], {}, [[1, 10**400]]):
        with pytest.raises(DatasetError, match="x"):
            matrix(bad, (1, 2), "x")


def test_matrix_from_text(tmp_path):
    (tmp_path / "a.txt").write_text("-inf " * 15 + "1")
    assert matrix_from_text(tmp_path / "a.txt")[0, 0] == -np.inf
    for text in ("", "1 2 3", "x " * 16, "1 " * 17, "\0" * 16):
        (tmp_path / "b.txt").write_text(text)
        with pytest.raises(FrameError, match=r"b\.txt"):
            matrix_from_text(tmp_path / "b.txt")


def test_unusable_view():
    view = unusable_view("7", "why")
    assert (view.name, view.problem) == ("7", "why")
    with pytest.raises(FrameError, match="why"):
        view.image.read()
