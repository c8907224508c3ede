"""What would fail after an hour is said before anything is compiled, all of it at once."""

import dataclasses
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import jax
import little_run
import numpy as np
import pytest
from conftest import tiny_model
from flax import nnx

from svdp_jax import config as configs, files
from svdp_jax.errors import UserError
from svdp_jax.media.writer import VideoWriter
from svdp_jax.models.mmdit import MMDiT
from svdp_jax.models.svdp import SVDP
from svdp_jax.training import preflight
from svdp_jax.weights import checkpoint, prompts, shipped

CONFIG = little_run.config()


def changed(**fields) -> configs.Config:
    return dataclasses.replace(CONFIG, **fields)


def problems(config, tmp_path) -> str:
    with pytest.raises(UserError) as error:
        preflight.check(config, tmp_path / "work")
    assert not (tmp_path / "work").exists()
    return str(error.value)


def test_a_good_config_passes_and_leaves_no_trace(tmp_path):
    preflight.check(CONFIG, tmp_path / "work")
    assert not list(tmp_path.iterdir())


def test_every_problem_is_told_at_once_and_within_seconds(tmp_path, monkeypatch):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").write_text("no video")
    (tmp_path / "prompt.safetensors").write_text("no prompt")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=1024))
    config = changed(
        topology="v4:2x2x1",
        backbone=str(tmp_path / "nowhere"),
        prompt=str(tmp_path / "prompt.safetensors"),
        data=configs.Data(source="videos", path=str(tmp_path / "videos"), size=16),
        model=dataclasses.replace(CONFIG.model, codec=configs.Codec("sd3", 4, str(tmp_path / "vae"))),
    )
    began = time.monotonic()
    text = problems(config, tmp_path)
    assert time.monotonic() - began < 5  # what a start may take
    assert text.startswith("6 problems, and nothing was started:") and text.count("\n  - ") == 6
    for words in (
        "4 chips of TPU v4", "nowhere is not a folder; make it with `python -m convert`", "is no encoded prompt",
        "vae is not a folder", "none of the first 1 videos", "GiB free, and 3 checkpoints and the model need",
    ):  # fmt: skip
        assert words in text, words


def test_a_batch_or_network_that_does_not_divide_is_said(tmp_path, monkeypatch):
    mesh = jax.sharding.AbstractMesh((1, 3, 5), ("data", "fsdp", "context"))
    monkeypatch.setattr(preflight.parallel, "make_mesh", lambda _: mesh)
    text = problems(CONFIG, tmp_path)
    assert "config.data.batch=8 in 1 micro-batches does not divide over 3 devices" in text
    assert "config.data.frames=2 does not divide over mesh.context=5" in text
    assert "of shape (8, 32) does not divide over {'data': 1, 'fsdp': 3, 'context': 5}" in text


def test_a_model_to_start_from_is_looked_at(tmp_path):
    nowhere = problems(changed(start=str(tmp_path / "nowhere")), tmp_path)
    assert "nowhere is not a folder; make it with `python -m svdp_jax.train`" in nowhere
    other = changed(model=dataclasses.replace(CONFIG.model, video=configs.Video(heads=1)))
    _, weights, constants = nnx.split(SVDP(other.model, nnx.Rngs(0)), nnx.Param, ...)
    checkpoint.save_model(tmp_path / "run" / "model", other, weights, constants)
    assert "does not fit config.model" in problems(changed(start=str(tmp_path / "run")), tmp_path)
    exported = problems(changed(start=str(shipped.FOLDER)), tmp_path)
    assert "does not fit config.model" in exported
    with pytest.raises(UserError, match="start=run brings a backbone"):
        configs.check(changed(start="run", backbone="weights"))


def test_weights_that_do_not_fit_or_are_cut_off_are_named(tmp_path):
    folder = tmp_path / "backbone"
    other = dataclasses.replace(CONFIG.model.backbone, text_width=16)
    checkpoint.save_weights(folder, "sd35", other, checkpoint.named(nnx.state(MMDiT(other, nnx.Rngs(0)))))
    config = changed(backbone=str(folder))
    assert "1 of another shape: context_embedder.kernel (16, 32) instead of (8, 32)" in problems(config, tmp_path)
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    assert f"{largest} is missing or cut off" in problems(config, tmp_path)


def test_a_prompt_of_another_width_is_said(tmp_path):
    path = tmp_path / "prompt.safetensors"
    prompts.save_prompt(path, np.zeros((3, 9), np.float32), np.zeros(9, np.float32), {})
    assert "has widths (9, 9) and the backbone (8, 8)" in problems(changed(prompt=str(path)), tmp_path)


def test_a_work_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        preflight.check(CONFIG, tmp_path / "file/work")


def test_an_old_library_is_said(monkeypatch):
    monkeypatch.setattr(preflight.importlib.metadata, "version", lambda name: "0.1")
    assert any(line.startswith("jax is 0.1, and jax>=") for line in preflight.versions())


def test_one_readable_video_is_enough(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with VideoWriter(tmp_path / "b.mp4", Fraction(25)) as writer:
        writer.write(np.full((64, 64, 3), 128, np.uint8))
    data = configs.Data(source="videos", path=str(tmp_path), size=16)
    assert list(preflight.data(changed(data=data))) == []


def test_a_work_folder_in_a_mounted_bucket_is_refused(tmp_path, monkeypatch):
    """What gcsfuse mounted the system's table of mounts tells."""
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "mounts"
    table.write_text(f"/dev/sda / ext4 rw 0 0\nbucket {tmp_path}/mounted fuse.gcsfuse rw 0 0\n")
    monkeypatch.setattr(files, "MOUNTS", table)
    (problem,) = preflight.disk(configs.Config("tiny", tiny_model()), Path("mounted/run"), saved=0)
    assert "lies in a mounted bucket, which cannot rename folders" in problem
    assert not list(preflight.disk(configs.Config("tiny", tiny_model()), tmp_path / "disk", saved=0))
