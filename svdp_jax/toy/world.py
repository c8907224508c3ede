"""Procedural portraits with exact ground truth: a small world in which the whole system can be checked.

A portrait is a pure, differentiable function of who (`Identity`) and how (`Motion`). Features sit on an ellipsoid that
turns in depth, and a picture is a pile of soft masks of analytic shapes, so it renders at any size, batches under
`vmap`, and can be inverted (`svdp_jax.toy.fit`).

Units and fields are told in `svdp_jax.toy.person`.

Dimensions: b batch, f frames, p past frames, h w rows and columns, k layers, c colour channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from svdp_jax.toy import hard
from svdp_jax.toy.person import FPS, sample_identity, sample_motion

GREY = 0.5
DARK, WHITE, PAPER = (0.10, 0.07, 0.09), (1.0, 1.0, 1.0), (0.96, 0.94, 0.90)


class Regions(NamedTuple):
    """Binary masks (..., h, w) of the parts whose pixels a driving video keeps. The eyes include their brows."""

    eyes: jax.Array
    nose: jax.Array
    mouth: jax.Array


# --- geometry -------------------------------------------------------------------------------------------------------


class _View(NamedTuple):
    """The picture plane as the head sees it: coordinates (h w) with shift, scale and roll undone, the length of a pixel
    in them, the head's radii and its turn (3 3) in depth."""

    x: jax.Array
    y: jax.Array
    pixel: jax.Array
    radii: jax.Array
    turn: jax.Array


def _grid(size):
    steps = (2 * jnp.arange(size, dtype=jnp.float32) + 1) / size - 1
    return jnp.meshgrid(steps, steps)


def _view(identity, motion, size):
    x, y = _grid(size)
    x, y = (x - 2 * motion.shift_x) / motion.scale, (y + 0.06 - 2 * motion.shift_y) / motion.scale
    cos, sin = jnp.cos(motion.roll), jnp.sin(motion.roll)
    radii = jnp.stack([0.56 * identity.face_width, 0.68 * identity.face_height, 0.58 * jnp.ones(())])
    cy, sy, cp, sp = jnp.cos(motion.yaw), jnp.sin(motion.yaw), jnp.cos(motion.pitch), jnp.sin(motion.pitch)
    turn = jnp.stack([cy, -sy * sp, sy * cp, 0.0 * cp, cp, sp, -sy, -cy * sp, cy * cp])
    turn = rearrange(turn, "(row column) -> row column", row=3)
    return _View(cos * x + sin * y, cos * y - sin * x, 2 / size / motion.scale, radii, turn)


def _spot(view, u, v, lift=0.0):
    """Where the point (u, v) of the face, `lift` above it, is seen: (3,). The face looks along +z."""
    a, b, c = view.radii
    return view.turn @ jnp.stack([u, v, c * jnp.sqrt(1 - (u / a) ** 2 - (v / b) ** 2) + lift])


def _local(view, u, v, lift=0.0):
    """The picture in coordinates of the face's surface at (u, v): x and y, each (h w). This is what makes the far eye
    narrow. The slope downwards is damped, or a mouth near the rim would fold up."""
    a, b, c = view.radii
    height = jnp.sqrt(1 - (u / a) ** 2 - (v / b) ** 2)
    right = view.turn @ jnp.stack([1.0, 0.0, -c * u / a**2 / height])
    down = view.turn @ jnp.stack([0.0, 1.0, -0.4 * c * v / b**2 / height])
    centre = _spot(view, u, v, lift)
    x, y = view.x - centre[0], view.y - centre[1]
    area = right[0] * down[1] - right[1] * down[0]
    return (down[1] * x - down[0] * y) / area, (right[0] * y - right[1] * x) / area


def _beside(view, v):
    """Head coordinates relative to a seen point on the middle of the face, without foreshortening."""
    centre = _spot(view, 0.0, v)
    return view.x - centre[0], view.y - centre[1]


def _ellipse(x, y, rx, ry):
    """Signed distance to an ellipse, to first order; negative inside."""
    k = jnp.sqrt((x / rx) ** 2 + (y / ry) ** 2 + 1e-6)
    return k * (k - 1) / jnp.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2 + 1e-6)


def _box(x, y, rx, ry):
    """Signed distance, roughly, to a superellipse of power four: a rounded box."""
    return (((x / rx) ** 4 + (y / ry) ** 4 + 1e-6) ** 0.25 - 1) * jnp.minimum(rx, ry)


