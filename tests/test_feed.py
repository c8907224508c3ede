"""Batches from data that is broken, slow or dead."""

import threading

import numpy as np
import pytest

import little_run
from svdp_jax.data import feed, records
from svdp_jax.errors import UserError

from conftest import training_data


@pytest.fixture(autouse=True)
def noise(monkeypatch):
    monkeypatch.setitem(records.SOURCES, "toy", little_run.noise)


@pytest.fixture
def told() -> list:
    return []


def fed(told, tmp_path, monkeypatch, **faults) -> feed.Feed:
    monkeypatch.setattr(little_run, "FAULTS", faults)
    data = iter(training_data(little_run.config(), tmp_path, list(range(8))))
    return feed.Feed(data, lambda event, facts: told.append(facts["problem"]))


def test_a_bad_example_is_replaced_by_the_next_one_counted_and_listed(told, tmp_path, monkeypatch):
    good = next(fed(told, tmp_path, monkeypatch))
    assert not told
    broken = fed(told, tmp_path, monkeypatch, bad=[3, 4])
    batch = next(broken)
    assert set(batch) == {"source", "past", "target", "driving"}
    for name, part in batch.items():
        assert (part[[0, 1, 2, 5, 6, 7]] == good[name][[0, 1, 2, 5, 6, 7]]).all()
        assert (part[3] == good[name][5]).all() and (part[4] == good[name][5]).all()
    assert broken.replaced == 2 and len(told) == 2
    assert "example 3: OSError clip 3 is broken; example 4" in told[0] and "example 4" in told[1]
    again = next(fed(told, tmp_path, monkeypatch, bad=[3, 4]))
    assert all((batch[name] == again[name]).all() for name in batch)


def test_too_many_bad_examples_end_the_run(told, tmp_path, monkeypatch):
    broken = fed(told, tmp_path, monkeypatch, bad=list(range(1, 400, 4)))
    with pytest.raises(UserError, match="12 of 48 examples could not be read.*events.jsonl"):
        for _ in range(8):
            next(broken)
    assert len(told) == 12


def test_a_few_bad_examples_are_borne(told, tmp_path, monkeypatch):
    some = fed(told, tmp_path, monkeypatch, bad=list(range(1, 400, 80)))
    for _ in range(50):
        next(some)
    assert some.replaced == 5


def test_the_state_is_that_after_the_last_batch_taken(told, tmp_path, monkeypatch):
    first = fed(told, tmp_path, monkeypatch)
    next(first)
    second, state = next(first), first.state
    data = iter(training_data(little_run.config(), tmp_path, list(range(8))))
    data.set_state(state)
    third, again = next(first), next(feed.Feed(data, print))
    assert all((third[name] == again[name]).all() for name in third)
    assert (second["target"] != third["target"]).any()


class Broken:
    """An iterator whose reader waits for what never comes, or dies."""

    def __init__(self, error=None):
        self.error = error

    def get_state(self):
        return {}

    def __next__(self):
        if self.error:
            raise self.error
        threading.Event().wait()


def test_a_reader_that_hangs_is_said_and_given_up(monkeypatch, caplog):
    assert feed.PATIENCE <= 10
    monkeypatch.setattr(feed, "PATIENCE", 0.05)
    monkeypatch.setattr(feed, "LONGEST", 3)
    with pytest.raises(UserError, match="no data came for"):
        next(feed.Feed(Broken(), print))
    assert caplog.text.count("training waits for it") == 3


def test_a_reader_that_dies_is_an_error_at_once():
    with pytest.raises(UserError, match=r"reading data failed \(RuntimeError: worker 3 was killed\)"):
        next(feed.Feed(Broken(RuntimeError("worker 3 was killed")), print))


def test_a_damaged_cache_is_made_again(tmp_path):
    path = tmp_path / "a.npy"
    assert not records.readable(path)
    np.save(path, np.zeros((4, 2)))
    assert records.readable(path)
    path.write_bytes(path.read_bytes()[:-8])
    assert not records.readable(path)
