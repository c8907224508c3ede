"""Many devices against one: simulated ones in a process of their own, and two processes that train together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found():
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "mesh_worker.py"], cwd=ROOT, text=True,
        capture_output=True, env=os.environ | {"PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_meshes_and_schemes_have_the_loss_and_gradients_of_one_device(found):
    runs = found["runs"]
    assert {run["scheme"] for run in runs} == {"heads", "ring"}
    for run in runs:
        assert run["loss"] < 1e-5 and run["gradient"] < 1e-5, run


def test_parameters_and_optimizer_are_really_divided(found):
    for run in found["runs"]:
        data, fsdp, context = run["mesh"]
        assert run["share"] < 1.2 / (fsdp * context), run


def test_a_block_on_frames_of_many_devices_needs_no_communication(found):
    for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert f" {word}" not in found["block"], word


CONFIG = '''
import sys; sys.path.insert(0, {tests!r})
import dataclasses
import jax
from conftest import tiny_model
jax.config.update("jax_numpy_dtype_promotion", "standard")  # optax mixes integers and floats
from svdp_jax import config as configs

def get_config():
    model = tiny_model()
    model = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, blocks=2))
    return configs.as_flags(configs.Config(
        "pair", model, data=configs.Data(size=16, frames=2, past=1, batch=4),
        stages=(configs.Stage(steps=3),), dtype="float32", evaluate=0, log_every=1,
        optimizer=configs.Optimizer(warmup=2),
    ))
'''


def test_two_processes_train_as_one_does(tmp_path):
    path = tmp_path / "pair.py"
    path.write_text(CONFIG.format(tests=str(ROOT / "tests")))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"

    def start(workdir, **more):
        command = [sys.executable, "-m", "svdp_jax.train", "--config", path, "--workdir", tmp_path / workdir]
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | more, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )

    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    pair = [start("pair", **shared, JAX_PROCESS_ID=str(index)) for index in range(2)]
    for process in pair:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    _, errors = (alone := start("alone")).communicate(timeout=300)
    assert alone.returncode == 0, errors
    losses = [
        [json.loads(line)["loss"] for line in open(tmp_path / name / "metrics.jsonl")]
        for name in ("pair", "alone")
    ]
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (tmp_path / "pair" / "model" / "manifest.json").exists()
