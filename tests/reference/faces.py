"""The table of docs/faces.md: what the finder makes of real pictures, of hard cases made of them, and of nothing.

    python -m tests.reference.faces PORTRAITS > docs/table.md

PORTRAITS is the folder of pictures and clips that the tests use. Networks are looked for as the commands do;
without them the cascades are measured.
"""

import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.faces import face, follow, mesh, networks, windows
from svdp_jax.media import video
from svdp_jax.media.images import read_image
from svdp_jax.toy import person, world
from tests.test_face import FRAMES, PICTURES

NEAR = 0.25  # distances of the eyes within which eyes and mouth must be to be right
WIDTH = 2.2  # of a face, in distances of its eyes


def placed(image, truth, turn=0.0, width=None, size=(720, 720)):
    """The picture turned by degrees about its face, which becomes so wide, with the truth in it."""
    truth = np.array(truth)
    apart, middle, half = abs(truth[1] - truth[0]), truth.mean(), (size[0] + 1j * size[1]) / 2
    a = (width or 200) / (WIDTH * apart) * np.exp(1j * np.deg2rad(turn))
    small = image
    while abs(a) < 0.5:
        small, a, middle = cv2.resize(small, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), 2 * a, middle / 2
        truth = truth / 2
    return face.warp(small, 1 / a, middle - half / a, size), (truth - middle) * a + half


def drawn(count: int, seed: int = 5):
    """Heads of the toy world by style, with the middles of eyes and mouth from the exact regions."""
    keys = jax.random.split(jax.random.key(seed), count)
    for key in keys:
        who = person.sample_identity(key)
        motion = jax.tree.map(lambda x: x[0], person.sample_motion(jax.random.fold_in(key, 1), 1))
        picture = np.asarray(np.clip(world.render(who, motion, 256) * 255, 0, 255), np.uint8)
        regions = world.regions(who, motion, 256)
        halves = [np.asarray(regions.eyes), np.asarray(regions.mouth)]
        _, parts = cv2.connectedComponents(halves[0].astype(np.uint8))
        spots = [np.argwhere(parts == i).mean(0) for i in (1, 2)] if parts.max() == 2 else []
        if spots:
            # An eye's region has its brow, so that its middle lies 0.175 distances of the eyes above the eye.
            spots = sorted(spots, key=lambda p: p[1])
            spots = [p + 0.175 * np.linalg.norm(spots[1] - spots[0]) * np.array([1, 0]) for p in spots] + [
                np.argwhere(halves[1] > 0).mean(0)
            ]
            yield ("shaded", "flat", "sketch")[int(np.argmax(who.style))], picture, [p[1] + 1j * p[0] for p in spots]


def cases(folder: Path, random: np.random.Generator):
    """(kind, picture, truth or None): what is looked at."""
    sources = [(read_image(folder / name), np.array(truth)) for name, truth in PICTURES.items()]
    for image, truth in sources:
        yield "as they are", image, truth
        for turn in range(0, 360, 15):
            yield f"rolled, {'to 90°' if min(turn, 360 - turn) <= 90 else '105° to 180°'}", *placed(image, truth, turn)
        for width in (24, 32, 48, 64, 128, 256, 512):
            yield f"{width} pixels wide in 1280×720", *placed(image, truth, 0, width, (1280, 720))
        large, points = placed(image, truth, 0, 240)
        yield "dark (a tenth of the light)", (large * 0.1).astype(np.uint8), points
        yield "blurred (σ 1/20 of the width)", cv2.GaussianBlur(large, (0, 0), 12), points
        noisy = (large + random.normal(0, 40, large.shape)).clip(0, 255).astype(np.uint8)
        yield "noise of σ = 40", noisy, points
        low = round(points[2].imag - 0.4 * abs(points[1] - points[0]))
        yield "cut below the nose", large[:low], points
        hidden = large.copy()
        hidden[low - 20 :] = 90
        yield "mouth covered", hidden, points
        hidden = large.copy()
        hidden[: low + 10] = 90
        yield "eyes covered", hidden, points
    for style, picture, truth in drawn(24):
        yield f"drawn, {style}", picture, np.array(truth)
    for number in range(12):
        side = (6, 12, 24, 48, 120, 480)[number % 6]
        yield "noise", cv2.resize(random.integers(0, 256, (side, side, 3), np.uint8), (480, 480)), None
    for reach in (21, 41, 81):
        fur = cv2.GaussianBlur(random.normal(128, 500, (480, 480, 3)), (1, reach), 0)
        yield "fur", fur.clip(0, 255).astype(np.uint8), None


