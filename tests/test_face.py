"""Faces found, followed and masked: drawn faces with known truth, then the real clips where they are."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from svdp_jax.errors import UserError
from svdp_jax.faces import cascades, face, follow, windows
from svdp_jax.faces.driving import driving_frames, prepare_driving
from svdp_jax.media.images import read_image
from svdp_jax.media.writer import VideoWriter

PORTRAITS = Path(__file__).parents[2] / "shared/data/portraits"
needs_portraits = pytest.mark.skipif(not PORTRAITS.is_dir(), reason=f"no real pictures and clips in {PORTRAITS}")
# Parts of the drawn face, about its middle, at scale 1: (place, half width, half height, colour).
PARTS = [
    (-12j, 34, 40, (60, 40, 30)), (45j, 26, 26, (190, 150, 130)), (0j, 29, 38, (225, 185, 160)),
    (-13 - 14j, 8, 2, (80, 55, 45)), (13 - 14j, 8, 2, (80, 55, 45)),
    (-13 - 6j, 9, 6, (190, 145, 125)), (13 - 6j, 9, 6, (190, 145, 125)),
    (-13 - 6j, 7, 3.4, (245, 245, 240)), (13 - 6j, 7, 3.4, (245, 245, 240)),
    (-13 - 6j, 3.2, 3.2, (50, 35, 30)), (13 - 6j, 3.2, 3.2, (50, 35, 30)),
    (3j, 3, 9, (238, 200, 178)), (11j, 6, 2.5, (190, 140, 120)),
]  # fmt: skip
LEFT, RIGHT, MOUTH = -13 - 6j, 13 - 6j, 22j


def draw(image, middle, scale=2.0, roll=0.0, mouth=0.1):
    """Draws a face into `image`; returns where its left eye, right eye and mouth are."""
    turn = scale * np.exp(1j * np.deg2rad(roll))
    lips = [(MOUTH, 11, 2.5 + 12 * mouth, (165, 80, 80)), (MOUTH, 9, 0.8 + 10 * mouth, (90, 30, 35))]
    for place, width, height, colour in PARTS + lips:
        at = middle + turn * place
        box = ((at.real, at.imag), (2 * width * scale, 2 * height * scale), roll)
        cv2.ellipse(image, box, colour, -1, cv2.LINE_AA)
    image[:] = cv2.GaussianBlur(image, (0, 0), 0.3 * scale)
    return np.array([middle + turn * place for place in (LEFT, RIGHT, MOUTH)])


def canvas(h=240, w=240):
    return np.repeat(np.repeat(np.linspace(120, 180, h)[:, None, None], w, 1), 3, 2).astype(np.uint8)


def drawn_clip(count, hidden=(), cut=None):
    """Pictures of a moving, turning, nearing face and the truth (f, 3); `hidden` frames show none."""
    images, truth = [], []
    for i in range(count):
        t = i / 30
        shift = 35 * np.sin(4.4 * t) + 15j * np.sin(7 * t)
        shift = shift * 0.3 + 30 - 10j if cut and i >= cut else shift
        image = canvas()
        where = draw(image, 120 + 120j + shift, 1.1 + 0.2 * np.sin(2.5 * t), 20 * np.sin(3.1 * t))
        images.append(canvas() if i in hidden else image)
        truth.append(where)
    return images, np.array(truth)


def error(track, truth):
    """Distance of eyes and mouth from the truth (f, 3) in eye distances."""
    points = np.stack([track.faces.left_eye, track.faces.right_eye, track.faces.mouth], -1)
    return abs(points - truth) / abs(truth[:, 1] - truth[:, 0])[:, None]


@pytest.mark.parametrize("scale,roll", [(1, 0), (2, 0), (2, 12), (2, -25), (2.6, 0)])
def test_drawn_face_is_found(scale, roll):
    image = canvas()
    where = draw(image, 125 + 115j, scale, roll)
    found = follow.detect(image)
    assert len(found) == 1
    points = np.array([found[0].left_eye, found[0].right_eye, found[0].mouth])
    assert (abs(points - where) / abs(where[1] - where[0]) < [0.15, 0.15, 0.25]).all()
    assert 0 < found[0].confidence < 1


def test_faces_are_sorted_and_picked_by_size():
    image = canvas(240, 480)
    small, large = draw(image, 100 + 120j, 1.1), draw(image, 340 + 120j, 1.9)
    found = follow.detect(image)
    assert len(found) == 2 and found[0].size > found[1].size
    for pick, where in enumerate([large, small]):
        left = follow.track([image] * 2, pick).faces.left_eye[0]
        assert abs(left - where[0]) < 5


def test_size_of_the_picture_does_not_matter():
    image = canvas()
    draw(image, 120 + 120j)
    small, large = follow.detect(image)[0], follow.detect(cv2.resize(image, None, fx=6, fy=6))[0]
    assert abs(large.left_eye / 6 - small.left_eye) < 3 and abs(large.size / 6 - small.size) < 12


def test_track_follows_without_jitter_or_lag():
    images, truth = drawn_clip(75)
    track = follow.track(images)
    assert track.found.all() and face.missing(track) == []
    assert np.quantile(error(track, truth), 0.95, 0).max() < 0.15
    jerk = np.diff(track.faces.left_eye, 3) - np.diff(truth[:, 0], 3)
    assert np.abs(jerk).std() < 0.3


def test_track_survives_a_cut():
    images, truth = drawn_clip(60, cut=30)
    assert np.quantile(error(follow.track(images), truth), 0.95, 0).max() < 0.15


def test_missing_frames_are_bridged_and_named():
    images, truth = drawn_clip(60, hidden=(0, 1, *range(30, 35)))
    track = follow.track(images)
    first, gap = face.missing(track)
    assert first[0] == 0 and 1 <= first[1] <= 4 and gap[0] == 30 and 34 <= gap[1] <= 38
    assert error(track, truth)[track.found].max() < 0.25
    assert (track.faces.confidence[~track.found] == 0).all()


def test_bridge_goes_straight_from_side_to_side():
    def still(x):
        image = canvas()
        draw(image, x + 120j, 1.2)
        return image

    track = follow.track([still(95)] * 6 + [canvas()] * 10 + [still(145)] * 6)
    x = track.faces.centre.real
    assert abs(x[-1] - x[0] - 50) < 4
    assert abs(x[10] - (x[0] + x[-1]) / 2) < 6 and (np.diff(x[5:17]) > -0.5).all()


def test_no_face_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no face"):
        follow.one(canvas())
    with VideoWriter(tmp_path / "empty.mp4", Fraction(25)) as writer:
        for _ in range(7):
            writer.write(canvas())
    with pytest.raises(UserError, match="empty.mp4: no face"):
        prepare_driving(tmp_path / "empty.mp4", 64)


def test_crop_repeats_the_edge_and_maps_points():
    image = canvas()
    image[:, 0] = (255, 0, 0)
    image[100:104, 60:64] = 255
    box = face.Box(-40, 0, 160)
    small = face.crop(image, box, 80)
    assert small.shape == (80, 80, 3) and (small[:, :18] == (255, 0, 0)).all()
    point = face.Face(*[62 + 102j] * 1, 10.0, *[62 + 102j] * 4, 1.0)
    at = face.in_crop(point, box, 80).nose
    assert at == 51 + 51j and (small[51, 51] == 255).all()
    assert face.in_crop(point, box, 80).size == 5


def test_crop_frames_the_head():
    image = canvas()
    where = draw(image, 130 + 100j, 1.2)
    box = face.crop_box(follow.detect(image)[0])
    chin, crown = 100 + 38 * 1.2, 100 - 52 * 1.2
    assert box.top < crown and box.top + box.side > chin
    assert abs(box.left + box.side / 2 - 130) < 0.05 * box.side
    assert 0.4 < (chin - (100 - 38 * 1.2)) / box.side < 0.65
    assert abs((where[0].imag - box.top) / box.side - 0.48) < 0.1


def test_crop_box_grows_with_a_wandering_face():
    images, _ = drawn_clip(45)
    faces = follow.track(images).faces
    one, all_ = face.crop_box(face.at(face.Track(faces, np.ones(45, bool)), 0)), face.crop_box(faces)
    assert all_.side > one.side
    right, bottom = all_.left + all_.side, all_.top + all_.side
    x, y, half = faces.centre.real, faces.centre.imag, faces.size / 2
    inside = (x - half > all_.left) & (x + half < right) & (y - half > all_.top) & (y + half < bottom)
    assert inside.mean() >= 0.95


@pytest.mark.parametrize("roll", [0, 25])
@pytest.mark.parametrize("mouth", [0, 0.9])
def test_windows_cover_eyes_nose_and_open_mouth(roll, mouth):
    turn = np.exp(1j * np.deg2rad(roll)) * 1.6
    middle = 120 + 110j
    left, right = middle + turn * LEFT, middle + turn * RIGHT
    mask = windows.region_mask(cascades.face_by(middle, 128.0, left, right, 1.0), 240)
    cover = [(LEFT, 7, 3.4), (RIGHT, 7, 3.4), (11j, 6, 2.5), (MOUTH, 11, 2.5 + 12 * mouth)]
    for place, width, height in cover:
        rim = place + width * face.CIRCLE.real + 1j * height * face.CIRCLE.imag
        rim = middle + turn * rim
        assert mask[np.round(rim.imag).astype(int), np.round(rim.real).astype(int)].all()
    cheek = middle + turn * np.array([-20 + 8j, 20 + 8j, -30j])
    assert not mask[np.round(cheek.imag).astype(int), np.round(cheek.real).astype(int)].any()


def test_masking_is_one_grey():
    image, mask = canvas(), np.zeros((240, 240), bool)
    mask[10:20] = True
    masked = face.mask_driving(image, mask)
    assert (masked[10:20] == image[10:20]).all() and (np.delete(masked, slice(10, 20), 0) == face.GREY).all()
    assert masked.dtype == np.uint8


def test_two_passes_over_a_video(tmp_path):
    images, truth = drawn_clip(24)
    rate = Fraction(30000, 1001)
    with VideoWriter(tmp_path / "a.mp4", rate) as writer:
        for image in images:
            writer.write(image)
    driving = prepare_driving(tmp_path / "a.mp4", 96)
    frames = list(driving_frames(driving))
    assert len(frames) == len(driving.track.found) == 24
    assert [frame.time for frame in frames] == [i / rate for i in range(24)]
    scale, corner = 96 / driving.box.side, driving.box.left + 1j * driving.box.top
    for frame, where in zip(frames, (truth - corner) * scale, strict=True):
        kept = (frame.masked == frame.crop).all(-1)
        assert frame.crop.shape == frame.masked.shape == (96, 96, 3)
        assert kept[np.round(where.imag).astype(int), np.round(where.real).astype(int)].all()
        assert 0.05 < kept.mean() < 0.3


# Where the eyes (left, right) and the mouth are, read off the pictures by eye.
def test_a_small_face_with_one_eye_is_too_little_to_be_sure_of():
    """Such a box in noise is a face to the cascades now and then, and where the other eye would be is a guess."""
    image = canvas(480, 480)
    where = draw(image, 245 + 235j)
    assert follow.detect(image)
    middle = where[1]
    cv2.circle(image, (round(middle.real), round(middle.imag)), 22, (225, 185, 160), -1)
    assert follow.detect(image) == []


PICTURES = {
    "s5.jpg": (320 + 242j, 385 + 242j, 354 + 307j),
    "s9.jpg": (305 + 297j, 393 + 296j, 346 + 400j),
    "s12.jpg": (154 + 161j, 210 + 158j, 184 + 226j),
}


@needs_portraits
@pytest.mark.parametrize("name", PICTURES)
def test_real_pictures(name):
    image = read_image(PORTRAITS / name)
    found, truth = follow.detect(image)[0], np.array(PICTURES[name])
    away = abs(np.array([found.left_eye, found.right_eye, found.mouth]) - truth) / abs(truth[1] - truth[0])
    assert (away < [0.15, 0.15, 0.25]).all()
    box = face.crop_box(follow.one(image))
    assert box == face.crop_box(found) and face.crop(image, box, 128).shape == (128, 128, 3)


# In some frames: eyes, corners of the mouth and the lower edge of the lower lip, read off by eye.
FRAMES = {
    "d18.mp4": {
        0: (195 + 225j, 300 + 228j, 204 + 339j, 296 + 341j, 250 + 352j),
        24: (195 + 224j, 301 + 227j, 214 + 361j, 271 + 365j, 242 + 374j),
        84: (194 + 223j, 301 + 226j, 212 + 373j, 277 + 373j, 239 + 426j),
        140: (195 + 215j, 303 + 218j, 201 + 338j, 286 + 338j, 242 + 410j),
    },
    "d19.mp4": {
        9: (186 + 218j, 295 + 218j, 205 + 338j, 299 + 316j, 247 + 351j),
        60: (185 + 216j, 297 + 218j, 191 + 331j, 272 + 342j, 235 + 351j),
        99: (187 + 223j, 296 + 223j, 188 + 328j, 283 + 335j, 237 + 351j),
        245: (184 + 216j, 297 + 218j, 186 + 315j, 295 + 317j, 240 + 351j),
    },
}


@needs_portraits
@pytest.mark.parametrize("name", FRAMES)
def test_real_clips(name):
    driving = prepare_driving(PORTRAITS / name, 480)
    faces = driving.track.faces
    assert driving.track.found.mean() >= 0.95
    assert np.diff(faces.left_eye, 2).std() < 0.3 and np.diff(faces.right_eye, 2).std() < 0.3
    assert np.ptp(abs(faces.right_eye - faces.left_eye)) < 12
    for index, points in FRAMES[name].items():
        here = face.at(driving.track, index)
        assert max(abs(here.left_eye - points[0]), abs(here.right_eye - points[1])) < 15
        mask = windows.region_mask(here, 480)
        # Closer to an edge than this, smoothing between frames could cut something off.
        inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
        assert [inner[int(point.imag), int(point.real)] for point in points] == [1] * 5
