"""Batches from data that is broken, slow or dead."""

import threading

import little_run
import numpy as np
import pytest

from svdp_jax.errors import UserError
from svdp_jax.training import feed, records


@pytest.fixture(autouse=True)
def noise(monkeypatch):
    monkeypatch.setitem(records.SOURCES, "toy", little_run.noise)


@pytest.fixture
def told() -> list:
    return []


def fed(told, tmp_path, monkeypatch, **faults) -> feed.Feed:
    monkeypatch.setattr(little_run, "FAULTS", faults)
    config = little_run.config()
    reading = feed.Reading(records.examples(config, tmp_path))
    data = iter(records.batches(config, reading, list(range(8))))
    return feed.Feed(data, lambda event, facts: told.append(facts["problem" if event == "replaced" else "why"]), reading)


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
    other = fed(told, tmp_path, monkeypatch)
    other.iterator.set_state(state)
    third, again = next(first), next(other)
    assert all((third[name] == again[name]).all() for name in third)
    assert (second["target"] != third["target"]).any()


def waiting(event: threading.Event, at: int, monkeypatch) -> None:
    """Lets the reader of one example wait for what comes with the event."""
    noise = little_run.noise

    def source(config, cache):
        example = noise(config, cache)
        return lambda index: (index == at and event.wait()) or example(index)

    monkeypatch.setitem(records.SOURCES, "toy", source)


def test_a_reader_that_hangs_is_said_with_its_example_and_given_up(told, tmp_path, monkeypatch, caplog):
    assert feed.PATIENCE <= 10 < 60 <= feed.PATIENCE * feed.LONGEST  # a disk may stall for a minute
    never = threading.Event()
    waiting(never, 11, monkeypatch)
    hangs = fed(told, tmp_path, monkeypatch)
    next(hangs)
    monkeypatch.setattr(feed, "PATIENCE", 0.2)
    monkeypatch.setattr(feed, "LONGEST", 3)
    try:
        with pytest.raises(UserError, match=r"no data came for 1 s: example 11 has been read for \d.*disk or network"):
            next(hangs)
    finally:
        never.set()  # its thread would keep the tests from ending
    assert caplog.text.count("example 11 has been read for") == 3 == len(told)


def test_a_reader_that_is_slow_is_said_and_waited_for(told, tmp_path, monkeypatch, caplog):
    late = threading.Event()
    waiting(late, 3, monkeypatch)
    monkeypatch.setattr(feed, "PATIENCE", 0.2)
    threading.Timer(0.5, late.set).start()
    assert next(fed(told, tmp_path, monkeypatch))["target"].shape[0] == 8
    assert "No data for 0 s: example 3 has been read for" in caplog.text


def test_a_reader_that_dies_is_an_error_at_once(told, tmp_path, monkeypatch, caplog):
    """Also where it ends its thread without a word to anybody."""
    with pytest.raises(UserError, match=r"reading data failed \(SystemExit: this reader is gone\)"):
        next(fed(told, tmp_path, monkeypatch, quit=5))
    assert "No data" not in caplog.text  # nobody waited for it


def test_a_damaged_cache_is_made_again(tmp_path):
    path = tmp_path / "a.npy"
    assert not records.readable(path)
    np.save(path, np.zeros((4, 2)))
    assert records.readable(path)
    path.write_bytes(path.read_bytes()[:-8])
    assert not records.readable(path)