def unseen(folder: Path, random: np.random.Generator):
    """Cases as above, on which no threshold was chosen."""
    for image, truth in [(read_image(folder / name), np.array(truth)) for name, truth in PICTURES.items()]:
        for turn in range(7, 360, 30):
            yield "rolled", *placed(image, truth, turn, random.integers(60, 300))
        for width in (20, 26, 30, 36, 40, 44, 56, 72):
            kind = "under 48 pixels wide" if width < 48 else "56 and 72 pixels wide"
            yield kind, *placed(image, truth, random.uniform(-20, 20), width, (1280, 720))
        large, points = placed(image, truth, 0, 240)
        apart = abs(points[1] - points[0])
        for share in (0.5, 0.35, 0.2, 0.1):
            yield "cut above the mouth", large[: round(points[2].imag - share * apart)], points
        for share in (-0.6, -0.2, 0.1, 0.3):
            left, top = (round(part + share * apart) for part in (points[0].real, points[0].imag))
            yield "cut at or through the left eye", large[:, left:], points - left
            yield "cut at or through both eyes", large[top:], points - 1j * top
        for sigma in (6, 16, 20):
            yield "blurred (σ 1/40 to 1/12)", cv2.GaussianBlur(large, (0, 0), sigma), points
        for sigma in (20, 60, 80):
            noisy = (large + random.normal(0, sigma, large.shape)).clip(0, 255).astype(np.uint8)
            yield "noise of σ = 20 to 80", noisy, points
        for light in (0.2, 0.05, 2.5):
            yield "a fifth, a twentieth, 2.5 times the light", (large * light).clip(0, 255).astype(np.uint8), points
    for style, picture, truth in drawn(60, 105):
        yield f"drawn, {style}", picture, np.array(truth)


def fresh(folder: Path, random: np.random.Generator):
    """Mixtures of what may befall a picture, of frames of the clips as well."""
    sources = [(read_image(folder / name), np.array(truth)) for name, truth in PICTURES.items()]
    for name, frames in FRAMES.items():
        for index, (left, right, *mouth) in frames.items():
            if (mouth[2] - sum(mouth[:2]) / 2).imag > 40:
                continue  # open as wide as it goes, whose middle is not known from corners and lower lip
            image = next(video.read_frames(folder / name, index, index + 1)).image
            sources.append((image, np.array([left, right, (sum(mouth[:2]) / 2 + mouth[2]) / 2])))
    for image, truth in sources:
        for _ in range(6):
            yield "all at once: roll, size, blur, noise, light", *spoiled(image, truth, random)
        for _ in range(4):
            yield "cut from any side", *cut(*placed(image, truth, random.uniform(-30, 30), random.uniform(80, 300)), random)
        for _ in range(3):
            yield "a part covered", *covered(*placed(image, truth, random.uniform(-30, 30), random.uniform(80, 300)), random)
        below = image[round(truth[2].imag + 0.7 * abs(truth[1] - truth[0])) :]
        yield "only what is below the face", below, None
    for style, picture, truth in drawn(60, 1009):
        yield f"drawn, {style}", picture, np.array(truth)
    for number in range(24):
        grain = random.normal(0, 1, (480, 480, 3))
        soft = cv2.GaussianBlur(grain, (0, 0), 1 + 2 * (number % 12), sigmaY=1 + 4 * (number % 5))
        yield "clouds and stripes", (128 + 60 * soft / soft.std()).clip(0, 255).astype(np.uint8), None


def spoiled(image, truth, random):
    width = np.exp(random.uniform(np.log(48), np.log(300)))
    picture, points = placed(image, truth, random.uniform(-180, 180), width)
    picture = cv2.GaussianBlur(picture, (0, 0), 0.3 + width * random.uniform(0, 0.06)) * 2 ** random.uniform(-3, 1)
    return (picture + random.normal(0, random.uniform(0, 40), picture.shape)).clip(0, 255).astype(np.uint8), points


