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


SLURM = {"JOB_ID": "1", "STEP_NODELIST": "here", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}
CLUSTERS = {
    "none": ({}, []),
    "by hand": ({"JAX_COORDINATOR_ADDRESS": "here:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, [("here:1", 2, 1)]),
    "slurm": ({f"SLURM_{name}": value for name, value in SLURM.items()}, [()]),
}


@pytest.mark.parametrize("kind", CLUSTERS)
def test_processes_join_where_there_is_a_cluster(monkeypatch, kind):
    environment, expected = CLUSTERS[kind]
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: joined.append(arguments))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    parallel.start()
    assert joined == expected


def test_a_slice_of_compute_engine_is_known_by_its_metadata(monkeypatch):
    """No variable says so there: JAX asks the machine's metadata which worker it is."""
    from jax._src.clusters import cloud_tpu_cluster as cloud

    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: joined.append(arguments))
    monkeypatch.setattr(cloud, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud, "get_metadata", lambda key: ("1", 200))
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    parallel.start()
    assert joined == [()]
