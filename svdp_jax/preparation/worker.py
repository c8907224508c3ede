"""A process that does jobs for Beam, which starts it: python -m svdp_jax.preparation.worker PARENT

It is gone when its parent is, in the middle of a job. One of Beam's own works on until it finds that nobody answers,
which may be after the next command has begun there, and prints what each of its threads was at.
"""

import logging
import os
import signal
import sys
import threading
import time

EVERY = 0.1  # seconds between looks


def end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv[1]),), daemon=True).start()
    logging.getLogger().addHandler(logging.NullHandler())  # Beam hands to the parent what is logged
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
