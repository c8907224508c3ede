import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.errors import UserError
from svdp_jax.models.svdp import SVDP


def test_a_mesh_that_does_not_fit_the_devices_is_said():
    with pytest.raises(UserError, match="cannot be made from 1 devices"):
        parallel.make_mesh(configs.Mesh(data=3))
    assert parallel.make_mesh(configs.Mesh()).shape == {"data": 1, "fsdp": 1, "context": 1}


def test_every_parameter_of_the_full_model_has_a_row():
    mesh = parallel.make_mesh(configs.Mesh())
    model = nnx.eval_shape(lambda: SVDP(configs.sd35m(), nnx.Rngs(0)))
    state = nnx.state(model)
    shardings = parallel.parameter_shardings(state, mesh)
    spec = shardings["image"]["dual"]["attn"]["to_q"]["kernel"].get_value().spec
    assert spec == jax.sharding.PartitionSpec(None, ("fsdp", "context"), None)


def test_a_parameter_without_a_row_is_an_error():
    mesh = parallel.make_mesh(configs.Mesh())
    with pytest.raises(ValueError, match="no row of PARAMETERS fits image.surprise"):
        parallel.parameter_shardings({"image": {"surprise": jnp.zeros((2, 2))}}, mesh)
    with pytest.raises(ValueError, match="no row"):
        parallel.parameter_shardings({"proj_out": {"kernel": jnp.zeros((2, 2, 2))}}, mesh)
