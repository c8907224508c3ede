"""Nothing is lost: runs that are killed, stopped, fed with broken data or numbers, and go on.

The same faults many times over: `python tests/reference/soak.py`, and `contend.py` beside it.
"""

import dataclasses
import json
import os
import shutil
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

from svdp_jax import files, train
from svdp_jax.errors import UserError
from svdp_jax.training import health, identity, journal, records, runs, step as training
from svdp_jax.weights import checkpoint, prompts


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


# A run that compiles for long, and says when it begins and ends to.
COMPILING = {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_LOG_COMPILES": "1", "XLA_FLAGS": ""}
LOWERED, COMPILED = "module conversion jit(update)", "XLA compilation of jit(update)"


def test_a_run_that_is_stopped_and_killed_ends_as_if_it_had_not_been(whole, tmp_path):
    work = tmp_path / "work"
    run = Run(work, **COMPILING).until_said(LOWERED)
    assert run.signal(signal.SIGTERM).end() == 0 and COMPILED not in run.said()
    assert "All that was done is saved" in run.said() and not metrics(work)

    run = Run(work).until(lambda: any(work.glob("checkpoints/.4*")))
    assert marked(str(work))
    assert run.signal(signal.SIGKILL).end() == -signal.SIGKILL  # within a save
    assert not (work / "checkpoints/4").exists()
    assert left(str(work)) == []

    gate = tmp_path / "gate"
    run = Run(work, faults={"gate": (8 * 10, str(gate))}).until_step(9)
    second = Run(work)
    assert second.end() == 2 and f"The run of process {run.process.pid} on" in second.said()
    run.signal(signal.SIGINT).until_said("Stopping after this step")
    gate.touch()
    assert run.end() == 0 and "the same command goes on from there" in run.said()
    assert "step 2 of 16" in run.said() and "left" in run.said() and "without a word" in run.said()

    run = Run(work)
    assert run.end() == 0, run.said()
    assert differing(state(whole), state(work)) == []
    assert [line["step"] for line in metrics(work)] == list(range(1, STEPS + 1))
    assert [path.name for path in work.glob(".*")] == [] == list(work.glob("checkpoints/.*"))


def test_two_that_contend_for_a_folder_leave_the_run_of_one(tmp_path):
    """Both at once, and with one of them killed: steps of two are never mixed."""
    command = [sys.executable, ROOT / "tests" / "reference" / "contend.py", tmp_path, "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("at work in") == 2


def test_two_hosts_stop_together_and_one_goes_on_where_they_were(whole, tmp_path):
    work = tmp_path / "work"
    gate = tmp_path / "gate"
    faults = {"gate": (8 * 8, str(gate))}
    hosts = pair(work, (faults, faults))
    hosts[1].until_step(3).signal(signal.SIGTERM).until_said("Stopping after this step")
    gate.touch()
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
    hosts = pair(work, **COMPILING)
    hosts[0].until(lambda: hosts[0].said().count(LOWERED) == 2)
    hosts[1].signal(signal.SIGTERM)
    assert [run.end() for run in hosts] == [0, 0], hosts[0].said()
    assert COMPILED not in hosts[0].said() and not metrics(work)
    assert "All that was done is saved" in hosts[0].said()
    assert "Stopped, as host 1 was told to. The same command goes on" in hosts[0].said()


def test_a_reader_that_hangs_is_given_up_and_the_process_ends(tmp_path):
    """Although a thread of it never does. What was done is saved."""
    work = tmp_path / "work"
    run = Run(work, faults={"hang": 8 * 3 + 5, "patience": 0.05})
    assert run.end() == 2, run.said()
    assert "No data for 0 s: example 29 has been read for" in run.said()
    assert "train: no data came for 2 s: example 29 has been read for" in run.said()
    assert list(dict(checkpoint.run_checkpoints(work)))[0] == 3


NAP = """
import sys, time
from pathlib import Path
import nap
from svdp_jax.preparation import pipeline

def work(job, advance):
    Path(job).touch()
    time.sleep(600)

if __name__ == "__main__":
    jobs = [f"{sys.argv[1]}/job{number}" for number in range(4)]
    pipeline.run(pipeline.Stage("nap", nap.work, lambda _: False, lambda _: 1), jobs, [], 2)
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


def test_another_run_is_refused_unless_forced(whole, tmp_path, monkeypatch, caplog):
    """What differs is said in both cases; what has no part in what is learned may differ."""
    config = little_run.config()
    other = {
        "seed": 1, "data": dataclasses.replace(config.data, batch=4, threads=2), "log_every": 5, "watch_every": 7, "keep": 9,
        "stages": (dataclasses.replace(config.stages[0], rate=1.0), *config.stages[1:]),
    }  # fmt: skip
    changed = dataclasses.replace(config, **other)
    assert identity.changes(whole, config) == []
    monkeypatch.setattr(identity, "code", lambda _: "other")
    found = [
        "config.data.batch is 4 and was 8", "config.seed is 1 and was 0", "config.stages[0].rate is 1.0 and was 0.002",
        "the code of svdp_jax is not that it was started with",
    ]  # fmt: skip
    assert identity.changes(whole, changed) == found
    with pytest.raises(UserError, match="holds another run: config.data.batch is 4 .* or begin anew with --restart"):
        train.train(changed, whole)
    monkeypatch.setattr(train, "run", lambda *_: None)
    with caplog.at_level("WARNING", logger="svdp_jax"):
        train.train(changed, whole, force=True)
    assert all(words in caplog.text for words in found)
    short = dataclasses.replace(config, stages=config.stages[:1])
    with pytest.raises(UserError, match="is at step 16, beyond the 10 of config.stages"):
        train.train(short, whole, force=True)


def test_a_run_is_begun_anew_where_that_is_said(whole, tmp_path, monkeypatch):
    work, found = tmp_path / "work", []
    shutil.copytree(whole, work)
    before = {path.name for path in work.iterdir()}
    monkeypatch.setattr(train, "run", lambda config, owner, mesh: found.append(runs.Runs(owner, config).found))
    for number in (1, 2):
        train.train(little_run.config(seed=number), work, restart=True)
    assert found == [runs.NO_STEP, runs.NO_STEP]
    assert {path.name for path in (work / "before-1").iterdir()} == before
    assert differing(state(whole), state(work / "before-1")) == []
    assert (work / "before-2" / "config.json").is_file() and not list(checkpoint.run_checkpoints(work))


@pytest.mark.parametrize("cut, lost", [(0, ""), (1, ""), (9, "what it told of steps 3 to 3 is lost")])
def test_metrics_that_were_cut_off_are_gone_on_with_and_said_where_steps_are_lost(tmp_path, caplog, cut, lost):
    """As where a machine went down; with the run's last step saved, no step is done again."""
    path, line = tmp_path / "metrics.jsonl", lambda step: json.dumps({"step": step, "loss": 1.5}) + "\n"
    path.write_text("".join(map(line, (1, 2, 3)))[: -cut or None])
    journal.Journal(tmp_path, 3, 4).close()
    with open(path, "a") as file:
        file.write(line(4))
    assert [each["step"] for each in metrics(tmp_path)] == [1, 2, *([] if lost else [3]), 4]
    assert lost in caplog.text and bool(lost) == bool(caplog.text)


def test_contents_are_compared_and_not_names(tmp_path):
    """A prompt and weights that have moved are the same, others under the same name are not."""
    folder, work = tmp_path / "there", tmp_path / "work"
    folder.mkdir()
    work.mkdir()

    def named(prompt: str, start: str):
        return little_run.config(prompt=str(folder / prompt), start=str(folder / start))

    text = np.arange(24, dtype=np.float32).reshape(3, 8)
    prompts.save_prompt(folder / "a.safetensors", text, text[0], {"prompt": "somebody"})
    prompts.save_prompt(folder / "b.safetensors", text, text[0], {"prompt": "somebody", "by": "another version"})
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "weights").write_text("weights")
        files.write_manifest(folder / name)
    identity.write(work, named("a.safetensors", "one"))
    assert identity.changes(work, named("b.safetensors", "two")) == []
    prompts.save_prompt(folder / "a.safetensors", text + 1, text[0], {"prompt": "somebody"})
    (folder / "one" / "weights").write_text("others")
    files.write_manifest(folder / "one")
    found = identity.changes(work, named("a.safetensors", "one"))
    assert found == [f"what config.{field} names is not what it was started with" for field in ("prompt", "start")]


def test_a_run_of_an_earlier_version_is_compared_by_what_it_wrote_down(tmp_path):
    identity.write(tmp_path, little_run.config())
    marks = json.loads((tmp_path / "fingerprint.json").read_text())
    for mark in ("prompt", "start", "backbone", "codec"):
        del marks[mark]
    (tmp_path / "fingerprint.json").write_text(json.dumps(marks))
    told = json.loads((tmp_path / "config.json").read_text())
    del told["watch_every"], told["flow"]["shift"]  # as fields that were added later, with what they are by default
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert identity.changes(tmp_path, little_run.config()) == []
    (tmp_path / "config.json").write_text(json.dumps(told | {"gone": 1}))
    assert identity.changes(tmp_path, little_run.config())[0] == "config.flow.shift is 3.0 and was None"
    (tmp_path / "config.json").unlink()
    assert "its config.json is missing" in identity.changes(tmp_path, little_run.config())[0]


def test_the_code_that_decides_is_followed_through_its_imports(tmp_path):
    package = tmp_path / "svdp_jax"
    shutil.copytree(Path(identity.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__", "toy_demo"))
    before = identity.code(package)

    def touched(name: str) -> bool:
        path = package / name
        content = path.read_text()
        path.write_text(content + "\n")
        after = identity.code(package)
        path.write_text(content)
        return after != before

    deciding = (
        "training/step.py",
        "models/attention.py",
        "diffusion/flow.py",
        "toy/world.py",
        "media/images.py",
        "parallel.py",
    )
    assert [name for name in deciding if not touched(name)] == []
    bystanders = (
        "training/journal.py",
        "training/owner.py",
        "config.py",
        "weights/prompts.py",
        "media/writer.py",
        "animator.py",
    )
    assert [name for name in bystanders if touched(name)] == []


def test_other_files_are_another_run(tmp_path):
    data = little_run.configs.Data(source="videos", path=str(tmp_path))
    (tmp_path / "a.mp4").write_bytes(b"one")
    before = records.identity(data)
    assert before == records.identity(data)
    (tmp_path / "a.mp4").write_bytes(b"two")  # of the same name and size
    assert before != records.identity(data)


def test_a_run_says_what_it_is_and_what_it_costs(whole):
    (started,), (pace,) = events(whole, "started"), events(whole, "pace")
    assert started["seed"] == 0 and started["hosts"] == 1 and started["versions"]["jax"] == jax.__version__
    assert pace["seconds_per_step"] > 0 and events(whole, "finished")
    saved = json.loads((whole / "config.json").read_text())
    assert saved["data"]["batch"] == 8 and saved["seed"] == 0
    assert {"gradient_norm/image.last", "update_norm/video_last"} < set(metrics(whole)[0])
