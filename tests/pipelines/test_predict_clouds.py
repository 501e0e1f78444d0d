# SPDX-License-Identifier: Apache-2.0
"""A network that sees points only labels bare files: the same classes as from a store, and no images anywhere."""

import json
import os
import shutil

import numpy as np
import pytest

from ditr_cache.config import load_config
from ditr_cache.errors import ConfigError, SampleError
from ditr_cache.pipelines.cloud_labelling import CloudLabeller, clouds_at
from ditr_cache.pipelines.distill import Distill
from ditr_cache.pipelines.labelling import Labeller, LabelOptions
from ditr_cache.pipelines.predict import Predict
from ditr_cache.pipelines.train import Train
from ditr_cache.store.reader import open_store
from ditr_cache.training.config import TrainConfig
from ditr_cache.training.distill_config import DistillConfig

OPTIONS = LabelOptions(device="cpu")


@pytest.fixture(scope="module")
def distilled(rooms_store, micro, tmp_path_factory):
    """A distilled and fine-tuned network."""
    folder = tmp_path_factory.mktemp("clouds")
    Distill([rooms_store], folder / "pre", load_config(DistillConfig, [micro], ["run.epochs=1"])).run()
    settings = ["model.injection=none", f"init.distilled={folder / 'pre'}", "run.epochs=1"]
    Train(rooms_store, folder / "run", load_config(TrainConfig, [micro], settings)).run()
    return folder / "run"


@pytest.fixture(scope="module")
def truth(distilled, rooms_store):
    """Classes of the store's sample, and its points."""
    labeller = Labeller(distilled, rooms_store, OPTIONS)
    (done,) = labeller.label(labeller.samples[:1])
    return done, labeller.points(done.id)


def save(folder, points, name="scan.npy"):
    folder.mkdir(exist_ok=True)
    np.save(folder / name, np.concatenate([points.coord, points.color, points.normal], 1).astype(np.float32))
    return folder / name


def test_a_file_gets_the_classes_that_the_store_gets(distilled, truth, tmp_path):
    done, points = truth
    path = save(tmp_path / "in", points)
    report = Predict(distilled, path, tmp_path / "out", options=OPTIONS).run()
    assert (report.samples, report.written, report.points, dict(report.failures)) == (1, 1, len(points), {})
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "scan.npy"), done.label)


def test_a_ply_that_was_predicted_is_itself_a_cloud(distilled, truth, tmp_path):
    _, points = truth
    path = save(tmp_path / "in", points)
    Predict(distilled, path, tmp_path / "out", "ply", OPTIONS).run()
    assert clouds_at(tmp_path / "out") == [tmp_path / "out" / "scan.ply"]


def test_bad_files_of_a_folder_cost_nothing_else(distilled, truth, tmp_path):
    done, points = truth
    save(tmp_path / "in", points)
    (tmp_path / "in" / "broken.ply").write_bytes(b"ply\n")
    np.save(tmp_path / "in" / "bare.npy", points.coord)
    report = Predict(distilled, tmp_path / "in", tmp_path / "out", options=OPTIONS).run()
    assert (report.samples, report.written) == (3, 1)
    assert "not a PLY file" in report.failures["broken"]
    assert "no color and no normal" in report.failures["bare"]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "scan.npy"), done.label)
    again = Predict(distilled, tmp_path / "in", tmp_path / "out", options=OPTIONS).run()
    assert (again.skipped, again.written, len(again.failures)) == (1, 0, 2)


def test_networks_that_are_shown_images_refuse(rooms_store, micro, truth, tmp_path):
    Train(rooms_store, tmp_path / "run", load_config(TrainConfig, [micro], ["run.epochs=1"])).run()
    with pytest.raises(ConfigError, match="shown image features"):
        Predict(tmp_path / "run", save(tmp_path / "in", truth[1]), tmp_path / "out", options=OPTIONS)


def test_labels_do_not_take_the_place_of_clouds(distilled, truth, rooms_store, tmp_path):
    path = save(tmp_path / "in", truth[1])
    before = path.read_bytes()
    for where in (path, path.parent):
        with pytest.raises(ConfigError, match="the clouds are in this folder"):
            Predict(distilled, where, tmp_path / "in" / ".." / "in", options=OPTIONS, overwrite=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / path.name).symlink_to(path)
    with pytest.raises(ConfigError, match="the clouds are in this folder"):
        Predict(distilled, tmp_path / "links", path.parent, options=OPTIONS, overwrite=True)
    with pytest.raises(ConfigError, match="this is a store"):
        Predict(distilled, path, rooms_store, options=OPTIONS)
    assert path.read_bytes() == before