def cut(picture, points, random):
    """Without all beyond a straight line through the face, along one of the picture's sides."""
    at = points[:2].mean() + abs(points[1] - points[0]) * (random.uniform(-1.1, 1.1) + 1j * random.uniform(-0.8, 1.6))
    x, y = round(at.real), round(at.imag)
    side = random.integers(4)
    part = (picture[:y], picture[y:], picture[:, :x], picture[:, x:])[side]
    return part, points - (0, 1j * y, 0, x)[side]


def covered(picture, points, random):
    """With a patch of one colour over some of the face."""
    apart, picture = abs(points[1] - points[0]), picture.copy()
    at = points.mean() + apart * (random.uniform(-0.9, 0.9) + 1j * random.uniform(-0.9, 0.9))
    half = apart * random.uniform(0.2, 0.7)
    left, right, top, low = (max(0, round(v)) for v in (at.real - half, at.real + half, at.imag - half, at.imag + half))
    picture[top:low, left:right] = random.integers(0, 256, 3)
    return picture, points


def verdict(image, truth) -> str:
    """right, refused or wrong: eyes and mouth must be where they are, hidden ones too; without a truth, there is no face."""
    found = follow.detect(image)
    if not found:
        return "refused"
    if truth is None:
        return "wrong"
    best = min(found, key=lambda f: abs(f.left_eye - truth[0]))
    off = abs(np.array([best.left_eye, best.right_eye, best.mouth]) - truth) / abs(truth[1] - truth[0])
    return "right" if off.max() < NEAR else "wrong"


def clip_figures(path: Path) -> list[str]:
    frames = [frame.image for frame in video.read_frames(path)]
    large = [cv2.copyMakeBorder(cv2.resize(f, (720, 720)), 0, 0, 280, 280, cv2.BORDER_REPLICATE) for f in frames[:100]]
    start = time.process_time()
    follow.track(large)
    rate = len(large) / (time.process_time() - start)
    track, random = follow.track(frames), np.random.default_rng(0)
    still = [(frames[0] + random.normal(0, 4, frames[0].shape)).clip(0, 255).astype(np.uint8) for _ in range(40)]
    noisy = follow.track(still)
    width = WIDTH * abs(noisy.faces.right_eye - noisy.faces.left_eye).mean()
    places = noisy.faces.left_eye[:, None] if noisy.faces.outlines is None else noisy.faces.outlines
    jitter = np.sqrt((abs(places - places.mean(0)) ** 2).mean()) / width
    share = "–"
    if files := networks.located():
        seen = enumerate(follow.meshes(files, frames, lambda found: follow.chosen(found, 0, path.name)))
        share = f"{100 * np.mean([beyond(now.mesh, face.at(track, i), len(frames[i])) for i, now in seen if now]):.2f} %"
    return [path.name, str(len(frames)), f"{100 * track.found.mean():.0f} %", f"{rate:.0f}", f"{100 * jitter:.2f} %", share]


def beyond(now: mesh.Mesh, seen: face.Face, size: int) -> float:
    """Share of the window's pixels outside the oval of the frame's mesh."""
    rim, oval = np.zeros((size, size), np.uint8), mesh.oval(now)
    cv2.fillPoly(rim, [np.round(np.stack([oval.real, oval.imag], -1)).astype(np.int32)], 1)
    mask = windows.region_mask(seen, size)
    return float((mask & (rim == 0)).sum() / mask.sum())


def row(cells) -> str:
    return f"| {' | '.join(cells)} |"


def table(title: str, found) -> None:
    counts: dict[str, dict[str, int]] = {}
    for kind, image, truth in found:
        counts.setdefault(kind, {"right": 0, "refused": 0, "wrong": 0})[verdict(image, truth)] += 1
    print(row([title, "right", "refused", "wrong"]), "|---|---|---|---|", sep="\n")
    for kind, count in counts.items():
        print(row([kind, *map(str, count.values())]))
    print()


def main(folder: Path) -> None:
    cv2.setNumThreads(1)
    table("pictures", cases(folder, np.random.default_rng(0)))
    table("others", unseen(folder, np.random.default_rng(7)))
    table("fresh ones, on which nothing was chosen", fresh(folder, np.random.default_rng(31)))
    print(row(["clip", "frames", "found", "frames a second a core at 720p", "jitter", "windows beyond the oval"]))
    print("|---|---|---|---|---|---|")
    for path in sorted(folder.glob("*.mp4")):
        try:
            print(row(clip_figures(path)))
        except UserError as error:
            print(row([path.name, str(error), "", "", "", ""]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
