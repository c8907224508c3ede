"""The measurements for an accelerator, rehearsed as they will be called: every part, in processes of their own."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import jax
import pytest

from configs import toy_gpu
from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.weights import adapter, checkpoint, shipped

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tpu_scripts" / "accelerator.py"
sys.path.insert(0, str(SCRIPT.parent))
import accelerator
import bench


def measure(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, "--output", folder, "--tiny", *arguments]
    return subprocess.run(command, text=True, capture_output=True, env=os.environ)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("accelerator")
    done = measure(folder, "--minutes=30")
    assert done.returncode == 0, done.stdout + "".join(log.read_text()[-1000:] for log in folder.glob("*.log"))
    return folder


def test_every_part_has_a_result(rehearsal):
    found = json.loads((rehearsal / "accelerator.json").read_text())
    assert list(found["parts"]) == list(accelerator.WORDS) and "cpu" in found["device"]
    rows = {name: part["rows"] for name, part in found["parts"].items()}
    assert [row["learns"] for row in rows["train"] + rows["adapter"]] == ["all", "adapter"]
    told = [row["what"] for row in rows["sampler"]]
    assert told[:2] == ["teacher, 28 steps of 4 branches", "student, 4 calls"] and "LivePortrait, 1 at once" in told
    assert all(part["rows"] and "failed" not in part for part in found["parts"].values())
    page = (rehearsal / "accelerator.md").read_text()
    assert all(f"## {words}" in page for words in accelerator.WORDS.values())


def test_a_device_is_compared_in_output_and_gradient(rehearsal):
    """Here the device is the CPU: float32 is exact, and bfloat16 is off by its rounding, so the comparison compares."""
    rows = json.loads((rehearsal / "parity.json").read_text())["rows"]
    assert {row["what"].split(",")[0] for row in rows} >= {"video model", "autoencoder", "LivePortrait", "xla"}
    for row in rows:
        differences = [row["difference of output"], row["difference of gradients"]]
        assert max(differences) == 0 if row["dtype"] == "float32" else 1e-4 < min(differences) < 0.1, row


def test_what_was_trained_until_it_was_cut_off_can_be_shipped(rehearsal):
    [row] = json.loads((rehearsal / "toy.json").read_text())["rows"]
    config, _ = checkpoint.load_model(rehearsal / "toy_model")
    assert 6 <= row["step"] < configs.stage_ends(config)[0], row  # its 7 400 steps are never done
    assert config.data.size == 16 and config.model.codec == configs.Codec("small")
    _, *parts = adapter.abstract(configs.from_flags(toy_gpu.get_config()))
    assert sum(2 * leaf.size for leaf in jax.tree.leaves(parts)) < shipped.LIMIT  # in half precision


def test_tiles_that_all_fail_are_a_sentence(monkeypatch, capsys):
    def splash(*qkv):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: of fast memory")

    monkeypatch.setattr(bench.attention, "splash_attention", splash)
    before = dict(bench.tiles.TILES)
    with pytest.raises(UserError, match="no tile that is tried fits cpu at 5 tokens, heads of 32"):
        bench.tune(configs.Config("x", configs.toy(), configs.Data(size=8, frames=4, past=1)), 1, ((8,), (8,), (8,), (8,)))
    assert "of fast memory" in capsys.readouterr().err and bench.tiles.TILES == before


def test_a_part_that_fails_or_is_late_costs_its_own_result_alone(tmp_path, monkeypatch):
    parts = (accelerator.Part("train", 0.1, ("16", "4")), accelerator.Part("attention", 60))
    monkeypatch.setattr(accelerator, "PARTS", parts)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # which the rehearsal changes
    monkeypatch.setattr(sys, "argv", ["accelerator.py", f"--output={tmp_path}", "--tiny", "--parts=train,attention"])
    with pytest.raises(SystemExit, match="1"):
        accelerator.main()
    found = json.loads((tmp_path / "accelerator.json").read_text())["parts"]
    assert "stopped after" in found["train"]["failed"] and found["attention"]["rows"]


def test_the_package_need_not_be_installed(tmp_path):
    """As on a machine that has but the libraries: -S leaves out what an editable installation adds to them."""
    command = [sys.executable, "-S", SCRIPT, "--output", tmp_path, "--tiny", "--parts=attention"]
    apart = {"PYTHONPATH": sysconfig.get_path("purelib")}
    done = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path, env=os.environ | apart)
    assert done.returncode == 0, done.stdout + (tmp_path / "attention.log").read_text()[-1000:]


def test_alternatives_end_with_the_first_that_fits():
    results = {}
    tried = []
    for part in accelerator.chosen(["train", "profile"], results):
        tried.append((part.name, *part.arguments))
        results[part.name] = {"failed": "out of memory"} if part.arguments == ("16", "4") else {}
    assert tried == [("train", "16", "4"), ("train", "8", "2"), ("profile",)]


def test_a_part_that_there_is_not_is_named(tmp_path):
    done = measure(tmp_path, "--parts=speed")
    assert done.returncode == 2 and "no part is called speed" in done.stderr
