# SPDX-License-Identifier: Apache-2.0
"""The published suite on every built-in reader of real data, and on a capture that needs none."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from ditr_cache.datasets import open_dataset
from ditr_cache.testing.readers import ReaderTests


class TestTinyCapture(ReaderTests):
    @pytest.fixture
    def dataset(self, tmp_path):
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(buffer, "PNG")
        (tmp_path / "a.png").write_bytes(buffer.getvalue())
        properties = "property float x\nproperty float y\nproperty float z\n"
        ply = f"ply\nformat ascii 1.0\nelement vertex 1\n{properties}end_header\n0 0 -1\n"
        (tmp_path / "points.ply").write_text(ply)
        camera = {"fl_x": 5, "fl_y": 5, "cx": 4, "cy": 3, "w": 8, "h": 6}
        frames = [{"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}]
        (tmp_path / "transforms.json").write_text(
            json.dumps(camera | {"ply_file_path": "points.ply", "frames": frames})
        )
        return open_dataset(tmp_path)


@pytest.mark.real_data
class TestNerfstudio(ReaderTests):
    @pytest.fixture
    def dataset(self, test_data):
        return open_dataset(test_data / "nerfstudio")


@pytest.mark.real_data
class TestScanNetRecording(ReaderTests):
    @pytest.fixture
    def dataset(self, test_data):
        return open_dataset(test_data / "scannet")


@pytest.mark.real_data
class TestScanNetPrepared(ReaderTests):
    @pytest.fixture
    def dataset(self, test_data):
        return open_dataset(test_data / "scannet_pointcept")


@pytest.mark.real_data
class TestNuScenes(ReaderTests):
    @pytest.fixture
    def dataset(self, test_data):
        return open_dataset(test_data / "nuscenes")


@pytest.mark.real_data
class TestSemanticKitti(ReaderTests):
    @pytest.fixture
    def dataset(self, test_data):
        return open_dataset(test_data / "semantickitti")