def _capsule(view, start, end, radius):
    """Signed distance to a line of the given half thickness between two seen points."""
    x, y, dx, dy = view.x - start[0], view.y - start[1], end[0] - start[0], end[1] - start[1]
    along = jnp.clip((x * dx + y * dy) / (dx**2 + dy**2 + 1e-6), 0, 1)
    return jnp.sqrt((x - along * dx) ** 2 + (y - along * dy) ** 2 + 1e-6) - radius


def _cover(distance, pixel):
    """How much of each pixel lies inside, for a signed distance."""
    return jax.nn.sigmoid(-4 * distance / pixel)


def _between(y, top, bottom, pixel):
    """How much of each pixel lies between two curves; nothing where they cross."""
    return jax.nn.relu(_cover(top - y, pixel) - _cover(bottom - y, pixel))


# --- features -------------------------------------------------------------------------------------------------------


def _eye_sizes(identity):
    return 0.168 * identity.eye_size, 0.13 * identity.eye_size  # half width, height above the middle


def _eye(identity, view, side):
    """Local coordinates of one eye; x is mirrored so that it grows outwards on both sides (-1 left, 1 right)."""
    x, y = _local(view, side * 0.262 * identity.eye_spacing, identity.eye_height - 0.06)
    return side * x, y


def _mouth(identity, motion, view):
    """Local coordinates and curves of the mouth: x, y, its middle line, its profile (1 in the middle, 0 at the
    corners), how far it is open, and half its width."""
    x, y = _local(view, 0.0, 0.33, 0.02)
    half = 0.25 * identity.mouth_size * (1 + 0.25 * motion.mouth_width)
    across = (x / half) ** 2
    line = -0.04 * (1.0 + motion.mouth_width) * (across - 0.4)
    return x, y, line, 1 - across, 0.24 * motion.mouth_open, half


def _eye_layers(identity, motion, view, ink, lid):
    """Layers of both eyes and brows, back to front."""
    width, height = _eye_sizes(identity)

    def masks(side):
        x, y = _eye(identity, view, side)
        arc, lash = 1 - (x / width) ** 2, 1 - (x / width / 1.12) ** 2
        low, high = 0.75 * height * arc, (1.75 * motion.blink - 1) * height * arc
        opening = _between(y, high, low, view.pixel)
        gaze_x, gaze_y = x - side * 0.5 * width * motion.gaze_x, y + 0.1 * height - 0.5 * height * motion.gaze_y
        brow = 0.9 * (x - 0.02) ** 2 - height - 0.09 - 0.05 * motion.brow
        thick = identity.brow_thickness * jax.nn.sigmoid((0.95 * width - jnp.abs(x)) / 0.03)
        return jnp.stack([
            0.5 * _between(y, -1.15 * height * lash, low, view.pixel),
            opening,
            opening * _cover(_ellipse(gaze_x, gaze_y, 0.46 * width, 0.46 * width), view.pixel),
            opening * _cover(_ellipse(gaze_x, gaze_y, 0.24 * width, 0.24 * width), view.pixel),
            opening * _cover(_ellipse(gaze_x + 0.03 * side, gaze_y + 0.035, 0.024, 0.024), view.pixel),
            _between(y, high - 0.036 * lash, high + 0.008 * lash, view.pixel),
            _between(y, brow - thick, brow + thick, view.pixel)])  # fmt: skip

    both = jax.vmap(masks)(jnp.array([-1.0, 1.0])).sum(0)
    return list(zip(both, (lid, WHITE, identity.iris, DARK, WHITE, ink, identity.brow)))


def _nose_layers(identity, view, shade, glint):
    tip, bridge = (0.0, 0.12, 0.13 * identity.nose_size), _spot(view, 0.0, -0.08, 0.05)
    x, y = _local(view, *tip)
    rx, ry = 0.085 * identity.nose_width, 0.06 * identity.nose_size
    nostrils = _ellipse(jnp.abs(x) - 0.5 * rx, y - 0.6 * ry, 0.3 * rx, 0.02)
    return [
        (0.6 * _cover(_capsule(view, bridge, _spot(view, *tip), 0.035), 2.5 * view.pixel), shade),
        (0.9 * _cover(_ellipse(x, y, rx, ry), view.pixel), shade),
        (glint * _cover(_ellipse(x + 0.02, y + 0.4 * ry, 0.35 * rx, 0.35 * ry), 2 * view.pixel), WHITE),
        (0.8 * _cover(nostrils, view.pixel), DARK),
    ]


