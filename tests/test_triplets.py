"""Triplets for other trainers, read back by a reader written from the guide of NeMo AutoModel's Wan-Animate-2 recipe."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import randomized
from flax import nnx
from test_animate import LITTLE, cut

from svdp_jax import prepare
from svdp_jax.engines import liveportrait
from svdp_jax.engines.liveportrait import LivePortraitEngine
from svdp_jax.media import video
from svdp_jax.models.liveportrait import LivePortrait
from svdp_jax.preparation import pairs
from svdp_jax.weights import checkpoint

FRAMES = 12


def samples(manifest: Path, frames: int = 17, fps: int = 24):
    """What the recipe reads: a JSON object a line, paths below the manifest's folder, a caption, one aspect ratio of the
    pictures in all; of both videos 4n + 1 frames at its own rate, the same ones."""
    assert frames % 4 == 1
    rows, ratios = [json.loads(line) for line in manifest.read_text().splitlines() if line.strip()], set()
    for row in rows:
        assert isinstance(row["caption"], str) and isinstance(row["id"], (str, int))
        files = [manifest.parent / row[name] for name in ("reference_image", "driving_video", "target_video")]
        assert all(path.is_file() for path in files) and files[1] != files[2]
        picture = cv2.imread(str(files[0]))
        ratios.add(picture.shape[1] / picture.shape[0])
        clips = [read(path, frames, fps) for path in files[1:]]
        yield row, picture, *clips
    assert len(ratios) == 1


def read(path: Path, frames: int, fps: int) -> tuple[np.ndarray, int, float]:
    capture = cv2.VideoCapture(str(path))
    rate, count = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    all_frames = [capture.read()[1] for _ in range(count)]
    taken = np.minimum(np.round(np.arange(frames) / fps * rate).astype(int), count - 1)
    return np.stack([all_frames[i] for i in taken]), count, rate


def test_two_clips_become_a_manifest_whose_every_path_opens(portraits, tmp_path, monkeypatch, capsys):
    for name in ("d18", "d19"):
        (tmp_path / "films").mkdir(exist_ok=True)
        cut(portraits / f"{name}.mp4", tmp_path / "films" / f"{name}.mp4", FRAMES)
    network = randomized(LivePortrait(LITTLE, nnx.Rngs(0)), 0.1)
    checkpoint.save_weights(tmp_path / "weights", "liveportrait", LITTLE, checkpoint.named(nnx.state(network)))
    monkeypatch.setattr(liveportrait, "SIDE", 64)  # which is fast
    monkeypatch.setattr(pairs, "loaded", lambda folder: LivePortraitEngine(network))
    # A random network passes no gate, so the gates are told to let all pass; its faces are where A's are.
    monkeypatch.setattr(pairs, "LIMITS", {})
    scored = pairs.judge
    monkeypatch.setattr(pairs, "judge", lambda made: scored(made, {}))
    monkeypatch.setattr(pairs, "outlines", lambda frames, name: np.load(tmp_path / f"out/masks/{name.split()[-1]}.npy"))
    given = [str(tmp_path / "films"), str(tmp_path / "out"), "--size", "128", "--export", "triplets", "--caption", "hello"]
    line = [*given, "--pair-weights", str(tmp_path / "weights"), "--limit", "seconds=0.1", "--", "--runner=none"]
    prepare.main(line)
    manifest = tmp_path / "out" / "triplets" / "triplets.jsonl"
    assert f"{manifest} is written." in capsys.readouterr().out and not (tmp_path / "out" / "records").exists()
    found = list(samples(manifest))
    assert [(row["person"], row["driver"]) for row, *_ in found] == [("d18", "d19-000"), ("d19", "d18-000")]
    for row, picture, (driving, *facts), (target, *same) in found:
        assert facts == same == [row["frames"], row["fps"]] == [FRAMES, 30.0]
        assert driving.shape == target.shape == (17, 128, 128, 3) and picture.shape == (128, 128, 3)
        assert np.abs(driving.astype(int) - target).mean() > 5  # somebody else
        assert np.abs(picture.astype(int) - target).mean((1, 2, 3)).min() < 6  # A, as in a frame of A's video
        assert row["caption"] == "hello" and row["licence"] == "unknown"
        assert row["scores"].keys() == {"broken", "black", "hidden", "distance", "correlation", "identity"}
        (folder,) = {video.probe(manifest.parent / row[name]).frames for name in ("driving_video", "target_video")}
    before = {path.name: path.read_bytes() for path in manifest.parent.iterdir()}
    prepare.main(line)
    assert before == {path.name: path.read_bytes() for path in manifest.parent.iterdir()}


def test_a_driver_that_is_its_own_target_is_refused(tmp_path, capsys):
    (tmp_path / "films").mkdir()
    for change in (["--pairs", "self"], ["--pairs", "toy", "--stage", "faces"]):
        with pytest.raises(SystemExit):
            prepare.main([str(tmp_path / "films"), str(tmp_path / "out"), "--export", "triplets", *change])
        assert "a driver that is its target can be copied" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
