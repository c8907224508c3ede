"""What is made of a picture and a video before any computing: crops, faces, landmarks; and pasting back."""

import json

import numpy as np
import pytest
from test_face import canvas, draw, drawn_clip

from svdp_jax.errors import UserError
from svdp_jax.faces import face, landmarks, paste, scene
from svdp_jax.faces.framing import Portrait
from svdp_jax.media import video
from svdp_jax.toy import example

# --- pasting back


@pytest.mark.parametrize("box", [face.Box(30, 20, 60), face.Box(-20, -10, 90), face.Box(10, 5, 240)])
def test_only_the_crop_changes_and_its_middle_is_the_portrait(box):
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (120, 160, 3), np.uint8)
    white = np.full((16, 16, 3), 255, np.uint8)
    result = paste.paste(picture, box, white)
    assert result.shape == picture.shape and result is not picture
    rows, columns = slice(max(0, box.top), box.top + box.side), slice(max(0, box.left), box.left + box.side)
    outside = np.ones((120, 160), bool)
    outside[rows, columns] = False
    assert (result[outside] == picture[outside]).all()
    middle = min(119, box.top + box.side // 2), min(159, box.left + box.side // 2)
    assert (result[middle] == 255).all()


def test_the_rim_fades_but_not_at_the_edge_of_the_picture():
    black = np.zeros((100, 100, 3), np.uint8)
    result = paste.paste(black, face.Box(40, 0, 80), np.full((8, 8, 3), 200, np.uint8))[..., 0].astype(int)
    across = result[40]
    assert across[39] == 0 and 0 < across[44] < 200 and across[60] == 200
    assert (np.diff(across[39:60]) >= 0).all() and np.diff(across).max() < 40
    assert across[99] == 200 and result[0, 70] == 200  # on the picture's own right and upper edge
    assert result[79, 70] < 20


# --- crops and faces


def test_none_takes_the_largest_centred_square(drawn):
    images = np.stack([frame.image for frame in video.read_frames(drawn.driving)])[:6]
    wide = np.pad(images, ((0, 0), (0, 0), (20, 40), (0, 0)))
    points = np.load(drawn.landmarks)[:6] + [20, 0]
    path = str(drawn.landmarks).replace("landmarks", "wide")
    np.save(path, points)
    made = scene.prepare(drawn.source, wide, Portrait(64), source_crop="none", driving_crop="none", landmarks=path, fps=30)
    assert made.place == (0, 0, 256) and made.driver.driving.box == (30, 0, 256) and made.driver.info.fps == 30
    frames = list(made.driver.frames())
    np.testing.assert_array_equal(frames[3].crop, face.crop(wide[3], made.driver.driving.box, 64))


def test_faces_are_chosen_apart_in_picture_and_video():
    image = canvas(240, 480)
    draw(image, 100 + 120j, 1.1), draw(image, 340 + 120j, 1.9)
    clip = np.stack([image] * 3)
    middle = lambda box: box.left + box.side / 2
    for given, places in [
        ({}, (340, 340)),
        ({"face": 1}, (100, 100)),
        ({"face": 1, "driving_face": 0}, (100, 340)),
        ({"driving_face": 1}, (340, 100)),
    ]:
        made = scene.prepare(image, clip, Portrait(32), **given)
        assert abs(middle(made.place) - places[0]) < 12 and abs(middle(made.driver.driving.box) - places[1]) < 12


def test_a_lost_face_is_bridged_in_every_frame():
    images, truth = drawn_clip(40, hidden=range(15, 22))
    made = scene.prepare(images[0], images, Portrait(96))
    frames = list(made.driver.frames())
    assert len(frames) == 40 and face.missing(made.driver.track)[0][0] == 15
    assert all((frame.masked != face.GREY).any(-1).mean() > 0.05 for frame in frames)


def test_it_does_not_matter_how_a_clip_begins(portraits):
    """No frame is a reference for the others: a clip from a wide open mouth on is followed as the whole is."""
    whole = scene.prepare(portraits / "s9.jpg", portraits / "d18.mp4", Portrait(128))
    images = [frame.image for frame in video.read_frames(portraits / "d18.mp4", 84, 144)]
    later = scene.prepare(portraits / "s9.jpg", images, Portrait(128))
    assert abs(later.driver.driving.box.side / whole.driver.driving.box.side - 1) < 0.05
    apart = later.driver.track.faces.left_eye - whole.driver.track.faces.left_eye[84:144]
    assert np.median(abs(apart)) < 3 and abs(apart).max() < 8


# --- landmarks


def test_the_built_in_landmarks_keep_what_the_toy_world_keeps(drawn):
    """Against the exact regions, which `train` shows the model."""
    _, regions = example._render(np.array(example.PLAYS[0]))
    made = scene.prepare(framing=Portrait(256), **drawn._asdict())
    for index, frame in enumerate(made.driver.frames()):
        kept = (frame.masked == frame.crop).all(-1) & (frame.masked != face.GREY).any(-1)
        true = np.asarray(sum(part[index] for part in regions)) > 0
        assert (kept & true).sum() > 0.95 * true.sum() and (kept & ~true).sum() < 0.06 * true.sum()


def sixty_eight(middle: complex) -> np.ndarray:
    """iBUG's points of a face that looks ahead, eyes 40 pixels apart: those that LAYOUTS names."""
    points = np.full(68, middle)
    turn = np.exp(2j * np.pi * np.arange(6) / 6)
    points[36:42], points[42:48] = middle - 20 + 6 * turn, middle + 20 + 6 * turn
    points[27:36] = middle + np.linspace(0, 25j, 9)
    points[48:60] = middle + 45j + 14 * np.exp(2j * np.pi * np.arange(12) / 12)
    return np.stack([points.real, points.imag], -1)


def test_landmarks_make_a_track_and_gaps_are_bridged(tmp_path):
    values = np.stack([sixty_eight(100 + 5 * i + 80j) for i in range(5)])
    values[2] = np.nan
    np.save(tmp_path / "a.npy", values)
    listed = [None if i == 2 else frame.tolist() for i, frame in enumerate(values)]
    (tmp_path / "a.json").write_text(json.dumps(listed))
    for name in ("a.npy", "a.json"):
        points, track = landmarks.read(tmp_path / name, 5)
        assert track.found.tolist() == [True, True, False, True, True]
        np.testing.assert_allclose(track.faces.left_eye, [80 + 80j + 5 * i for i in range(5)], atol=1e-9)
        np.testing.assert_allclose(track.faces.size, 40 / 0.38)
        mask = landmarks.region_mask(points[0], face.Box(20, 0, 160), 160)
        inside, beside = (80 - 20 + 80j, 120 - 20 + 80j, 80 + 90j, 80 + 125j), (80 + 40j, 40 + 110j, 80 + 150j)
        at = lambda place: mask[int(place.imag), int(place.real)]
        assert all(map(at, inside)) and not any(map(at, beside))


@pytest.mark.parametrize(
    "content, sentence",
    [
        (np.zeros((3, 68, 2)), "landmarks of 3 frames, but the video has 5"),
        (np.zeros((5, 17, 2)), "points"),
        (np.full((5, 68, 2), np.nan), "no frame has all its landmarks"),
        (np.array([None, {}], object), "no landmarks"),
        (b"not numpy", "no landmarks"),
    ],
)
def test_bad_landmarks_are_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "a.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match=sentence):
        landmarks.read(path, 5)


@pytest.mark.parametrize(
    "source, driving",
    [
        (np.zeros((4, 4), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.float32)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(source, driving):
    with pytest.raises(UserError, match="an array uint8 .* not an array of"):
        scene.prepare(source, driving, Portrait(16), source_crop="none")
