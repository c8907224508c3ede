import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svdp_jax.media import video
from svdp_jax.media.writer import VideoWriter
from svdp_jax.weights import checkpoint

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tpu_scripts" / "tpu.sh"
ACTIONS = {
    "create": "queued-resources create svdp --node-id=svdp --accelerator-type=v4-32",
    "wait": "queued-resources describe svdp",
    "setup": "tpu-vm scp /tmp/svdp_jax.tar.gz svdp:svdp_jax.tar.gz --worker=all",
    "launch configs/tpu_v4.py --config.seed=1": "svdp_jax.train\\ --config\\ configs/tpu_v4.py\\ --config.seed=1",
    "watch": "train.log",
    "fetch out": "svdp:/mnt/svdp/run/model out",
    "stop": "pkill\\ -TERM",
    "delete": "queued-resources delete svdp",
}


def tpu(*arguments):
    return subprocess.run(
        ["bash", SCRIPT, *arguments], text=True, capture_output=True, env=os.environ | {"PATH": "/usr/bin:/bin"}
    )


@pytest.mark.parametrize("action", ACTIONS)
def test_dry_run_prints_every_command_and_runs_none(action):
    result = tpu("--dry-run", *action.split())  # gcloud is not there, so running any would fail
    assert result.returncode == 0, result.stderr
    assert ACTIONS[action] in result.stdout and "--zone=us-central2-b" in result.stdout


# Runs what it is told in a local shell, as a worker whose home is a folder of this test. A slice is a file that
# says its state; it is taken away after its first launch, as spot machines are.
GCLOUD = """#!/bin/bash
echo "$*" >> "$FAKE/calls"
case "$*" in
  *"queued-resources create"*) echo ACTIVE > "$FAKE/state" ;;
  *"queued-resources delete"*) rm "$FAKE/state" ;;
  *"queued-resources describe"*) cat "$FAKE/state" ;;
  *"tpu-vm scp"*) mkdir -p "$FAKE/home/svdp_jax" ;;
  *"tpu-vm ssh"*)
    for word; do case $word in --command=*) command=${word#--command=} ;; esac; done
    case $command in
      *venv/bin/pip*) ;;
      *svdp_jax.train*)
        cd "$FAKE/home" && HOME="$FAKE/home" bash -c "$command"
        if [ ! -e "$FAKE/taken" ]; then touch "$FAKE/taken"; echo SUSPENDED > "$FAKE/state"; fi
        ;;
      *) [ "$(cat "$FAKE/state")" = ACTIVE ] && cd "$FAKE/home" && HOME="$FAKE/home" bash -c "$command" ;;
    esac
    ;;
esac
"""


@pytest.fixture
def cloud(tmp_path):
    """The environment of a machine with the fake gcloud, whose worker trains for `SECONDS_` seconds."""
    for path, text in (("bin/gcloud", GCLOUD), ("home/venv/bin/python", '#!/bin/bash\nsleep "$TRAINING"; echo "$*"\n')):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    (tmp_path / "home/svdp_jax").mkdir()
    (tmp_path / "records").mkdir()
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    return os.environ | {"PATH": path, "FAKE": str(tmp_path), "PAUSE": "0.1", "INPUTS": str(tmp_path / "records")}


def test_launch_returns_while_the_training_runs(cloud, tmp_path):
    command = ["bash", SCRIPT, "launch", "configs/tpu_v4.py"]
    result = subprocess.run(command, text=True, capture_output=True, env=cloud | {"TRAINING": "120"}, timeout=100)
    assert result.returncode == 0 and "started" in result.stdout, result.stderr
    assert not (tmp_path / "home/train.rc").exists()


def test_a_slice_that_is_taken_away_is_made_again_and_trains_on(cloud, tmp_path):
    command = ["bash", SCRIPT, "supervise", "configs/tpu_v4.py", "--config.seed=1"]
    result = subprocess.run(command, text=True, capture_output=True, cwd=ROOT, env=cloud | {"TRAINING": "1"}, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "the training is done" in result.stdout
    calls = (tmp_path / "calls").read_text()
    assert calls.count("queued-resources create") == calls.count("svdp_jax.train") == 2
    assert f"scp --recurse {tmp_path / 'records'} svdp:svdp_jax/ --worker=all" in calls
    assert "--config.seed=1 --workdir /mnt/svdp/run" in (tmp_path / "home/train.log").read_text()


@pytest.mark.parametrize("arguments", [[], ["explode"], ["--dry-run", "launch"], ["--dry-run", "fetch"]])
def test_a_wrong_word_fails(arguments):
    assert tpu(*arguments).returncode == 2


def test_shellcheck_finds_nothing():
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not checker:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([checker, SCRIPT], text=True, capture_output=True)
    assert result.returncode == 0, result.stdout


def test_the_notebook_runs_on_a_cpu(tmp_path, portraits):
    cells = json.loads((ROOT / "tpu_scripts" / "colab_tpu.ipynb").read_text())["cells"]
    program = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    clips = tmp_path / "clips"
    clips.mkdir()
    for clip in sorted(portraits.glob("*.mp4"))[:2]:
        with VideoWriter(clips / clip.name, video.probe(clip).fps) as writer:
            for frame in video.read_frames(clip, stop=12):
                writer.write(frame.image)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    settings = {
        "SVDP_CLIPS": str(clips), "SVDP_PICTURE": str(portraits / "s9.jpg"), "SVDP_STEPS": "2",
        "SVDP_WORK": "mine", "SVDP_LIMITS": "seconds=0.3 found=0.5",
    }  # fmt: skip

    def execute() -> str:
        result = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True, env=os.environ | settings
        )
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stderr

    assert "step 0 of 2" in execute()
    assert (tmp_path / "mine/result.mp4").stat().st_size > 10_000
    held = checkpoint.stored_arrays(tmp_path / "mine/run/model/params")
    assert "image.last.attn.to_q.lora_a" in held and "image.last.attn.to_q.kernel" not in held
    (tmp_path / "mine/result.mp4").unlink()
    assert "step 2 of 2" in execute()  # all cells again, as after a disconnect
    assert (tmp_path / "mine/result.mp4").exists()


def test_bench_prints_a_line_for_each(tmp_path):
    """On a config of a few thousand parameters: every kind of run ends and tells its time."""
    config = tmp_path / "tiny.py"
    config.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "import dataclasses, jax\n"
        "from conftest import tiny_model\n"
        "jax.config.update('jax_numpy_dtype_promotion', 'standard')\n"
        "from svdp_jax import config as configs\n\n"
        "def get_config():\n"
        "    model = tiny_model()\n"
        "    model = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, blocks=2))\n"
        "    data = configs.Data(size=16, frames=2, past=1, batch=1)\n"
        "    sampling = configs.Sampling(steps=2)\n"
        "    return configs.as_flags(configs.Config(\n"
        "        'tiny', model, data=data, sampling=sampling, dtype='float32'))\n"
    )
    command = [sys.executable, "tpu_scripts/bench.py", "--config", config, "--what=forward,train,sample,image"]
    result = subprocess.run([*command, "--rounds=1"], cwd=ROOT, text=True, capture_output=True, env=os.environ)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["what"] for line in lines] == ["forward", "train", "sample", "image"]
    assert all(line["seconds"] > 0 and line["devices"] == 1 and line["mfu"] is None for line in lines)
