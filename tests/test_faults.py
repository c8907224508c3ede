"""Nothing is lost: runs that are killed, stopped, fed with broken data or numbers, and go on.

The same faults many times over: `python tests/reference/soak.py`.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import little_run
import numpy as np
import pytest
from harness import MARK, ROOT, STEPS, Run, differing, events, left, marked, metrics, pair, state

from svdp_jax import train
from svdp_jax.errors import UserError
from svdp_jax.training import health, records, runs, step as training
from svdp_jax.weights import checkpoint


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

    run = Run(work).until(lambda: any(work.glob("checkpoints/.4*")))
    assert marked(str(work))
    assert run.signal(signal.SIGKILL).end() == -signal.SIGKILL  # within a save
    assert not (work / "checkpoints/4").exists()
    assert left(str(work)) == []

    run = Run(work).until_step(9).signal(signal.SIGINT)
    assert run.end() == 0 and "the same command goes on from there" in run.said()
    assert "step 2 of 16" in run.said()

    run = Run(work)
    assert run.end() == 0, run.said()
    assert differing(state(whole), state(work)) == []
    assert [line["step"] for line in metrics(work)] == list(range(1, STEPS + 1))
    assert [path.name for path in work.glob(".*")] == [] == list(work.glob("checkpoints/.*"))


def test_two_hosts_stop_together_and_one_goes_on_where_they_were(whole, tmp_path):
    work = tmp_path / "work"
    hosts = pair(work, ({"slow": 0.02}, {"slow": 0.02}))
    hosts[1].until_step(3).signal(signal.SIGTERM)
    assert [run.end() for run in hosts] == [0, 0], hosts[0].said()
    (stopped,) = events(work, "stopped")
    assert list(dict(checkpoint.run_checkpoints(work)))[0] == stopped["step"] < STEPS
    assert checkpoint.load_model(work)[0].name == "little"
    run = Run(work)
    assert run.end() == 0 and f"step {stopped['step']} of 16" in run.said()
    losses, alone = ([line["loss"] for line in metrics(folder)] for folder in (work, whole))
    assert len(losses) == STEPS and losses == pytest.approx(alone, rel=1e-4)
    assert losses[:3] == pytest.approx(alone[:3], rel=1e-5)  # of two processes; rounding has not spread yet


def test_two_hosts_end_together_when_one_is_told_to_while_they_compile(tmp_path):
    work = tmp_path / "work"
    hosts = pair(work, JAX_ENABLE_COMPILATION_CACHE="false")
    hosts[0].until(lambda: hosts[0].said().count("step 0 of") == 2)
    began = time.monotonic()
    hosts[1].signal(signal.SIGTERM)
    assert [run.end() for run in hosts] == [0, 0], hosts[0].said()
    assert time.monotonic() - began < 10 and not metrics(work)
    assert "All that was done is saved" in hosts[0].said()
    assert "Stopped, as host 1 was told to. The same command goes on" in hosts[0].said()


def test_a_reader_that_hangs_is_given_up_and_the_process_ends(tmp_path):
    """Although a thread of it never does. What was done is saved."""
    work = tmp_path / "work"
    run = Run(work, faults={"hang": 8 * 3 + 5, "patience": 0.05})
    assert run.end(60) == 2, run.said()
    assert "No data for 0 s: example 29 has been read for" in run.said()
    assert "train: no data came for 2 s: example 29 has been read for" in run.said()
    assert list(dict(checkpoint.run_checkpoints(work)))[0] == 3


NAP = """
import sys, time
from pathlib import Path
import nap
from svdp_jax import prepare
from svdp_jax.preparation import pipeline

def work(job, advance):
    Path(job).touch()
    time.sleep(600)

if __name__ == "__main__":
    jobs = [f"{sys.argv[1]}/job{number}" for number in range(4)]
    pipeline.run(pipeline.Stage("nap", nap.work, lambda _: False, lambda _: 1), jobs, prepare.local(2, 4, network=False))