def _mouth_layers(identity, motion, view, lips):
    x, y, line, arc, drop, half = _mouth(identity, motion, view)
    inside = _between(y, line - 0.008 * arc, line + (0.012 + drop) * arc, view.pixel)
    tongue = inside * _cover(_ellipse(x, y - line - drop, 0.55 * half, 0.4 * drop + 0.01), view.pixel)
    return [
        (_between(y, line - 0.055 * arc, line + (drop + 0.075) * arc, view.pixel), lips),
        (inside, (0.22, 0.05, 0.07)),
        (tongue, (0.85, 0.38, 0.40)),
        (_between(y, line, line + 0.33 * drop * arc, view.pixel), (0.97, 0.96, 0.93)),
    ]


# --- pictures -------------------------------------------------------------------------------------------------------


def _head_layers(identity, motion, view, tone, ink, line, scene):
    """Backdrop, body, head and hair, back to front."""
    shaded, flat, sketch = identity.style
    x0, y0 = _grid(view.x.shape[0])
    x, y, pixel = view.x, view.y, view.pixel
    a, b, _ = view.radii
    ahead = view.turn[:2, 2]  # where the face points, in the picture
    skin, hair, clothes = tone(identity.skin), tone(identity.hair), tone(identity.clothes)
    dark_skin, dark_hair = 0.72 * skin, 0.7 * hair
    edge = 0.022 * (flat + sketch)

    length = identity.hair_length
    # the chin is in front of the head's axis, so it swings with the face
    jaw_x = x - 0.25 * ahead[0] * (y / b + 0.2)
    jaw_y = y - 0.12 * ahead[1]
    face = _ellipse(jaw_x / (1 - 0.5 * identity.jaw * jax.nn.relu(jaw_y / b) ** 2), jaw_y, a, b)
    crown = _ellipse(x + 0.10 * ahead[0], y + 0.05 + 0.1 * ahead[1], a + identity.hair_volume, b + identity.hair_volume)
    window_x, window_y = _beside(view, 0.14 + 0.1 * identity.fringe)
    window = _ellipse(window_x, window_y + identity.parting * window_x, 0.9 * a, 0.82 * b)
    ends = _ellipse(x, y + 0.6, 1.5 * a, 0.75 + 0.45 * length)
    front = jnp.maximum(jnp.maximum(crown, -window), ends)
    sway = 0.0 if scene is None else scene.swing * jax.nn.relu(y + 0.3)
    back = _box(
        x + 0.18 * ahead[0] - sway,
        y - 0.45 * length + 0.25,
        a - 0.08 + (0.1 + identity.hair_volume) * length,
        0.35 + 0.45 * length,
    )
    ears = _ellipse(jnp.abs(x) - (a + 0.02) * view.turn[0, 0], y - 0.04, 0.09, 0.14)
    body_x, body_y = x0 - motion.shift_x, y0 - motion.shift_y
    torso = _ellipse(body_x, body_y - 1.25, 0.95, 0.55)
    neck = _box(body_x - 0.3 * motion.roll * (0.8 - body_y), body_y - 0.62, 0.24, 0.42)
    collar = _ellipse(body_x, body_y - 0.74, 0.30, 0.17)

    light = 0.75 * x / a + 0.5 * y / b - 0.8 * ahead[0] - 0.5 * ahead[1]  # from the upper left, over the turned face
    shadow = jax.nn.sigmoid(light / 0.22 - 1.2) * shaded + 0.55 * _cover(0.62 - light, 2 * pixel) * flat
    hatch = jax.nn.sigmoid(light / 0.15 - 1) * (0.5 + 0.5 * jnp.sin(38 * (x + 0.6 * y))) * sketch
    strands = (0.5 + 0.5 * jnp.sin(30 * x / jnp.maximum(1.3 - y, 0.05))) * (0.3 * sketch + 0.12 * shaded)
    gloss = jnp.exp(-(((x + 0.1 * ahead[0] + 0.18) / 0.3) ** 2) - ((y + 0.55) / 0.09) ** 2)
    on_face, on_front = _cover(face, pixel), _cover(front, pixel)
    cheeks = sum(_cover(_ellipse(*_local(view, side * 0.33, 0.2), 0.1, 0.07), 4 * pixel + 0.08) for side in (-1, 1))
    glow = jnp.exp(-((x0 / 0.9) ** 2 + ((y0 + 0.2) / 0.9) ** 2))

    pattern, rings = [], []
    if scene is not None:
        waves = jnp.sin(8 * (x0 - 0.6 * scene.drift_x)) * jnp.sin(8 * (y0 - 0.6 * scene.drift_y))
        pattern = [(scene.pattern * (0.5 + 0.5 * waves), 0.6 * tone(identity.backdrop))]
        hangs = _ellipse(jnp.abs(x - 0.3 * scene.swing) - (a + 0.03) * view.turn[0, 0], y - 0.24, 0.035, 0.06)
        rings = [(scene.earrings * _cover(hangs, pixel), (0.95, 0.80, 0.30))]

    return [(jnp.ones_like(x), tone(identity.backdrop)),
            (glow, tone(identity.glow)), *pattern,
            (line * _cover(back - edge, pixel), ink), (_cover(back, pixel), dark_hair),
            (line * _cover(ears - edge, pixel), ink), (_cover(ears, pixel), skin), *rings,
            (line * _cover(neck - edge, pixel), ink), (_cover(neck, pixel), 0.86 * skin),
            (line * _cover(torso - edge, pixel), ink), (_cover(torso, pixel), clothes),
            (_cover(collar, pixel), 0.86 * skin),
            (line * _cover(face - edge, pixel), ink), (on_face, skin),
            (on_face * 0.75 * shadow, dark_skin), (on_face * 0.4 * cheeks * (shaded + flat), (0.9, 0.4, 0.38)),
            (line * _cover(front - edge, pixel), ink), (on_front, hair),
            (on_front * strands, dark_hair), (0.35 * on_front * gloss * (shaded + flat), WHITE),
            (0.3 * hatch * jnp.maximum(on_face, on_front), ink)]  # fmt: skip


