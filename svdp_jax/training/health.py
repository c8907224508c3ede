"""Watches the numbers of a run: steps skipped for what is not finite, and sudden losses."""

from collections import deque

import jax
import numpy as np

from svdp_jax.training.journal import Journal

MOST = 10  # steps skipped one after the other, at which a run ends
WINDOW = 100  # steps whose losses are the usual ones
SPIKE = 6.0  # deviations above the mean that are out of the ordinary


class Health:
    """Judges every step one step late, so that the device need not wait for the judgement."""

    def __init__(self, batch: int, before: int, journal: Journal):
        """before: the steps before the first batch of so many examples; below 0, the batches before step 1."""
        self.batch, self.before, self.journal = batch, before, journal
        self.waiting, self.in_a_row, self.skipped = None, 0, 0
        self.losses = deque(maxlen=WINDOW)

    def hopeless(self, step: int, metrics: dict) -> str:
        """Takes the metrics of a step; returns why the run cannot go on, or ""."""
        judged, self.waiting = self.waiting, (step, metrics)
        if judged is None:
            return ""
        step, loss, skipped = judged[0], *jax.device_get((judged[1]["loss"], judged[1]["skipped"]))
        number = step - self.before
        examples = [(number - 1) * self.batch, number * self.batch - 1]
        facts = {"at": step, "loss": repr(float(loss)), "examples": examples}
        if skipped:
            return self.skip(facts)
        self.in_a_row = 0
        if len(self.losses) == WINDOW and loss > np.mean(self.losses) + SPIKE * np.std(self.losses):
            self.spike(facts, float(loss), float(np.mean(self.losses)))
        self.losses.append(float(loss))
        return ""

    def spike(self, facts: dict, loss: float, usual: float) -> None:
        first, last = facts["examples"]
        words = f"The loss of step {facts['at']}, on examples {first} to {last}, is {loss:.3g}; usually it is {usual:.3g}."
        self.journal.tell("spike", facts | {"usual": usual}, words)

    def skip(self, facts: dict) -> str:
        self.in_a_row += 1
        self.skipped += 1
        first, last = facts["examples"]
        words = f"Step {facts['at']} is skipped: loss or gradient is not finite, on examples {first} to {last}."
        self.journal.tell("skipped", facts, words)
        if self.in_a_row < MOST:
            return ""
        return (
            f"{MOST} steps one after the other, the last being {facts['at']}, had a loss or gradient that is not "
            "finite. The weights are those from before and saved; lower the learning rate, see to the examples that "
            "events.jsonl lists, or go back to an earlier step by removing the later ones from checkpoints/."
        )
