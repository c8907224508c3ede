"""The motion that pictures of a known person of the toy world show, by descent through its renderer: the inverse of
`toy.world.render`, and the instrument that measures control.

At 32 pixels it finds true motions with correlations above 0.99 (`tests/test_toy.py`).
Dimensions are those of `toy.world`, and m motion parameters, s starts.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange, reduce

from svdp_jax.toy import person, world

LARGEST = 64  # pixels a side that are drawn; larger frames are averaged to it, as detail beyond 32 only traps
STEPS, NUDGE = 6, 0.02  # steps of each descent, and of finite differences, in half ranges


def motion_at(place):
    """Motion (...) for places (..., 12) in [-1, 1], each between the two ends of its range."""
    low, high = (jnp.array(ends) for ends in zip(*person.RANGES.values()))
    values = low + (high - low) * (0.5 + 0.5 * place)
    return person.Motion(*(values[..., i] for i in range(len(person.RANGES))))


def coarse(picture, factor):
    return reduce(picture, "... (h y) (w x) c -> ... h w c", "mean", y=factor, x=factor)


def errors_of(identity, places, frame):
    """Differences (k m) of one frame from pictures of k places at three scales of equal weight, so that features attract
    from afar; the finest has 32 pixels a side, since detail beyond that only traps."""
    size = frame.shape[0]
    errors = world.render(identity, motion_at(places), size) - frame
    scales = [max(1, size // 32) * factor for factor in (1, 2, 4)]
    return jnp.concatenate([scale * rearrange(coarse(errors, scale), "k h w c -> k (h w c)") for scale in scales], 1)


@jax.jit
def likeliest(identity, frames, grids):
    """The best places (f s 12) of each of s grids (f s n 12)."""

    def choose(frame, grid):
        losses = jnp.square(errors_of(identity, rearrange(grid, "s n m -> (s n) m"), frame)).sum(1)
        best = rearrange(losses, "(s n) -> s n", n=grid.shape[1]).argmin(1)
        return grid[jnp.arange(len(grid)), best]

    return jax.lax.map(lambda pair: choose(*pair), (frames, grids))


@jax.jit
def refined(identity, frames, starts):
    """The best place (f 12) that damped Gauss-Newton (Levenberg-Marquardt) reaches from any of s starts (f s 12)."""
    nearby = jnp.concatenate([jnp.zeros((1, len(person.RANGES))), NUDGE * jnp.eye(len(person.RANGES))])

    def measure(place, frame):  # loss, and what its quadratic model needs
        # differences cost less than derivatives here: only pictures to compute, and to compile
        errors = errors_of(identity, place + nearby, frame)
        value, slopes = errors[0], (errors[1:] - errors[0]) / NUDGE
        return value @ value, slopes @ slopes.T, slopes @ value

    def climb_down(pair):
        start, frame = pair

        def step(state, _):
            place, damping, loss, curvature, slope = state
            damped = curvature + damping * jnp.diag(jnp.diag(curvature)) + 1e-3 * jnp.eye(len(place))
            trial = jnp.clip(place - jnp.linalg.solve(damped, slope), -1, 1)
            measured = measure(trial, frame)
            return jax.tree.map(partial(jnp.where, measured[0] < loss), (trial, damping / 3, *measured),
                                (place, damping * 4, loss, curvature, slope)), None  # fmt: skip

        unknown = jnp.inf, jnp.eye(len(start)), jnp.zeros_like(start)  # accepts the start itself first
        (place, _, loss, *_), _ = jax.lax.scan(step, (start, 0.1, *unknown), length=STEPS)
        return place, loss

    f, s, _ = starts.shape
    pairs = rearrange(starts, "f s m -> (f s) m"), jnp.repeat(frames, s, 0)
    places, losses = jax.lax.map(climb_down, pairs, batch_size=16)
    best = rearrange(losses, "(f s) -> f s", s=s).argmin(1)
    return rearrange(places, "(f s) m -> f s m", s=s)[jnp.arange(f), best]


def fit(frames, identity):
    """The Motion (f) of frames (f h w c) in [0, 1] that show a known Identity; the size is a power of two.

    Descends three times, since there are three ways to be stuck: from the best pose of a grid, each for looking left,
    ahead and right; then, so posed, from the best mouth, each for closed, half open and open; then from the best gaze,
    each for eyes open, half closed and closed. Frames are independent. A new shape compiles for some seconds, so cut
    long clips into equal pieces."""

    def spread(reach, n):
        return jnp.linspace(-reach, reach, n)

    def descend(places, **values):  # from all combinations of some fields' values, in three groups by the first field
        grid = jnp.stack(jnp.meshgrid(*values.values(), indexing="ij"), -1).reshape(3, -1, len(values))
        grids = jnp.broadcast_to(places[:, None, None], (len(places), *grid.shape[:2], len(person.RANGES)))
        grids = grids.at[..., jnp.array([person.Motion._fields.index(name) for name in values])].set(grid)
        return refined(identity, frames, likeliest(identity, frames, grids))

    frames = coarse(frames, max(1, frames.shape[1] // LARGEST))
    usual = person.Motion(*jnp.zeros(len(person.RANGES)))._replace(blink=jnp.float32(-0.4), mouth_open=jnp.float32(-0.3))
    places = jnp.broadcast_to(jnp.array(usual), (len(frames), len(person.RANGES)))
    # grids of one size compile once
    places = descend(places, yaw=spread(0.9, 6), pitch=spread(0.9, 6), roll=spread(0.9, 5))
    places = descend(places, mouth_open=spread(0.9, 6), mouth_width=spread(0.8, 5), brow=spread(0.9, 6))
    places = descend(
        places, blink=jnp.array([-0.7, -0.1, 0.6]), gaze_x=spread(0.9, 6), gaze_y=spread(0.9, 5), brow=jnp.array([-0.7, 0.5])
    )
    return motion_at(places)
