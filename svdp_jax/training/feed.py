"""Batches for training from an iterator that may meet bad records, be slow, hang, or die.

A reader that dies ends the run at once. One that is slow or hangs is said every PATIENCE
seconds, with the example that it is at, and ends the run only after LONGEST times: the disks
of a cluster stall for a minute now and then, and a run costs more than that minute.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable

import grain

from svdp_jax.errors import UserError

PATIENCE = 10.0  # seconds without a batch after which it is said
LONGEST = 30  # times that it is said before giving up
FEW, SHARE = 10, 0.02  # replaced records that are borne in any case, and as a share of all
logger = logging.getLogger(__name__)


class Reading:
    """A function from index to example that knows which examples are being read, by several threads."""

    def __init__(self, example: Callable[[int], dict]):
        self.example, self.begun = example, {}

    def __call__(self, index: int) -> dict:
        self.begun[index] = time.monotonic()
        try:
            return self.example(index)
        finally:
            self.begun.pop(index, None)

    def longest(self) -> str:
        """What has been read for the longest time, in words."""
        begun = min(self.begun.copy().items(), key=lambda item: item[1], default=None)
        if begun is None:
            return "no example is being read"
        return f"example {begun[0]} has been read for {time.monotonic() - begun[1]:.1f} s"


class Feed:
    """An iterator over batches whose `problem`s are taken out, told, counted and limited.

    `tell(event, facts)` hears of every replaced record, and of every wait. State is that of
    the iterator after the last batch that was taken. `reading`: what the iterator reads by.
    """

    def __init__(self, iterator: grain.DatasetIterator, tell: Callable, reading: Reading):
        self.iterator, self.tell, self.reading = iterator, tell, reading
        self.state = iterator.get_state()
        self.seen, self.replaced = 0, 0

    def __next__(self) -> dict:
        """Raises UserError where data does not come, or too much of it is bad."""
        batch = dict(self.fetch())
        self.state = self.iterator.get_state()
        problems = batch.pop("problem", [])
        self.seen += len(problems)
        for problem in filter(None, problems):
            self.replaced += 1
            self.tell("replaced", {"problem": str(problem)})
        if self.replaced > max(FEW, SHARE * self.seen):
            raise UserError(
                f"{self.replaced} of {self.seen} examples could not be read, the last because of "
                f"{next(filter(None, problems))}; mend or remove what events.jsonl lists."
            )
        return batch

    def fetch(self) -> dict:
        box = queue.SimpleQueue()
        # A reader that hangs must not take the run with it, so it is waited for from outside.
        threading.Thread(target=self.put_next, args=(box,), daemon=True).start()
        found = self.wait(box)
        if isinstance(found, BaseException):
            reason = f"{type(found).__name__}: {' '.join(str(found).split())[:300]}"
            raise found if isinstance(found, UserError) else UserError(f"reading data failed ({reason}).")
        return found

    def wait(self, box: queue.SimpleQueue) -> dict | BaseException:
        for times in range(1, LONGEST + 1):
            try:
                return box.get(timeout=PATIENCE)
            except queue.Empty:
                seconds, where = times * PATIENCE, self.reading.longest()
                self.tell("waiting", {"seconds": seconds, "why": where})
                logger.warning("No data for %.0f s: %s; training waits for it.", seconds, where)
        raise UserError(f"no data came for {seconds:.0f} s: {where}; see to the disk or network it lies on.")

    def put_next(self, box: queue.SimpleQueue) -> None:
        try:
            box.put(next(self.iterator))
        except BaseException as error:  # also what ends a thread without a word, such as SystemExit
            box.put(error)
