"""Shots, gates, crops and masks, on drawn faces whose places are known."""

import sys
import types
from fractions import Fraction

import cv2
import numpy as np
import pytest
from test_face import canvas, draw, drawn_clip

from svdp_jax.errors import UserError
from svdp_jax.faces import face, landmarks, masks, windows
from svdp_jax.media import video
from svdp_jax.preparation import crops, gates, shots
from svdp_jax.preparation.ingest import Segment

WHOLE = (Segment(),)


def frames(images, fps=25):
    return [video.Frame(image, Fraction(index, fps)) for index, image in enumerate(images)]


def placed(x, scale=1.3, shade=0, count=26):
    """A face that hardly moves, in its own light."""
    images = []
    for index in range(count):
        image = canvas(240, 320)
        draw(image, x + 120j + 2 * np.sin(index / 4), scale)
        images.append((image.astype(int) + shade).clip(0, 255).astype(np.uint8))
    return images


@pytest.fixture(scope="module")
def film():
    """Three scenes: a moving face, the same shot from elsewhere, an empty wall; the truth of the first."""
    images, truth = drawn_clip(50)
    wide = [cv2.copyMakeBorder(image, 0, 0, 40, 40, cv2.BORDER_REPLICATE) for image in images]
    film = wide + placed(200, shade=25) + [canvas(240, 320)] * 26
    return film, truth + 40


@pytest.fixture(scope="module")
def found(film):
    return list(shots.follow(frames(film[0]), WHOLE, longest=10))


def test_cut_at_scene_changes(found):
    assert [(shot.first, shot.count, shot.fps) for shot in found] == [(0, 50, 25), (50, 26, 25), (76, 26, 25)]
    assert [shot.track is not None for shot in found] == [True, True, False]
    assert [shot.facts["found"] for shot in found] == [1, 1, 0]
    assert found[2].facts["frozen"] == 1 and found[0].facts["frozen"] == 0


def test_the_face_is_where_it_was_drawn(film, found):
    eyes = (found[0].track.faces.left_eye + found[0].track.faces.right_eye) / 2
    truth = film[1][:, :2].mean(1)
    width = 58 / 26 * abs(film[1][:, 1] - film[1][:, 0])
    assert (abs(eyes - truth) / width).mean() < 0.03


def test_long_shots_are_divided_and_segments_are_kept_to(film):
    found = list(shots.follow(frames(film[0][:50]), WHOLE, longest=0.8))
    assert [shot.count for shot in found] == [20, 20, 10]
    listed = (Segment(0.2, 0.6), Segment(1, 1.4))
    assert [(s.first, s.count) for s in shots.follow(frames(film[0][:50]), listed, 10)] == [(5, 10), (25, 10)]


def test_a_region_is_looked_at_and_places_stay_those_of_the_picture():
    images = [np.concatenate(pair, 1) for pair in zip(placed(160, 1.8, count=8), placed(160, count=8))]
    right = Segment(region=(320, 0, 640, 240), extent=(640, 240))
    (shot,) = shots.follow(frames(images), (right,), 10)
    assert abs(shot.track.faces.centre.real - 480).max() < 15 and shot.facts["faces"] == 1
    (shot,) = shots.follow(frames(images), WHOLE, 10)
    assert abs(shot.track.faces.centre.real - 160).max() < 15 and shot.facts["faces"] == 2
    assert gates.rejection(shot.facts | {"seconds": 9}) == "several faces"


def test_gates_are_one_table():
    good = {"found": 1, "seconds": 2, "faces": 1, "face": 200, "yaw": 5, "frozen": 0, "sharpness": 0.1}
    assert gates.rejection(good) == "" and gates.rejection({}) == ""
    bad = {"found": 0.5, "seconds": 0.4, "faces": 2, "face": 30, "yaw": 60, "frozen": 0.5, "sharpness": 0.01}
    reasons = [gates.rejection(good | {fact: value}) for fact, value in bad.items()]
    assert all(reasons) and len(set(reasons)) == len(gates.GATES)
    eased = gates.limited(["yaw=0:70", "face=20"])
    assert gates.rejection(good | {"yaw": 60, "face": 30}, eased) == ""
    for limit in ("size=3", "yaw=wide", "yaw"):
        with pytest.raises(UserError, match="facts are found"):
            gates.limited([limit])


def test_sharpness_falls_with_blur_and_not_with_size():
    image = canvas(480, 480)
    draw(image, 240 + 240j, 3)
    image = (image + np.random.default_rng(0).normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)
    where = face.Face(240 + 240j, 200.0, *[0j] * 4, 1.0)
    sharp = crops.sharpness(image, where)
    assert crops.sharpness(cv2.GaussianBlur(image, (0, 0), 4), where) < 0.4 * sharp
    assert (
        0.3
        < crops.sharpness(cv2.resize(image, None, fx=2, fy=2), face.shifted(where, 240 + 240j)._replace(size=400)) / sharp
        < 1.5
    )


def test_crops_of_several_shots_in_one_pass(film, found, tmp_path):
    numbered = enumerate(frames(film[0]))
    cuts = [list(crops.cut(numbered, shot.first, shot.track, face.crop_box(shot.track.faces), 96)) for shot in found[:2]]
    assert [len(group) for group in cuts] == [50, 26]
    assert [cut.sharpness is not None for cut in cuts[1]] == [i % 10 == 0 for i in range(26)]
    box = face.crop_box(found[1].track.faces)
    assert (cuts[1][3].image == face.crop(film[0][53], box, 96)).all()
    with crops.Writer(tmp_path / "a.frames") as writer:
        for cut in cuts[1]:
            writer.write(cut.image)
    read = list(crops.read(tmp_path / "a.frames"))
    assert len(read) == 26 and abs(read[4].astype(int) - cuts[1][4].image).mean() < 1
    assert (next(crops.read(tmp_path / "a.frames", [4])) == read[4]).all()
    with pytest.raises(RuntimeError), crops.Writer(tmp_path / "b.frames") as writer:
        writer.write(read[0])
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.frames"]


