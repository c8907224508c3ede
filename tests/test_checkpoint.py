"""Checkpoints of a run: whole, damaged, failed, on other meshes."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import little_run
import numpy as np
import pytest
from flax import nnx

from svdp_jax import files
from svdp_jax.errors import UserError
from svdp_jax.models.svdp import SVDP
from svdp_jax.training import owner, runs
from svdp_jax.weights import checkpoint

ROOT = Path(__file__).parents[1]
CONFIG = little_run.config(keep=2)


class State(NamedTuple):
    step: jax.Array
    weights: nnx.State
    average: nnx.State
    constants: nnx.State
    optimizer: tuple


def state_at(step: int) -> State:
    """A state whose every number depends on the step."""
    _, weights, constants = nnx.split(nnx.eval_shape(lambda: SVDP(CONFIG.model, nnx.Rngs(0))), nnx.Param, ...)
    fill = lambda offset: lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) + step + offset
    parts = [jax.tree.map(fill(i), x) for i, x in enumerate((weights, weights, constants, weights))]
    return State(jnp.int32(step), *parts[:3], (parts[3], jnp.int32(step)))


def same(a, b) -> bool:
    return all((np.asarray(x) == np.asarray(y)).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@contextlib.contextmanager
def opened(work: Path, config=CONFIG):
    """The checkpoints of a run, owned as in training."""
    with contextlib.closing(owner.Owner(work)) as own, contextlib.closing(runs.Runs(own, config)) as run:
        yield run


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A work folder with steps 1, 2 and 3 saved, of which two are kept."""
    work = tmp_path_factory.mktemp("saved")
    with opened(work) as run:
        for step in (1, 2, 3):
            run.save(state_at(step), {"next_index": step}, CONFIG)
    return work


@pytest.fixture
def work(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "work"))


def resumed(work: Path, config=CONFIG) -> tuple:
    with opened(work, config) as run:
        return run.resume(state_at(0))


def test_the_newest_are_kept_and_come_back(work):
    assert [step for step, _ in checkpoint.run_checkpoints(work)] == [3, 2]
    state, data = resumed(work)
    assert same(state, state_at(3)) and data.moved_on(CONFIG.data.batch) == {"next_index": 3}


def test_parameters_load_alone(work):
    """What animate reads of an unfinished run is the average, as last saved."""
    config, model = checkpoint.load_model(work)
    assert config == CONFIG and same(nnx.state(model, nnx.Param), state_at(3).average)


def test_a_save_holds_the_state_of_its_step_though_training_goes_on(tmp_path):
    state = state_at(1)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
    with opened(tmp_path) as run:
        run.save(state, {}, CONFIG)
        for _ in range(3):
            state = step(state)
    assert same(resumed(tmp_path)[0], state_at(1))


def faults() -> list:
    return [
        pytest.param(lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), id="truncated"),
        pytest.param(lambda p: p.write_bytes(flipped(p.read_bytes())), id="flipped"),
        pytest.param(lambda p: p.unlink(), id="deleted"),
    ]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


@pytest.mark.parametrize("fault", faults())
def test_every_damaged_file_is_found_and_named_and_the_step_before_taken(work, caplog, fault):
    newest = work / "checkpoints/3"
    names = [p.relative_to(newest) for p in sorted(newest.rglob("*")) if p.is_file() and p.stat().st_size]
    assert {"data.json", "manifest.json", "config.json"} < set(map(str, names)) and len(names) > 15
    whole = Path(shutil.copytree(newest, work / "copy"))
    with opened(work) as run:
        for name in names:
            caplog.clear()
            fault(newest / name)
            with caplog.at_level(logging.WARNING):
                assert run.find_sound() == 2, name
            assert str(newest / name) in caplog.text
            assert (work / "checkpoints/3.damaged").is_dir()
            shutil.copytree(whole, newest)
    fault(newest / names[-1])
    assert same(resumed(work)[0], state_at(2))


def contents(work: Path) -> dict[str, bytes]:
    return {str(p.relative_to(work)): p.read_bytes() for p in work.rglob("*") if p.is_file()}


def emptied(work: Path) -> None:
    """A checkpoint that is as its manifest says, and holds nothing."""
    for _, path in checkpoint.run_checkpoints(work):
        shutil.rmtree(path / "rest")
        (path / "rest").mkdir()
        files.write_manifest(path)


LOST = {
    "one byte of each": lambda work: [p.write_bytes(flipped(p.read_bytes())) for p in work.glob("checkpoints/*/data.json")],
    "set aside by an earlier start": lambda work: [p.rename(f"{p}.damaged") for p in work.glob("checkpoints/*")],
    "no arrays": emptied,
    "removed": lambda work: shutil.rmtree(work / "checkpoints"),
}


WORDS = ("none of .* is whole", "were found damaged", "none of .* is whole", "metrics.jsonl tells of step 3")  # of each


@pytest.mark.parametrize("lose, words", zip(LOST.values(), WORDS, strict=True), ids=LOST)
def test_nothing_starts_again_by_itself_where_all_is_lost(work, lose, words):
    """However often it is started; nothing is touched, until it is told to begin anew."""
    (work / "metrics.jsonl").write_text('{"step": 3, "loss": 1}\n{"st')
    lose(work)
    before = contents(work)
    for _ in range(3):
        with pytest.raises(UserError, match=f"{words}.*begin anew with --restart"):
            resumed(work)
        assert contents(work) == before
    runs.set_aside(work)
    state, place = resumed(work)
    assert same(state, state_at(0)) and place is None
    there = contents(work / "before-1")
    assert there == {name: content for name, content in before.items() if name in there} and len(there) == len(before)


