"""Weights that older versions wrote still load: they hold the whole position table."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import tiny_model
from flax import nnx
from safetensors.numpy import load_file

from svdp_jax import config as configs
from svdp_jax.models import layers
from svdp_jax.models.svdp import SVDP
from svdp_jax.weights import checkpoint, shipped
from svdp_jax.weights.older import LINE, TABLE, renewed


def test_a_folder_with_the_whole_table_loads(tmp_path):
    """Written as an older version would, in another dtype than float32; all ways of reading it agree."""
    model = SVDP(tiny_model(), nnx.Rngs(0))
    arrays = {name: array.astype(jnp.bfloat16) for name, array in checkpoint.named(nnx.state(model)).items()}
    b = tiny_model().backbone
    older = {name: array for name, array in arrays.items() if not name.endswith(LINE)}
    older[f"image.{TABLE}"] = layers.position_table(b.table, b.width, b.base).astype(jnp.bfloat16)
    config = configs.Config("older", tiny_model())
    checkpoint.save_weights(tmp_path / "model", "svdp", config.model, older, checkpoint.trained_with(config))
    _, loaded = checkpoint.load_model(tmp_path / "model")
    for found in (checkpoint.named(nnx.state(loaded)), checkpoint.load_arrays(tmp_path / "model")):
        assert found.keys() == arrays.keys()
        assert all((found[name] == arrays[name]).all() for name in arrays)


def test_the_shipped_model_has_the_positions_it_was_trained_with():
    """It was exported with its whole table: every crop is bit for bit of that."""
    folder = shipped.find()
    stored = load_file(folder / checkpoint.EXPORTED)
    _, model = checkpoint.load_model(folder)
    table = stored[f"image.{TABLE}"].astype(np.float32)
    np.testing.assert_array_equal(model.image.pos_embed.pos_embed, table)
    side, n = len(table), 4
    middle = slice((side - n) // 2, (side + n) // 2)
    crop = model.image.pos_embed.crop(n, n, 1)
    np.testing.assert_array_equal(crop, table[middle, (side + n) // 2 :][:, :n].reshape(n * n, -1))
    assert jax.tree.map(jnp.shape, renewed(stored))[f"image.{LINE}"] == (side, table.shape[-1] // 2)
