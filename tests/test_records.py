import dataclasses
import logging
import os
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_model, training_data

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.media.writer import VideoWriter
from svdp_jax.training import records


def config(**data):
    data = {"size": 16, "frames": 3, "past": 2, "batch": 2} | data
    return configs.Config("tiny", tiny_model(), data=configs.Data(**data))


def batches(config, cache):
    return training_data(config, cache, list(range(config.data.batch)))


def test_processes_share_a_batch_and_stages_change_the_driver(tmp_path):
    stages = (configs.Stage(steps=1, self_driven=True), configs.Stage(steps=1))
    wanted = dataclasses.replace(config(), stages=stages)
    whole = iter(batches(wanted, tmp_path))
    shares = [iter(training_data(wanted, tmp_path, [row])) for row in range(2)]
    for self_driven in (True, False):
        batch, parts = next(whole), [next(share) for share in shares]
        for name in batch:
            assert (np.concatenate([part[name] for part in parts]) == batch[name]).all()
        seen = (batch["driving"] != 128).any(-1)
        assert (batch["driving"] == batch["target"])[seen].all() == self_driven


def test_toy_batches_have_the_shapes_and_are_a_function_of_the_seed(tmp_path):
    first, second = next(iter(batches(config(), tmp_path))), next(iter(batches(config(), tmp_path)))
    shapes = {"source": (2, 16, 16, 3), "past": (2, 2, 16, 16, 3)}
    shapes |= {"target": (2, 3, 16, 16, 3), "driving": (2, 3, 16, 16, 3)}
    assert first.pop("problem").tolist() == ["", ""]
    assert {name: x.shape for name, x in first.items()} == shapes
    assert all(x.dtype == np.uint8 and (x == second[name]).all() for name, x in first.items())


def test_the_stream_goes_on_where_its_state_says(tmp_path):
    stream = iter(batches(config(), tmp_path))
    next(stream)
    state = stream.get_state()
    expected = [next(stream) for _ in range(2)]
    again = iter(batches(config(), tmp_path))
    again.set_state(state)
    for batch in expected:
        resumed = next(again)
        assert all((batch[name] == resumed[name]).all() for name in batch)


def test_real_videos_become_self_driven_examples(portraits, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        wanted = config(source="videos", path=str(portraits), size=32)
        batch = next(iter(batches(wanted, tmp_path / "cache")))
    assert "copy the driver's looks" in caplog.text
    kept = (batch["driving"] != 128).any(-1)
    assert 0.05 < kept.mean() < 0.5
    same = np.abs(batch["driving"].astype(int) - batch["target"])[kept]
    assert same.max() == 0  # driver and target are one person
    step = np.abs(batch["target"][:, 0].astype(int) - batch["past"][:, -1]).mean()
    jump = np.abs(batch["target"][:, 0].astype(int) - batch["source"]).mean()
    assert step < jump  # past frames are the ones just before
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_a_folder_without_usable_videos_is_said(tmp_path):
    (tmp_path / "clip.mp4").write_text("this is no video")
    with VideoWriter(tmp_path / "grey.mp4", Fraction(25)) as writer:
        for _ in range(6):
            writer.write(np.full((64, 64, 3), 128, np.uint8))
    with pytest.raises(UserError, match="holds no video of 5 frames or more with a face"):
        batches(config(source="videos", path=str(tmp_path)), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_that_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        batches(config(source="videos", path=str(tmp_path / "no")), tmp_path / "cache")


def test_more_videos_than_a_start_may_crop_are_sent_to_prepare(tmp_path):
    for number in range(records.MANY + 1):
        (tmp_path / f"{number}.mp4").touch()
    data = configs.Data(source="videos", path=str(tmp_path))
    with pytest.raises(UserError, match="make records of them with `python -m svdp_jax.prepare`"):
        records.folder_clips(data, tmp_path / "cache")


def test_hosts_that_share_a_cache_write_files_of_their_own(tmp_path, portraits, monkeypatch):
    """While one host crops a video, another begins and ends: the first one's file is its own still."""
    path, renamed = sorted(portraits.glob("*.mp4"))[0], []
    monkeypatch.setattr(Path, "rename", lambda self, target: renamed.append(self.name) or os.replace(self, target))
    for host in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        records.cropped(path, 32, tmp_path)
        [file.unlink() for file in tmp_path.glob("*.npy")]
    assert len(set(renamed)) == 2