def test_before_the_first_save_a_run_begins_at_step_0_and_says_so(tmp_path, caplog):
    with opened(tmp_path):
        pass
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n')
    with caplog.at_level(logging.WARNING):
        assert resumed(tmp_path)[1] is None
    assert "ended at step 1, before its first checkpoint; it begins at step 0" in caplog.text


def test_data_goes_on_at_the_first_example_not_yet_seen(work, caplog):
    """24 examples were seen in batches of 8."""
    for batch, index in ((4, 6), (16, 2), (5, 5), (8, 3)):
        config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, batch=batch))
        with caplog.at_level(logging.WARNING):
            assert resumed(work, config)[1].moved_on(config.data.batch) == {"next_index": index}
        assert (f"in batches of {batch}, at example {batch * index}" in caplog.text) == (batch != 8)


def test_a_failed_save_is_said_and_never_the_latest(work, monkeypatch, caplog):
    with opened(work) as run:
        wait = run.saver.wait
        monkeypatch.setattr(run.saver, "wait", lambda: wait() or (_ for _ in ()).throw(OSError("No space left on device")))
        with caplog.at_level(logging.WARNING):
            run.save(state_at(4), {}, CONFIG)
            run.wait()
        assert "step 4 could not be saved" in caplog.text and "No space left" in caplog.text
        assert [step for step, _ in checkpoint.run_checkpoints(work)] == [3, 2]
        monkeypatch.undo()
        run.save(state_at(5), {}, CONFIG)  # the next one may succeed
    assert [step for step, _ in checkpoint.run_checkpoints(work)] == [5, 3]
    monkeypatch.setattr(checkpoint, "seal", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(UserError, match="step 6 could not be saved"), opened(work) as run:
        run.save(state_at(6), {}, CONFIG)
    assert [step for step, _ in checkpoint.run_checkpoints(work)] == [5, 3]


def test_what_does_not_fit_is_named(work):
    wanted = runs.weights_folder(state_at(0), CONFIG)
    names = list(wanted)
    wanted["extra.kernel"] = wanted.pop(names[0])
    wanted[names[1]] = jnp.zeros(3)
    with pytest.raises(UserError) as error:
        checkpoint.read_arrays(work / "checkpoints/3/params", wanted)
    for words in ("1 missing: extra.kernel", f"1 not part of it: {names[0]}", f"{names[1]} (", "instead of (3,)"):
        assert words in str(error.value)


def test_leftovers_of_a_kill_are_removed_and_files_of_others_stay(work):
    (work / "checkpoints/.4.orbax-checkpoint-tmp/params").mkdir(parents=True)
    (work / ".model.partial").mkdir()
    (work / ".gitignore").write_text("*")
    assert same(resumed(work)[0], state_at(3))
    assert sorted(p.name for p in work.glob(".*")) == [".gitignore"]
    assert not list((work / "checkpoints").glob(".*"))


WORKER = """
import jax, numpy as np, sys
from pathlib import Path
from svdp_jax import parallel, config as configs
import test_checkpoint as here

def laid(state, count, mesh):
    mesh = parallel.make_mesh(mesh, jax.devices()[:count])
    return jax.device_put(state, parallel.parameter_shardings(state, mesh))

work = Path(sys.argv[1])
state = laid(here.state_at(9), 8, configs.Mesh(data=1, fsdp=4, context=2))
for count, mesh in ((8, configs.Mesh(2, 2, 2)), (4, configs.Mesh(1, 4, 1)), (1, configs.Mesh())):
    with here.opened(work / str(count)) as run:
        run.save(state, {}, here.CONFIG)
    like = laid(here.state_at(0), count, mesh)
    with here.opened(work / str(count)) as run:
        state, _ = run.resume(like)
    assert here.same(state, here.state_at(9)), count
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(like)):
        assert a.sharding == b.sharding and a.dtype == b.dtype, count
print("equal")
"""


def test_a_run_goes_on_with_fewer_devices(tmp_path):
    """Eight simulated devices, then four, then one: every array is the same, laid out for the new mesh."""
    for count in (8, 4, 1):
        (tmp_path / str(count)).mkdir()
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
    }
    done = subprocess.run([sys.executable, "-c", WORKER, tmp_path], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr


def test_whole_files(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_whole(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        files.write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_manifest_knows_its_own_damage(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    files.write_manifest(tmp_path)
    files.verify(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"bytes": 3', '"bytes": 4'))
    with pytest.raises(UserError, match="manifest.json is damaged"):
        files.verify(tmp_path)
    entries = json.loads(manifest.read_text())
    assert set(entries) == {"x", "manifest.json"}


def test_a_state_of_another_version_is_said_with_what_to_do(work):
    """Here one whose optimizer had a part more."""
    with opened(work) as run, pytest.raises(UserError) as error:
        run.resume(state_at(0)._replace(optimizer=(state_at(0).optimizer[0],)))
    assert "not part of it: 2.1" in str(error.value) and f"with --config.start={work} in a new --workdir" in str(error.value)