def _paint(identity, motion, size, scene=None):
    """One picture (h w c)."""
    shaded, flat, sketch = identity.style
    view = _view(identity, motion, size)
    ink = (1 - sketch) * jnp.array(DARK) + sketch * 0.25

    def wash(colour, paper):  # each style has its palette: flat is vivid, a sketch is nearly colourless on paper
        grey = colour @ jnp.array([0.3, 0.59, 0.11])
        vivid = grey + (1 + 0.15 * flat - 0.85 * sketch) * (colour - grey)
        return jnp.clip((1 - paper * sketch) * vivid + paper * sketch * jnp.array(PAPER), 0, 1)

    tone = lambda colour: wash(colour, 0.62)
    layers = _head_layers(identity, motion, view, tone, ink, 0.95 * flat + 0.85 * sketch, scene)
    layers += _nose_layers(identity, view, 0.76 * tone(identity.skin), 0.6 * shaded)
    layers += _mouth_layers(identity, motion, view, wash(identity.lips, 0.3))
    layers += _eye_layers(identity, motion, view, ink, 0.8 * tone(identity.skin))
    masks = jnp.stack([mask for mask, _ in layers])  # k h w
    colours = jnp.stack([jnp.asarray(colour) for _, colour in layers])  # k c
    picture = jnp.zeros((3, size, size))
    for k in range(len(layers)):
        picture += masks[k] * (colours[k][:, None, None] - picture)
    if scene is not None:
        picture = jnp.clip(scene.light * picture, 0, 1)
    return rearrange(picture, "c h w -> h w c")


def _per_frame(function):
    """Extends a function of one Identity and one Motion to leading dimensions of both; an identity may have fewer."""

    def extended(identity, motion, size, *scene):
        if motion.yaw.ndim == 0:
            return function(identity, motion, size, *scene)
        own = 0 if identity.jaw.ndim else None
        return jax.vmap(lambda i, m, *s: extended(i, m, size, *s), in_axes=(own, 0, *(0 for _ in scene)))(
            identity, motion, *scene
        )

    return extended


def render(identity, motion, size, scene=None):
    """Pictures (..., size, size, 3) in [0, 1] for a Motion (...); leading dimensions of the identity must be the first
    ones of the motion, e.g. (b) and (b f). scene: a `hard.Scene` (...) around it; none in the plain world."""
    return _per_frame(_paint)(identity, motion, size, *(() if scene is None else (scene,)))


