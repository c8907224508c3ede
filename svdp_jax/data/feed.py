"""Batches for training from an iterator that may meet bad records, be slow, or die."""

import logging
import queue
import threading
from collections.abc import Iterator
from typing import Callable

from svdp_jax.errors import UserError

PATIENCE = 10.0  # seconds without a batch after which it is said
LONGEST = 30  # times that it is said before giving up
FEW, SHARE = 10, 0.02  # replaced records that are borne in any case, and as a share of all
logger = logging.getLogger(__name__)


class Feed:
    """An iterator over batches whose `problem`s are taken out, told, counted and limited.

    `tell(event, facts)` hears of every replaced record. State is that of the iterator
    after the last batch that was taken.
    """

    def __init__(self, iterator: Iterator[dict], tell: Callable):
        self.iterator, self.tell = iterator, tell
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
        for times in range(1, LONGEST + 1):
            try:
                found = box.get(timeout=PATIENCE)
                break
            except queue.Empty:
                logger.warning("No data for %.0f s; training waits for it.", times * PATIENCE)
        else:
            raise UserError(f"no data came for {LONGEST * PATIENCE:.0f} s; see to the disk or network it lies on.")
        if isinstance(found, Exception):
            reason = f"{type(found).__name__}: {' '.join(str(found).split())[:300]}"
            raise found if isinstance(found, UserError) else UserError(f"reading data failed ({reason}).")
        return found

    def put_next(self, box: queue.SimpleQueue) -> None:
        try:
            box.put(next(self.iterator))
        except Exception as error:
            box.put(error)
