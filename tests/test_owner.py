"""One run at a time in a work folder: of processes, of threads that race for it, of machines that only share the files."""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from svdp_jax import files
from svdp_jax.errors import UserError
from svdp_jax.training import owner

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from pathlib import Path
from svdp_jax.training import owner, stop
stop.listen()
own = owner.Owner(Path(sys.argv[1]))
print(own.mark, flush=True)
time.sleep(600)
"""


@pytest.fixture
def holding(tmp_path):
    """A process that is at work in a folder; its mark is read when it is."""
    command = [sys.executable, "-c", HOLD, tmp_path / "work"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def owned(folder: Path):
    return contextlib.closing(owner.Owner(folder))


def test_another_process_is_named_and_its_place_taken_when_it_is_killed(holding, tmp_path, caplog):
    work = tmp_path / "work"
    with pytest.raises(UserError, match=f"The run of process {holding.pid} on .* is at work in {work}"):
        owner.Owner(work)
    holding.kill()
    holding.wait()
    with caplog.at_level("WARNING"), owned(work) as own:
        assert json.loads((work / "owner.json").read_text())["mark"] == own.mark
        (work / "kept").touch()
    assert f"process {holding.pid} on" in caplog.text and "without a word; this one goes on" in caplog.text
    assert [path.name for path in work.iterdir()] == ["kept"]


def test_a_process_that_is_told_to_end_leaves_the_folder_to_others(holding, tmp_path, caplog):
    holding.send_signal(signal.SIGTERM)
    assert holding.wait(120) == 0 and not (tmp_path / "work").exists()  # which it made, and put nothing into


def test_of_many_that_race_one_has_the_folder(tmp_path):
    """While others take it, leave it, and take its files away."""
    inside, most, refused = [], [], []

    def race(number: int) -> None:
        draw = random.Random(number)
        for _ in range(30):
            try:
                with owned(tmp_path / "a" / "work"):
                    inside.append(number)
                    time.sleep(draw.uniform(0, 0.002))
                    most.append(len(inside))
                    inside.remove(number)
            except UserError as error:
                refused.append(str(error))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(race, range(6)))
    assert set(most) == {1} and len(most) + len(refused) == 6 * 30 and len(most) > 5
    assert all(" is at work in " in words for words in refused)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_lock_whose_file_was_taken_away_is_none(tmp_path, monkeypatch):
    """Its owner ended between the opening of the file and its locking."""
    path, flock, times = tmp_path / ".lock", files.fcntl.flock, []

    def late(descriptor, how):
        if not times:
            path.unlink()
        times.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    descriptor, _ = files.locked(path)
    assert descriptor is not None and os.path.samestat(os.fstat(descriptor), path.stat()) and len(times) == 2
    os.close(descriptor)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder that a run on another machine has signed, and short times."""
    monkeypatch.setattr(owner, "GONE", 0.5)
    monkeypatch.setattr(owner, "BEAT", 0.05)
    with owned(tmp_path):
        about = json.loads((tmp_path / "owner.json").read_text())
    sign = lambda beat: (tmp_path / "owner.json").write_text(
        json.dumps(about | {"machine": "another", "host": "far", "beat": beat})
    )
    sign(0)
    return sign


def test_a_run_on_another_machine_is_known_by_its_signs_of_life(elsewhere, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "GONE", 120)  # which is not waited for
    threading.Timer(0.2, elsewhere, [1]).start()
    with pytest.raises(UserError, match="on far, last seen .* is at work in"):
        owner.Owner(tmp_path)
    assert json.loads((tmp_path / "owner.json").read_text())["host"] == "far"


def test_a_run_on_another_machine_that_gives_none_is_gone(elsewhere, tmp_path, caplog):
    with caplog.at_level("WARNING"), owned(tmp_path):
        pass
    assert "may be at work" in caplog.text and "on far" in caplog.text and "without a word" in caplog.text


def test_a_run_that_was_taken_for_gone_saves_nothing_more(elsewhere, tmp_path):
    with owned(tmp_path) as own:
        own.check()
        elsewhere(7)
        time.sleep(0.2)  # it must not sign over it
        with pytest.raises(UserError, match="on far, .* has taken .* nothing more is saved"):
            own.check()
    assert json.loads((tmp_path / "owner.json").read_text())["host"] == "far"  # nor take that away


def test_where_files_cannot_be_locked_signs_of_life_tell(elsewhere, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    (tmp_path / "owner.json").unlink()
    with owned(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} on .* is at work"):
        owner.Owner(tmp_path)
    with owned(tmp_path):
        pass


def test_a_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder, words in {
        "link": "is a link to .*nowhere, which is not there; make that folder",
        "link/work": "cannot be made",
        "file": "cannot be made",
        "file/work": "cannot be made",
        "a" * 300: "cannot be made",
    }.items():
        with pytest.raises(UserError, match=words):
            owner.Owner(tmp_path / folder)
    (tmp_path / "there").mkdir()
    (tmp_path / "good").symlink_to(tmp_path / "there")
    with owned(tmp_path / "good"):
        assert (tmp_path / "there" / "owner.json").exists()
