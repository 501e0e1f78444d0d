# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from ditr_cache.datasets import registry
from ditr_cache.datasets.registry import READERS, Guess, guess_dataset, open_dataset
from ditr_cache.errors import DatasetError

ELSEWHERE = """
class Reader:
    def __init__(self, source):
        self.source = source

    @classmethod
    def evidence(cls, source):
        return "found elsewhere.txt" if (source / "elsewhere.txt").is_file() else None
"""


@pytest.fixture
def plugins(monkeypatch, tmp_path):
    """One good reader of another package, one that cannot be imported, one that takes a built-in name."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/elsewhere_reader.py").write_text(ELSEWHERE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    targets = {
        "elsewhere": "elsewhere_reader:Reader",
        "broken": "no_such_module:Reader",
        "nerfstudio": "no_such_module:X",
    }
    points = [EntryPoint(name, target, registry.GROUP) for name, target in targets.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("source", "name", "evidence"),
    [
        ("nerfstudio", "nerfstudio", "found redkitchen/transforms.json"),
        ("nerfstudio/shelf", "nerfstudio", "found transforms.json"),
        ("nuscenes", "nuscenes", "found v1.0-mini/sample_data.json"),
        ("scannet", "scannet", "found scans/scene9000_00/scene9000_00.sens"),
        ("scannet_pointcept", "scannet", "found val/scene9000_00/coord.npy and scannet_images"),
        ("", "scannet", "found scannet_pointcept/val/scene9000_00/coord.npy and scannet_images"),
        ("semantickitti", "semantic_kitti", "found dataset/sequences/00/velodyne"),
    ],
)
def test_guesses(test_data, source, name, evidence):
    assert guess_dataset(test_data / source) == Guess(name, evidence)
    assert open_dataset(str(test_data / source)).name == name
    assert open_dataset(test_data / source, name).plan()


def test_nothing_found(tmp_path):
    with pytest.raises(DatasetError, match="no supported data set") as caught:
        open_dataset(tmp_path)
    assert all(name in str(caught.value) for name in READERS)
    assert "--dataset" in str(caught.value)


def test_missing_folder(tmp_path):
    for name in ("auto", "nerfstudio"):
        with pytest.raises(DatasetError) as caught:
            open_dataset(tmp_path / "none", name)
        assert str(caught.value) == f"{tmp_path / 'none'}: there is no such folder"
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="not a folder"):
        guess_dataset(tmp_path / "file")


def test_unknown_name(tmp_path):
    with pytest.raises(DatasetError, match=r"unknown data set 'waymo'\nSupported: .*nerfstudio"):
        open_dataset(tmp_path, "waymo")


def test_ambiguous(write_capture):
    folder = write_capture()
    (folder / "dataset/sequences/00/velodyne").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"more than one kind .*nerfstudio: found transforms\.json; semantic_kitti"):
        guess_dataset(folder)
    assert open_dataset(folder, "nerfstudio").name == "nerfstudio"


def test_sources_that_name_their_reader(plugins):
    assert guess_dataset("synthetic:rooms=3") == Guess("synthetic", "the source starts with synthetic:")
    assert guess_dataset("elsewhere:a/b") == Guess("elsewhere", "the source starts with elsewhere:")
    assert open_dataset("elsewhere:a/b").source == "elsewhere:a/b"
    with pytest.raises(DatasetError, match="there is no such folder"):
        open_dataset("nobody:a/b")


def test_readers_of_other_packages(plugins, tmp_path):
    (tmp_path / "elsewhere.txt").touch()
    assert guess_dataset(tmp_path) == Guess("elsewhere", "found elsewhere.txt")
    assert open_dataset(tmp_path).source == tmp_path
    with pytest.raises(DatasetError, match=r"'broken' \(no_such_module:Reader\) cannot be imported"):
        open_dataset(tmp_path, "broken")
    (tmp_path / "elsewhere.txt").unlink()
    with pytest.raises(DatasetError, match="'broken'"):
        guess_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"no transforms\.json"):
        open_dataset(tmp_path, "nerfstudio")


def test_reading_does_not_import_torch():
    modules = [target.split(":")[0] for name, target in READERS.items() if name != "synthetic"]
    code = (
        f"import sys, ditr_cache.datasets, {', '.join(modules)}; print(*{{'torch', 'transformers'}} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
