"""Signals, to a process that only sleeps or computes: all but the training itself."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# One call without an instruction of Python's in between, as compiling is.
BUSY = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 30)"
LOOP = """
with stop.work_to_save():
    while not stop.asked():
        time.sleep(0.01)
    time.sleep(0.5)
    print("saved", flush=True)
"""
FOREVER = "with stop.work_to_save(): time.sleep(60)"


def started(code: str) -> subprocess.Popen:
    opening = "import time; from svdp_jax import stop; stop.listen(); print('ready', flush=True)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", opening + code], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_long_computation_is_ended_at_once_where_nothing_is_lost(number):
    process = started(BUSY)
    process.send_signal(number)
    out, errors = process.communicate(timeout=10)
    assert process.returncode == 0 and "All that was done is saved" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_is_saved_first(number):
    process = started(LOOP)
    process.send_signal(number)
    out, errors = process.communicate(timeout=10)
    assert process.returncode == 0 and out == "saved\n" and "Stopping after this step" in errors


def test_a_second_interrupt_ends_at_once_but_a_second_sigterm_does_not():
    process = started(FOREVER)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
