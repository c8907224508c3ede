"""Tiles of the splash kernel, by TPU and size of a head: as measured where there is a row, else as the compiler's own
schedule has them cheapest (docs/figures.md). `python tpu_scripts/bench.py --tune` measures, and writes the rows.
"""

from typing import NamedTuple

import jax


class Tiles(NamedTuple):
    """The most of each that a tile has: larger ones do not fit a core's fast memory, and of a tile more scores at once
    no longer fit its registers."""

    queries: int = 1152
    keys: int = 2048
    at_once: int = 256  # keys whose scores are computed in one go
    at_once_back: int = 512  # the same in the backward pass


# By device kind and size of a head.
TILES: dict[tuple[str, int], Tiles] = {}


def tiles_for(size: int) -> Tiles:
    """Of heads of this size, on the devices of the mesh, or of this process where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    device = jax.devices()[0] if mesh.empty else mesh.abstract_device
    return TILES.get((device.device_kind, size), Tiles())
