"""Nothing is lost: runs that are killed, stopped, fed with broken data or numbers, and go on.

The same faults many times over: `python tests/reference/soak.py`.
"""

import dataclasses
import json
import os
import signal
import socket
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import little_run
from harness import STEPS, Run, differing, events, metrics, state
from svdp_jax import checkpoint, health, runs, train
from svdp_jax.data import records
from svdp_jax.errors import UserError


@pytest.fixture(autouse=True)
def noise(monkeypatch):
    monkeypatch.setitem(records.SOURCES, "toy", little_run.noise)
    monkeypatch.setattr(little_run, "FAULTS", {})
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The work folder of an undisturbed run."""
    work = tmp_path_factory.mktemp("whole") / "work"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setitem(records.SOURCES, "toy", little_run.noise)
        train.train(little_run.config(), work)
    return work


def test_a_run_that_is_stopped_and_killed_ends_as_if_it_had_not_been(whole, tmp_path):
    work = tmp_path / "work"
    run = Run(work, JAX_ENABLE_COMPILATION_CACHE="false").until_said("step 0 of")
    time.sleep(1)  # it traces, then compiles
    began = time.monotonic()
    assert run.signal(signal.SIGTERM).end() == 0 and time.monotonic() - began < 10
    assert "All that was done is saved" in run.said() and not metrics(work)

    run = Run(work).until(lambda: any(work.glob("checkpoints/.8*")))
    assert run.signal(signal.SIGKILL).end() == -signal.SIGKILL  # within a save
    assert not (work / "checkpoints/8").exists()

    run = Run(work).until_step(16).signal(signal.SIGINT)
    assert run.end() == 0 and "the same command goes on from there" in run.said()
    assert "step 6 of 30" in run.said()

    run = Run(work)
    assert run.end() == 0, run.said()
    assert differing(state(whole), state(work)) == []
    assert [line["step"] for line in metrics(work)] == list(range(1, STEPS + 1))
    assert [path.name for path in work.glob(".*")] == [] == list(work.glob("checkpoints/.*"))


def test_two_hosts_stop_together_when_one_is_told_to(tmp_path):
    work = tmp_path / "work"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    shared["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # they compile side by side
    pair = [Run(work, faults={"slow": 0.02}, **shared, JAX_PROCESS_ID=str(i)) for i in range(2)]
    pair[1].until_step(3).signal(signal.SIGTERM)
    assert [run.end() for run in pair] == [0, 0], pair[0].said()
    (stopped,) = events(work, "stopped")
    assert list(dict(checkpoint.run_checkpoints(work)))[0] == stopped["step"] < STEPS
    assert checkpoint.load_model(work)[0].name == "little"


def test_a_step_that_is_not_finite_changes_nothing_but_the_step(tmp_path, monkeypatch):
    """And after a number of them in a row the run ends, with the weights from before."""
    make_update, first = train.make_update, 8 * 7  # the first example of step 8

    def noise(config, cache):
        example = little_run.noise(config, cache)
        mark = lambda index: {"source": np.full_like(example(index)["source"], 255)}
        return lambda index: example(index) | (mark(index) if index >= first else {})

    def broken(*arguments):
        update = make_update(*arguments)

        def with_nan(state, frozen, batch):
            bad = jnp.where((batch["source"] == 255).all(), jnp.nan, 0.0)
            return update(state, frozen._replace(prompt=jax.tree.map(lambda x: x + bad, frozen.prompt)), batch)

        return with_nan

    monkeypatch.setitem(records.SOURCES, "toy", noise)
    monkeypatch.setattr(train, "make_update", broken)
    monkeypatch.setattr(health, "MOST", 4)
    with pytest.raises(UserError, match="4 steps one after the other, the last being 11"):
        train.train(little_run.config(save_every=7), tmp_path)
    skipped = events(tmp_path, "skipped")
    assert [(e["at"], e["examples"]) for e in skipped] == [(s, [8 * s - 8, 8 * s - 1]) for s in (8, 9, 10, 11)]
    assert [line["skipped"] for line in metrics(tmp_path)] == 7 * [0] + 5 * [1]
    assert metrics(tmp_path)[-1]["loss"] is None
    before, after = state(tmp_path, 7), state(tmp_path, 12)
    assert differing(before, after) == ["rest/0"]  # the step


def test_failing_data_ends_the_run_with_all_that_was_done(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(little_run, "FAULTS", {"die": 8 * 5})
    with pytest.raises(UserError, match="16 examples one after the other cannot be read.*the disk is gone"):
        train.train(little_run.config(), tmp_path)
    assert list(dict(checkpoint.run_checkpoints(tmp_path)))[0] == 5
    assert metrics(tmp_path)[4]["loss"] == metrics(whole)[4]["loss"]


def test_another_run_is_refused_unless_forced(whole, tmp_path, monkeypatch):
    config = little_run.config()
    assert runs.changes(whole, config) == []
    other = {"seed": 1, "log_every": 5, "data": dataclasses.replace(config.data, batch=4, threads=2)}
    monkeypatch.setattr(runs, "code", lambda _: "other")
    found = "\n".join(runs.changes(whole, dataclasses.replace(config, **other)))
    assert "config.seed is 1 and was 0" in found and "config.data.batch is 4 and was 8" in found
    assert "code of svdp_jax is not" in found and found.count("--force-resume") == 3
    with pytest.raises(UserError, match="3 problems, and nothing was started"):
        train.train(dataclasses.replace(config, **other), whole)
    monkeypatch.setattr(train, "run", lambda *_: None)
    train.train(dataclasses.replace(config, **other), whole, force=True)


def test_other_files_are_another_run(tmp_path):
    data = little_run.configs.Data(source="videos", path=str(tmp_path))
    (tmp_path / "a.mp4").write_bytes(b"one")
    before = records.identity(data)
    assert before == records.identity(data)
    (tmp_path / "a.mp4").write_bytes(b"three")
    assert before != records.identity(data)


def test_no_process_is_left_behind(whole):
    """Data is read by threads, so a trainer that is killed has no children."""
    ours = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not ours.exists():
        pytest.skip("this system does not list child processes")
    children = ours.read_text().split()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children if Path(f"/proc/{pid}").exists()]
    assert not [line for line in commands if b"svdp_jax.train" in line]


def test_a_run_says_what_it_is_and_what_it_costs(whole):
    (started,), (pace,) = events(whole, "started"), events(whole, "pace")
    assert started["seed"] == 0 and started["hosts"] == 1 and started["versions"]["jax"] == jax.__version__
    assert pace["seconds_per_step"] > 0 and events(whole, "finished")
    saved = json.loads((whole / "config.json").read_text())
    assert saved["data"]["batch"] == 8 and saved["seed"] == 0
    assert {"gradient_norm/image.last", "update_norm/video_last"} < set(metrics(whole)[0])