"""


def test_a_preparation_that_is_killed_leaves_no_process(tmp_path):
    """Its workers are at long jobs just then."""
    pytest.importorskip("apache_beam", reason="the workers are Apache Beam's; install svdp_jax[test]")
    (tmp_path / "nap.py").write_text(NAP)
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path))), MARK: str(tmp_path)}
    with open(tmp_path / "log", "w") as log:
        command = [sys.executable, tmp_path / "nap.py", tmp_path]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    while len(list(tmp_path.glob("job*"))) < 2:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    before = marked(str(tmp_path))
    process.kill()
    process.wait()
    assert len(before) > 2
    assert left(str(tmp_path)) == []


HUGE, NOT_FINITE = 255, 0  # what the source of a disturbed example is filled with


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory) -> Path:
    """A run that meets huge numbers in step 6, and from step 8 on such that are not finite."""
    work, make_update = tmp_path_factory.mktemp("disturbed") / "work", training.make_update

    def source(config, cache):
        example = little_run.noise(config, cache)

        def marked(index):
            drawn, step = example(index), index // 8 + 1
            mark = HUGE if step == 6 else NOT_FINITE if step >= 8 else None
            return drawn | ({"source": np.full_like(drawn["source"], mark)} if mark is not None else {})

        return marked

    def broken(*arguments):
        update = make_update(*arguments)

        def disturbed(state, frozen, batch):
            filled = lambda mark: (batch["source"] == mark).all()
            bad = jnp.where(filled(HUGE), 1e4, jnp.where(filled(NOT_FINITE), jnp.nan, 0.0))
            return update(state, frozen._replace(prompt=jax.tree.map(lambda x: x + bad, frozen.prompt)), batch)

        return disturbed

    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setitem(records.SOURCES, "toy", source)
        patch.setattr(train, "make_update", broken)
        patch.setattr(health, "MOST", 4)
        patch.setattr(health, "WINDOW", 4)
        with pytest.raises(UserError, match="4 steps one after the other, the last being 11"):
            train.train(little_run.config(save_every=7), work)
    return work


def test_a_sudden_loss_is_told_with_its_step_and_examples_and_training_goes_on(disturbed):
    (spike,) = events(disturbed, "spike")
    lines = metrics(disturbed)
    assert spike["at"] == 6 and spike["examples"] == [40, 47]
    assert float(spike["loss"]) == lines[5]["loss"] and spike["usual"] == pytest.approx(
        np.mean([x["loss"] for x in lines[1:5]])
    )
    assert lines[6]["skipped"] == 0 and lines[6]["update_norm/video_last"] > 0
    assert lines[6]["loss"] < lines[5]["loss"]


def test_a_step_that_is_not_finite_changes_nothing_but_the_step(disturbed):
    """And after a number of them in a row the run ends, with the weights from before."""
    skipped = events(disturbed, "skipped")
    assert [(e["at"], e["examples"]) for e in skipped] == [(s, [8 * s - 8, 8 * s - 1]) for s in (8, 9, 10, 11)]
    assert [line["skipped"] for line in metrics(disturbed)] == 7 * [0] + 5 * [1]
    assert metrics(disturbed)[-1]["loss"] is None
    before, after = state(disturbed, 7), state(disturbed, 12)
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


def test_a_run_says_what_it_is_and_what_it_costs(whole):
    (started,), (pace,) = events(whole, "started"), events(whole, "pace")
    assert started["seed"] == 0 and started["hosts"] == 1 and started["versions"]["jax"] == jax.__version__
    assert pace["seconds_per_step"] > 0 and events(whole, "finished")
    saved = json.loads((whole / "config.json").read_text())
    assert saved["data"]["batch"] == 8 and saved["seed"] == 0
    assert {"gradient_norm/image.last", "update_norm/video_last"} < set(metrics(whole)[0])
