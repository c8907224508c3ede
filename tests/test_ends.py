"""How commands end when they are told to: one sentence, and nothing half-made."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = """
import sys, time
from svdp_jax.errors import say_errors
from svdp_jax.media.writer import VideoWriter
def main():
    with VideoWriter(sys.argv[1], 25):
        print("begun", flush=True)
        {work}
say_errors("animate", main)
"""


def heard() -> None:
    """In the child: Ctrl-C is heard even where these tests run in a shell's background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_where_ctrl_c_is_ignored_sigterm_is_heard(tmp_path):
    """As in the background of a shell, or below nohup."""
    line = [sys.executable, "-c", CODE.format(work="time.sleep(600)"), str(tmp_path / "z.mp4")]
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=ignore)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert errors == "animate: stopped by SIGTERM; nothing half-made is left.\n" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_ends_a_command_in_one_sentence(tmp_path, number, name):
    line = [sys.executable, "-c", CODE.format(work="time.sleep(600)"), str(tmp_path / "z.mp4")]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    assert process.stdout.readline() == "begun\n" and list(tmp_path.iterdir())
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert errors == f"animate: stopped by {name}; nothing half-made is left.\n"
    assert process.returncode == 128 + number and not list(tmp_path.iterdir())


def test_a_command_that_hears_nothing_ends_too(tmp_path):
    """As compiling is: one call that returns to Python after many minutes, and goes on where a signal comes."""
    code = CODE.format(work="wait()").replace("def main", DEAF + "def main")
    line = [sys.executable, "-c", code, str(tmp_path / "z.mp4")]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    assert process.stdout.readline() == "begun\n" and list(tmp_path.iterdir())
    assert process.stdout.readline() == "calling\n"
    time.sleep(0.5)  # into the call
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert errors == "\nanimate: stopped by SIGTERM; nothing half-made is left.\n"
    assert process.returncode == 128 + signal.SIGTERM and not list(tmp_path.iterdir())


def test_a_command_whose_libraries_do_not_let_go_ends_too(tmp_path):
    """As Beam's do, which wait for workers that were told to end before they had begun."""
    work = 'try: print("waiting", flush=True); time.sleep(600)\n        finally: time.sleep(600)'
    code = CODE.format(work=work).replace("def main", "from svdp_jax import errors\nerrors.TIDYING = 0.5\ndef main")
    line = [sys.executable, "-c", code, str(tmp_path / "z.mp4")]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    assert process.stdout.readline() == "begun\n" and list(tmp_path.iterdir())
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert errors == "\nanimate: stopped by Ctrl-C; nothing half-made is left.\n"
    assert process.returncode == 128 + signal.SIGINT and not list(tmp_path.iterdir())


# SQLite's loop runs in one call of C with Python's lock released, and hears nothing.
DEAF = """
import sqlite3
def wait():
    memory = sqlite3.connect(":memory:")
    print("calling", flush=True)
    memory.execute(
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 1e10) select sum(i) from n").fetchall()
"""