def test_what_is_done_is_of_these_clouds(distilled, truth, tmp_path):
    points = truth[1]
    path, out = save(tmp_path / "in", points), tmp_path / "out"
    Predict(distilled, path, out, options=OPTIONS).run()
    assert Predict(distilled, path, out, options=OPTIONS).run().skipped == 1
    other = save(tmp_path / "other", points)
    with pytest.raises(ConfigError, match=r"other predictions:\n +clouds: "):
        Predict(distilled, other, out, options=OPTIONS).run()
    few = np.load(path)[:500]
    np.save(tmp_path / "few.npy", few)
    os.utime(tmp_path / "few.npy", (0, 0))  # an old file that takes the place of the cloud
    (tmp_path / "few.npy").replace(path)
    assert Predict(distilled, path, out, options=OPTIONS).run().written == 1
    assert len(np.load(out / "scan.npy")) == 500


def test_raw_ids_are_those_of_the_training(distilled, truth, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(distilled, run)
    about = json.loads((run / "run.json").read_text())
    assert about["label_map"] == {}  # rooms have none
    about["label_map"] = {str(10 * k): k for k in range(len(about["classes"]))}
    (run / "run.json").write_text(json.dumps(about))
    Predict(run, save(tmp_path / "in", truth[1]), tmp_path / "out", "label", OPTIONS).run()
    label_N = np.fromfile(tmp_path / "out" / "scan.label", "<u4")
    np.testing.assert_array_equal(label_N, 10 * truth[0].label)


def test_a_missing_file(distilled, tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        Predict(distilled, tmp_path / "nothing.ply", tmp_path / "out", options=OPTIONS)
    assert not (tmp_path / "out").exists()


def test_options_that_mean_nothing(distilled, truth, tmp_path):
    path = save(tmp_path / "in", truth[1])
    with pytest.raises(ConfigError, match="no splits"):
        Predict(distilled, path, tmp_path / "out", options=LabelOptions(splits=("val",)))
    with pytest.raises(ConfigError, match="none of the 1 clouds matches"):
        Predict(distilled, path, tmp_path / "out", options=LabelOptions(samples="other*"))
    with pytest.raises(ConfigError, match="no raw ids"):
        Predict(distilled, path, tmp_path / "out", "label", OPTIONS)


def test_rows_of_a_lidar_file_may_be_wider(rooms_store, micro, truth, tmp_path):
    settings = ["model.injection=none", "data.features=[coord]", "run.epochs=1"]
    Train(rooms_store, tmp_path / "run", load_config(TrainConfig, [micro], settings)).run()
    coord = truth[1].coord[:1_001]
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "narrow.npy", coord)
    more = np.random.default_rng(0).random((len(coord), 3), np.float32)
    (tmp_path / "in" / "wide.bin").write_bytes(np.concatenate([coord, more], 1).astype("<f4").tobytes())
    report = Predict(tmp_path / "run", tmp_path / "in", tmp_path / "as-kitti", options=OPTIONS).run()
    assert "not whole rows of 16" in report.failures["wide"]
    Predict(tmp_path / "run", tmp_path / "in", tmp_path / "out", options=OPTIONS, bin_columns=6).run()
    labels = [np.load(tmp_path / "out" / f"{name}.npy") for name in ("narrow", "wide")]
    np.testing.assert_array_equal(*labels)
    with pytest.raises(ConfigError, match="a store is no"):
        Predict(tmp_path / "run", rooms_store, tmp_path / "other", options=OPTIONS, bin_columns=6)
    with pytest.raises(ConfigError, match="holds other predictions"):
        Predict(tmp_path / "run", tmp_path / "in", tmp_path / "out", options=OPTIONS).run()


def test_a_network_of_nuscenes_reads_its_own_lidar_files(distilled, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(distilled, run)
    about = json.loads((run / "run.json").read_text())
    about["store"]["identity"]["dataset"]["name"] = "nuscenes"
    (run / "run.json").write_text(json.dumps(about))
    rows = np.random.default_rng(0).random((30, 5), np.float32)
    (tmp_path / "scan.pcd.bin").write_bytes(rows.tobytes())
    own, other = (CloudLabeller(folder, [tmp_path / "scan.pcd.bin"], OPTIONS) for folder in (run, distilled))
    np.testing.assert_array_equal(own.points("scan.pcd").strength, rows[:, 3])
    with pytest.raises(SampleError, match="not whole rows of 16"):
        other.points("scan.pcd")


def test_stores_are_no_clouds(rooms_store, tmp_path):
    assert clouds_at(rooms_store) == []
    assert clouds_at("s3://bucket/scan.ply") == []
    assert clouds_at(tmp_path) == []
    assert open_store(rooms_store).samples