def test_tracks_survive_packing(found, tmp_path):
    with crops.tracks_writer(tmp_path / "tracks.npy") as write:
        for shot in (found[1], found[0]):
            write(shot.track)
    track = crops.read_track(tmp_path / "tracks.npy", found[1].count, found[0].count)
    assert len(np.load(tmp_path / "tracks.npy")) == found[0].count + found[1].count
    assert all(np.array_equal(a, b) for a, b in zip(track.faces, found[0].track.faces, strict=True)) and track.found.all()


def taken(track, size=240, **changes):
    return masks.Taken(**{"frames": lambda: iter([canvas()] * len(track.found)), "track": track,
                          "box": face.Box(0, 0, size), "size": size, "first": 0, "total": len(track.found), "video": "a"} | changes)  # fmt: skip


def test_windows_are_those_of_animation(found):
    track = found[1].track
    points = masks.outlines("windows", taken(track))
    assert points.shape == (26, 64)
    kept, whole = masks.mask(points[3], 320), windows.region_mask(face.at(track, 3), 320)
    assert (kept & ~whole).sum() < 0.01 * whole.sum() and kept.sum() > 0.95 * whole.sum()
    facts = masks.facts(points, track, 320)
    assert 0.02 < facts["kept"] < 0.2 and 0.05 < facts["outline"] < 0.35
    everything = np.tile(np.array([0, 319, 319 + 319j, 319j]).repeat(4), (26, 4))
    assert masks.facts(everything, track, 320)["outline"] == 1


def mesh(count=30, yaw=0.0, jitter=0.0):
    """iBUG's 68 points of a head that turns, the nose 0.3 eye distances in front of the eyes."""
    random = np.random.default_rng(0)
    points = np.full((count, 68), 120 + 160j)
    for part, x, y, depth in (
        (range(36, 42), -30, -20, 0),
        (range(42, 48), 30, -20, 0),
        (range(27, 36), 0, 10, 18),
        (range(48, 60), 0, 40, 8),
    ):
        angle = 2j * np.pi * np.arange(len(part)) / len(part)
        points[:, part] = 120 + x * np.cos(yaw) + depth * np.sin(yaw) + 1j * (120 + y) + 7 * np.exp(angle)
    return points + jitter * (random.normal(size=points.shape) + 1j * random.normal(size=points.shape))


def test_landmark_files_are_mapped_smoothed_and_bridged(tmp_path):
    clean, noisy = mesh(), mesh(jitter=2)
    noisy[10:13] = np.nan
    np.save(tmp_path / "a.npy", np.stack([noisy.real, noisy.imag], -1))
    track = face.Track(face.Face(*[np.zeros(20)] * 7), np.ones(20, bool))
    points = masks.outlines(f"files:{tmp_path}", taken(track, 480, box=face.Box(20, 10, 240), first=5, total=30))
    error = points / 2 + 20 + 10j - clean[5:25]
    assert points.shape == (20, 68) and abs(error).mean() < 2.2 and abs(np.diff(error, axis=0)).mean() < 2.8  # of 2.5 and 3.5
    with pytest.raises(UserError, match="one file for each video"):
        masks.outlines(f"files:{tmp_path}", taken(track, video="b"))


@pytest.mark.parametrize("degrees", [-35, -10, 0, 20, 40])
def test_yaw_of_landmarks(degrees):
    assert abs(masks.yaw(mesh(yaw=np.deg2rad(degrees))) - degrees).max() < 1


def test_providers_that_cannot_work_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    for choice, said in (
        ("eyes", "choose windows"),
        ("mediapipe:x.task", "pip install"),
        (f"files:{tmp_path}/no", "not a folder"),
    ):
        with pytest.raises(UserError, match=said):
            masks.check(choice)
    monkeypatch.setitem(sys.modules, "mediapipe", types.ModuleType("mediapipe"))
    with pytest.raises(UserError, match="face_landmarker.task"):
        masks.check("mediapipe")


def test_mediapipe_is_asked_for_every_crop(tmp_path, monkeypatch):
    """With a stand-in for MediaPipe that has its names and its normalised points, and misses one frame."""
    (tmp_path / "m.task").write_bytes(b"0")
    answers = iter([[], *[[[types.SimpleNamespace(x=0.5, y=0.25)] * 478]] * 9])
    landmarker = types.SimpleNamespace(detect=lambda image: types.SimpleNamespace(face_landmarks=next(answers)))
    vision = types.SimpleNamespace(
        FaceLandmarkerOptions=types.SimpleNamespace,
        FaceLandmarker=types.SimpleNamespace(create_from_options=lambda o: landmarker),
    )
    fake = types.ModuleType("mediapipe")
    fake.tasks = types.SimpleNamespace(vision=vision, BaseOptions=types.SimpleNamespace)
    fake.Image, fake.ImageFormat = types.SimpleNamespace, types.SimpleNamespace(SRGB=1)
    monkeypatch.setitem(sys.modules, "mediapipe", fake)
    track = face.Track(face.Face(*[np.zeros(10)] * 7), np.ones(10, bool))
    points = masks.outlines(f"mediapipe:{tmp_path / 'm.task'}", taken(track))
    assert points.shape == (10, 478) and 478 in landmarks.LAYOUTS and np.allclose(points, 120 + 60j)
