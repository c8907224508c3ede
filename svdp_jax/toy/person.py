"""Who is drawn and how they move: `Identity` and `Motion`, their ranges, and random ones.

Units: the picture spans [-1, 1] in x (to the right) and y (downwards). Everything positive in a motion goes to the
right, downwards or clockwise *in the picture*.

    field         range         meaning
    yaw           -0.6 .. 0.6   head turns to the right, radians
    pitch         -0.4 .. 0.4   head nods down, radians
    roll         -0.35 .. 0.35  head tilts clockwise, radians
    shift_x, _y  -0.05 .. 0.05  head moves, fractions of the picture's width
    scale         0.95 .. 1.05  head grows
    gaze_x, _y      -1 .. 1     irises move from one end of their path to the other
    blink            0 .. 1     eyes close
    mouth_open       0 .. 1     lower lip drops, up to 0.12 of the picture
    mouth_width     -1 .. 1     pursed .. wide and smiling
    brow            -1 .. 1     brows rise from lowest to highest
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FPS = 12.5  # drawn on twos, as cartoons are
RANGES = {
    "yaw": (-0.6, 0.6), "pitch": (-0.4, 0.4), "roll": (-0.35, 0.35),
    "shift_x": (-0.05, 0.05), "shift_y": (-0.05, 0.05), "scale": (0.95, 1.05),
    "gaze_x": (-1.0, 1.0), "gaze_y": (-1.0, 1.0), "blink": (0.0, 1.0),
    "mouth_open": (0.0, 1.0), "mouth_width": (-1.0, 1.0), "brow": (-1.0, 1.0),
}  # fmt: skip
TRAITS = {
    "face_width": (0.9, 1.08), "face_height": (0.95, 1.05), "jaw": (0.05, 0.4),
    "hair_length": (0.1, 1.1), "fringe": (0.0, 1.0), "parting": (-0.5, 0.5), "hair_volume": (0.05, 0.15),
    "eye_size": (0.92, 1.1), "eye_spacing": (0.94, 1.06), "eye_height": (-0.025, 0.025),
    "brow_thickness": (0.016, 0.034), "nose_size": (0.85, 1.2), "nose_width": (0.8, 1.25), "mouth_size": (0.92, 1.1),
}  # fmt: skip
SKIN = ((1.0, 0.86, 0.75), (0.95, 0.74, 0.58), (0.80, 0.57, 0.42), (0.60, 0.40, 0.28), (0.42, 0.27, 0.20))
HAIR = ((0.10, 0.08, 0.09), (0.28, 0.16, 0.10), (0.48, 0.28, 0.14), (0.85, 0.66, 0.34), (0.70, 0.30, 0.14),
        (0.62, 0.62, 0.66), (0.24, 0.33, 0.60), (0.78, 0.42, 0.56), (0.18, 0.42, 0.40))  # fmt: skip
IRIS = ((0.28, 0.16, 0.08), (0.12, 0.30, 0.58), (0.12, 0.42, 0.26), (0.34, 0.36, 0.42), (0.40, 0.18, 0.46))
LIPS = ((0.80, 0.36, 0.36), (0.70, 0.22, 0.28), (0.88, 0.46, 0.46), (0.58, 0.24, 0.24))


class Identity(NamedTuple):
    """Who is shown and how it is drawn. Colours are (..., 3) in [0, 1], `style` is (..., 3) weights of shaded, flat and
    sketch, all others are (...) within TRAITS."""

    skin: jax.Array
    hair: jax.Array
    iris: jax.Array
    brow: jax.Array
    lips: jax.Array
    clothes: jax.Array
    backdrop: jax.Array
    glow: jax.Array
    style: jax.Array
    face_width: jax.Array
    face_height: jax.Array
    jaw: jax.Array
    hair_length: jax.Array
    fringe: jax.Array
    parting: jax.Array
    hair_volume: jax.Array
    eye_size: jax.Array
    eye_spacing: jax.Array
    eye_height: jax.Array
    brow_thickness: jax.Array
    nose_size: jax.Array
    nose_width: jax.Array
    mouth_size: jax.Array


class Motion(NamedTuple):
    """How the head is held and what the face does; every field is (...) within RANGES (table above)."""

    yaw: jax.Array
    pitch: jax.Array
    roll: jax.Array
    shift_x: jax.Array
    shift_y: jax.Array
    scale: jax.Array
    gaze_x: jax.Array
    gaze_y: jax.Array
    blink: jax.Array
    mouth_open: jax.Array
    mouth_width: jax.Array
    brow: jax.Array


def sample_identity(key):
    """One random Identity without leading dimensions."""
    draws = iter(jax.random.uniform(key, (8 + len(TRAITS),)))  # one call: each costs seconds of compilation

    def one_of(palette):
        return jnp.array(palette)[(next(draws) * len(palette)).astype(jnp.int32)]

    def between(palette):  # a colour on the line between two neighbours
        place, steps = next(draws) * (len(palette) - 1), jnp.arange(len(palette), dtype=jnp.float32)
        return jnp.stack([jnp.interp(place, steps, jnp.array(channel)) for channel in zip(*palette)])

    def hue(low, high):  # a colour whose channels reach from about low to high
        wheel = 0.5 + 0.5 * jnp.cos(2 * jnp.pi * next(draws) + jnp.array([0.0, 2.1, 4.2]))
        return low + (high - low) * wheel

    skin, hair = between(SKIN), one_of(HAIR)
    return Identity(
        skin=skin, hair=hair, iris=one_of(IRIS), brow=0.6 * hair, lips=0.75 * one_of(LIPS) + 0.25 * skin,
        clothes=hue(0.15, 0.85), backdrop=hue(0.35, 0.75), glow=hue(0.6, 0.95), style=one_of(jnp.eye(3)),
        **{name: low + (high - low) * next(draws) for name, (low, high) in TRAITS.items()})  # fmt: skip


def sample_motion(key, frames, fps=FPS, start=0.0):
    """A smooth random Motion (f,) with blinks and speech. It is a function of time alone: a longer sequence of the same
    key begins with the shorter one, and one that starts earlier, in seconds, ends with it."""
    draws = iter(jax.random.uniform(key, (20, 3, 3, 1)))  # one call: each costs seconds of compilation
    time = start + jnp.arange(frames, dtype=jnp.float32) / fps

    def drift(fastest, depth):  # a wandering angle: random start, then a sum of three sinusoids
        start, phase, hertz = next(draws)
        waves = jnp.sin(2 * jnp.pi * (fastest * (0.15 + 0.85 * hertz) * time + phase))
        return 2 * jnp.pi * start[0] + depth * waves.sum(0)

    def wave(fastest):  # the sine of a wandering angle fills [-1, 1] without clipping
        return jnp.sin(drift(fastest, 0.7))

    def beat(slowest, fastest):  # an angle that advances at a random pace, unevenly
        pace = slowest + (fastest - slowest) * next(draws)[0, 0]
        return 2 * jnp.pi * pace * time + drift(0.5, 0.4)

    motion = {name: low + (high - low) * (0.5 + 0.5 * wave(1.0)) for name, (low, high) in RANGES.items()}
    closing = jnp.exp(8 * (jnp.cos(beat(0.5, 1.3)) - 1))
    squint = 0.35 * (0.5 + 0.5 * wave(0.6))
    talking = jax.nn.sigmoid(6 * (wave(0.8) + 0.4))
    syllables = (0.5 - 0.5 * jnp.cos(beat(3.0, 6.0))) * (0.7 + 0.3 * wave(1.0))
    held = jax.nn.relu(wave(0.5)) ** 2
    return Motion(
        **motion | {"blink": 1 - (1 - closing) * (1 - squint), "mouth_open": 1 - (1 - talking * syllables) * (1 - 0.8 * held)}
    )
