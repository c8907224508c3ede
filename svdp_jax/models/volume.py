"""Convolution and sampling of volumes and of enlarged pictures, in forms that run fast everywhere.

Volumes are b z y x c, pictures b y x c. XLA on a CPU runs a large 3-D convolution as several times
the work of the 2-D one that it is turned into here; the sampler is one gather of whole rows.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

# A 3 x 3 kernel on a picture of repeated pixels: what the first, any middle and the last copy of a
# pixel see of the row before, their own, and the row after. Rows of each matrix are those that are
# seen, with the padding this takes; columns are the kernel's three.
FIRST = (np.array([[1, 0, 0], [0, 1, 1]], np.float32), (1, 0))
MIDDLE = (np.array([[1, 1, 1]], np.float32), (0, 0))
LAST = (np.array([[1, 1, 0], [0, 0, 1]], np.float32), (0, 1))


def convolve(x: jax.Array, kernel: jax.Array, padding="SAME") -> jax.Array:
    """Convolution of pictures by a kernel y x i o."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolve_enlarged(x: jax.Array, kernel: jax.Array, factor: int) -> jax.Array:
    """Convolution, by a 3 x 3 kernel, of pictures each of whose pixels is repeated `factor` times
    both ways: without making them, for 1/2 (factor 2) or 1/6 (factor 4) of the work."""
    if factor == 1:
        return convolve(x, kernel)
    copies = [0, *[1] * (factor - 2), 2]
    kinds = (FIRST, MIDDLE, LAST)

    def part(row: int, column: int) -> jax.Array:
        (rows, pad_y), (columns, pad_x) = kinds[row], kinds[column]
        rows, columns = rows.astype(kernel.dtype), columns.astype(kernel.dtype)
        taps = jnp.einsum("at,bu,tuio->abio", rows, columns, kernel)
        return convolve(x, taps, (pad_y, pad_x))

    parts = {place: part(*place) for place in itertools.product(set(copies), repeat=2)}
    out = jnp.stack([parts[place] for place in itertools.product(copies, repeat=2)])
    return rearrange(out, "(p q) b y x o -> b (y p) (x q) o", p=factor)


class Conv3d(nnx.Module):
    """Convolution of volumes, padded with zeros to the same size.

    With `enlarge`, of volumes that are first enlarged so many times along y and x.
    """

    def __init__(self, size_in: int, size_out: int, rngs: nnx.Rngs, kernel: int = 3, enlarge: int = 1):
        shape = (kernel, kernel, kernel, size_in, size_out)
        self.kernel = nnx.Param(jax.nn.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(size_out))
        self.enlarge = enlarge

    def __call__(self, x: jax.Array) -> jax.Array:
        depth, kernel = x.shape[1], self.kernel[...]
        # One 2-D convolution gives what every slice adds to its neighbours along z.
        slices = rearrange(x, "b z y x i -> (b z) y x i")
        kernel = rearrange(kernel, "k y x i o -> y x i (k o)")
        given = convolve_enlarged(slices, kernel, self.enlarge)
        given = rearrange(given, "(b z) y x c -> b z y x c", z=depth)
        return added_along_z(given, len(self.kernel)) + self.bias[...]


def added_along_z(given: jax.Array, taps: int) -> jax.Array:
    """What slices b z y x (k o) give to the slices around them, summed: b z y x o."""
    depth, reach, total = given.shape[1], taps // 2, jnp.zeros((), given.dtype)
    for shift, part in zip(range(-reach, reach + 1), jnp.split(given, taps, axis=-1)):
        part = part[:, max(shift, 0) : max(depth + min(shift, 0), 0)]
        pad = [(0, 0)] * given.ndim
        pad[1] = min(max(-shift, 0), depth), min(max(shift, 0), depth)
        total += jnp.pad(part, pad)
    return total


def sample(volumes: jax.Array, places: jax.Array) -> jax.Array:
    """Trilinear samples b ... c of volumes b z y x c at places b ... 3, each (x, y, z).

    -1 and 1 are the outer edges of the volume's first and last cell, and beyond it are zeros, as in
    `torch.nn.functional.grid_sample` with its defaults.
    """
    size = np.array(volumes.shape[3:0:-1])  # x, y, z
    position = ((places + 1) * size.astype(places.dtype) - 1) / 2
    position = position.clip(-1, size.astype(places.dtype))  # beyond, all is zero
    low = jnp.minimum(jnp.floor(position), (size - 1).astype(places.dtype))
    part = (position - low).astype(volumes.dtype)
    x, y, z = jnp.moveaxis(low.astype(jnp.int32) + 1, -1, 0)
    rows = (z * (size[1] + 1) + y) * (size[0] + 1) + x
    found = jax.vmap(lambda table, row: jnp.take(table, row, axis=0, mode="clip"))(corners(volumes), rows)
    found = rearrange(found, "... (k c) -> ... k c", k=8)
    x, y, z = jnp.moveaxis(jnp.stack([1 - part, part], -1), -2, 0)  # ... 2
    shares = z[..., :, None, None] * y[..., None, :, None] * x[..., None, None, :]
    return (rearrange(shares, "... i j k -> ... (i j k) 1") * found).sum(-2)


def sample_shifted(volumes: jax.Array, cells: jax.Array, shifts: jax.Array) -> jax.Array:
    """What `sample` gives at `cells` z y x 3, those of a grid along the axes, plus each of `shifts` b k 3: b z y x k c.

    A grid that is shifted as a whole lies along the axes still, so each axis is a small matrix of its own: no
    gather, and a 20th of its time on a CPU.
    """
    axes = cells[0, 0, :, 0], cells[0, :, 0, 1], cells[:, 0, 0, 2]
    x, y, z = (
        weights(axis + shifts[..., i, None], size).astype(volumes.dtype)
        for i, (axis, size) in enumerate(zip(axes, volumes.shape[3:0:-1]))
    )
    out = jnp.einsum("bkxi,bzyic->bkzyxc", x, volumes)
    out = jnp.einsum("bkyi,bkzixc->bkzyxc", y, out)
    return jnp.einsum("bkzi,bkiyxc->bzyxkc", z, out)


def weights(places: jax.Array, size: int) -> jax.Array:
    """Of `size` cells in linear samples at places ... of one axis, as of `sample`: ... size."""
    position = ((places + 1) * size - 1) / 2
    return jax.nn.relu(1 - abs(position[..., None] - jnp.arange(size, dtype=places.dtype)))


def corners(volumes: jax.Array) -> jax.Array:
    """Every cell of eight neighbours of the zero-padded volumes in one row: b n (8 c)."""
    padded = jnp.pad(volumes, ((0, 0), *[(1, 1)] * 3, (0, 0)))
    z, y, x = (extent - 1 for extent in padded.shape[1:4])
    cells = [padded[:, i : i + z, j : j + y, k : k + x] for i, j, k in itertools.product((0, 1), repeat=3)]
    return rearrange(jnp.concatenate(cells, -1), "b z y x c -> b (z y x) c")
