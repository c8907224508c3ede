"""Many devices against one, simulated in a process of their own; for two processes see tests/test_faults.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found():
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    result = subprocess.run(
        [sys.executable, ROOT / "tests" / "mesh_worker.py"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": path},
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


def test_a_video_is_the_same_on_any_number_of_devices(found):
    """Three people and four branches of guidance divide over no mesh evenly."""
    assert [run["mesh"] for run in found["animated"]] == [
        {"data": 1, "fsdp": 1, "context": 1},
        {"data": 2, "fsdp": 1, "context": 1},
        {"data": 4, "fsdp": 1, "context": 2},
    ]
    assert all(run["away"] <= 1 for run in found["animated"])  # of 255