def _outline(identity, motion, size):
    view = _view(identity, motion, size)
    width, height = _eye_sizes(identity)
    x, y, line, _, drop, half = _mouth(identity, motion, view)
    eyes = [_eye(identity, view, side) for side in (-1, 1)]
    eyes = jnp.minimum(*(_box(x, y + 0.55 * height + 0.02, 1.17 * width, 1.5 * height + 0.03) for x, y in eyes))
    nose = _capsule(view, _spot(view, 0.0, -0.05, 0.05), _spot(view, 0.0, 0.13, 0.13 * identity.nose_size), 0.13)
    mouth = _box(x, y - line - 0.5 * drop - 0.01, half + 0.04, 0.5 * drop + 0.11)
    return Regions(*((distance < 0.5 * view.pixel).astype(jnp.float32) for distance in (eyes, nose, mouth)))


def regions(identity, motion, size):
    """Exact Regions (..., size, size) of the pictures that `render` makes, half a pixel wider than the features."""
    return _per_frame(_outline)(identity, motion, size)


def mask_driving(frames, regions):
    """Frames (..., h, w, c) of which only the regions are left; all else is GREY, which hides who the driver is."""
    keep = jnp.maximum(jnp.maximum(regions.eyes, regions.nose), regions.mouth)[..., None]
    return jnp.where(keep > 0, frames, GREY)


def triple(key, frames, past, size, fps=FPS, self_driven=False, masked=True, difficulty=0.0, led=False):
    """One cross-identity example with exact truth: person A (`identity`) in `source` (h w c), `past` (p h w c) and
    `target` (f h w c), and the masked `driving` (f h w c) in which B (`driver`) makes the target's `motion` (f).
    Where `self_driven`, B is A; where not `masked`, all of B is seen. difficulty: see `toy.hard`, where `hidden` (f)
    tells in which frames a part of the driver is. Where `led`, the driver of the past is there too: `past_driving`."""
    alone = 0 if led else past  # frames of the past without a driver
    key_people, key_motions = jax.random.split(key)
    both = jax.vmap(sample_identity)(jax.random.split(key_people))
    both = jax.tree.map(lambda field: field.at[1].set(jnp.where(self_driven, field[0], field[1])), both)
    identity, driver = (jax.tree.map(lambda field: field[i], both) for i in range(2))
    keys = jax.random.split(key_motions)
    moves = jax.vmap(lambda key: sample_motion(key, past + frames, fps))(keys)
    motion = jax.tree.map(lambda field: field[0, past:], moves)
    # one call, since compiling the renderer takes longer than a batch of pictures
    counts = (1 + past + frames, past + frames - alone)
    people = jax.tree.map(lambda field: jnp.repeat(field, jnp.array(counts), axis=0, total_repeat_length=sum(counts)), both)
    in_order = lambda field, own: jnp.concatenate([field[1, :1], field[0], field[own, alone:]])
    motions = jax.tree.map(lambda field: in_order(field, 0), moves)
    scenes = None
    if difficulty:  # the driver stands in a scene of its own, whose light does not tell the target's
        drawn = jax.vmap(lambda key: hard.scene(jax.random.fold_in(key, 1), key, past + frames, fps, difficulty))(keys)
        scenes = jax.tree.map(lambda field: in_order(field, 1), drawn)
    pictures = render(people, motions, size, scenes)
    source, before, target, driving = jnp.split(pictures, (1, 1 + past, 1 + past + frames))
    moving = jax.tree.map(lambda field: field[0, alone:], moves)
    hidden, seen = jnp.zeros(counts[1], bool), regions(driver, moving, size)
    if difficulty:
        key_hidden, key_film = jax.random.split(jax.random.fold_in(key, 1))
        parts = hard.hidden(key_hidden, counts[1], difficulty)
        hidden, driving = parts.any(0), hard.filmed(key_film, driving, difficulty)
        seen = Regions(*(jnp.where(gone[:, None, None], 0, hard.coarse(part)) for part, gone in zip(seen, parts)))
    shown = mask_driving(driving, seen) if masked else driving
    example = {"source": source[0], "past": before, "target": target, "driving": shown[past - alone :],
               "hidden": hidden[past - alone :], "motion": motion, "identity": identity, "driver": driver}  # fmt: skip
    return example | ({"past_driving": shown[:past]} if led else {})
