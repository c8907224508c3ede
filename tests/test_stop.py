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
    print("within", flush=True)
    while not stop.asked():
        time.sleep(0.01)
    time.sleep(0.5)
    print("saved", flush=True)
"""
FOREVER = "with stop.work_to_save(): print('within', flush=True); time.sleep(600)"


@pytest.fixture
def started():
    """Starts Python on some code, listening; whatever becomes of the test, its processes end."""
    processes = []

    def start(code: str, *arguments: str) -> subprocess.Popen:
        opening = "import time; from svdp_jax.training import stop; stop.listen(); print('ready', flush=True)\n"
        command = [sys.executable, "-c", opening + code, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        return process

    yield start
    for process in processes:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_long_computation_is_ended_at_once_where_nothing_is_lost(started, number):
    process = started(BUSY)
    process.send_signal(number)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "All that was done is saved" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_is_saved_first(started, number):
    process = started(LOOP)
    assert process.stdout.readline() == "within\n"
    process.send_signal(number)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and out == "saved\n" and "Stopping after this step" in errors


def test_a_second_interrupt_ends_at_once_but_a_second_sigterm_does_not(started):
    process = started(FOREVER)
    assert process.stdout.readline() == "within\n"
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130


# What is used of JAX's coordination service, in a folder; tests/test_faults.py has the service itself.
HOST = """
import sys
from pathlib import Path

folder, host = Path(sys.argv[1]), int(sys.argv[2])

class Client:
    def key_value_set(self, key, value):
        with open(folder / "word", "x") as file:
            file.write(value)

    def key_value_try_get(self, key):
        return (folder / "word").read_text()

    def wait_at_barrier(self, key, milliseconds):
        (folder / f"met{host}").touch()
        while len(list(folder.glob("met*"))) < 2:
            time.sleep(0.01)

stop.together(Client(), host)
print("together", flush=True)
"""
FAIL = """
from svdp_jax.errors import UserError, say_errors
def fail(): raise UserError("the disk is gone.")
time.sleep(0.2)
with stop.ends_the_process():
    say_errors("train", fail)
"""
HANG = "import threading; threading.Thread(target=time.sleep, args=(600,)).start()\n"


@pytest.mark.parametrize(
    "first, second, told, status, words",
    [
        (BUSY, BUSY, [1], 0, ["Stopped, as host 1 was told to.", "All that was done is saved"]),
        (BUSY, BUSY, [0], 0, ["All that was done is saved", "Stopped, as host 0 was told to."]),
        (BUSY, BUSY, [0, 1], 0, ["Stopped", "Stopped"]),
        (FOREVER, BUSY, [1], 0, ["Stopped, as host 1 was told to.", "All that was done is saved"]),
        (BUSY, FAIL, [], 2, ["Ended, as host 1 failed: the disk is gone.", "train: the disk is gone."]),
    ],
    ids=["second told", "first told", "both told", "first within the loop", "second fails"],
)
def test_no_host_ends_alone(started, tmp_path, first, second, told, status, words):
    hosts = [started(HOST + code, str(tmp_path), str(host)) for host, code in enumerate((first, second))]
    for host in hosts:
        assert host.stdout.readline() == "together\n"
    for host in told:
        hosts[host].send_signal(signal.SIGTERM)
    for host, said in zip(hosts, words):
        _, errors = host.communicate(timeout=120)
        assert host.returncode == status and said in errors, errors


WORDS = "import sys\nwith stop.ends_the_process(): sys.exit('disk is gone')"


@pytest.mark.parametrize(
    "code, status, said",
    [(FAIL, 2, "disk is gone"), ("with stop.ends_the_process(): 1 / 0", 1, "ZeroDivisionError"), (WORDS, 1, "gone\n")],
)
def test_a_failure_ends_the_process_though_a_thread_hangs(started, code, status, said):
    _, errors = (process := started(HANG + code)).communicate(timeout=120)
    assert process.returncode == status and said in errors
    assert ("Traceback" in errors) == (said == "ZeroDivisionError")
