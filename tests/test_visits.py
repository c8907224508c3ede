"""What the page keeps of its visitors, without a page or a model."""

import os
import time
from pathlib import Path

import pytest

from svdp_jax.page import visits
from svdp_jax.page.visits import Given


def upload(folder: Path, name: str) -> str:
    """A file where Gradio keeps uploads, two hours old."""
    path = folder / f"digest of {name}" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    for old in (path, path.parent):
        os.utime(old, times=(time.time() - 7200,) * 2)
    return str(path)


def test_files_live_as_long_as_their_session(tmp_path):
    everyone = visits.Visits(tmp_path)
    mine, other = everyone.of("a"), everyone.of("b")
    one, shared, others, nobodys = (upload(tmp_path, name) for name in ("one", "shared", "others", "nobodys"))
    (tmp_path / "stray").touch()
    os.utime(tmp_path / "stray", (0, 0))
    mine.use(Given(one, shared)), other.use(Given(others, shared))
    everyone.of("a")
    there = lambda: {path.name for path in tmp_path.glob("*/*") if path.is_file()}
    assert there() == {"one", "shared", "others"} and not (tmp_path / "stray").exists()
    everyone.close("a")
    everyone.of("b")
    assert there() == {"one", "shared", "others"}  # the page may come back
    mine.seen -= visits.FORGOTTEN + 1
    everyone.of("b")
    assert there() == {"shared", "others"} and not mine.folder.exists()


def test_callers_who_never_leave_are_forgotten_too(tmp_path, monkeypatch):
    monkeypatch.setattr(visits, "MANY", 3)
    everyone = visits.Visits(tmp_path)
    first = everyone.of("0")
    first.seen -= visits.FORGOTTEN + 1
    for number in range(1, 5):
        everyone.of(str(number))
    assert not first.folder.exists() and len(list((tmp_path / visits.RESULTS).iterdir())) == 4


OLD = Given("a.png", "a.mp4", 2, 3, "none", "none", "a.npy")


@pytest.mark.parametrize(
    "before, now, settled",
    [
        (OLD, OLD._replace(source="b.png"), Given("b.png", "a.mp4", 0, 3, "auto", "none", "a.npy")),
        (OLD, OLD._replace(driving="b.mp4"), Given("a.png", "b.mp4", 2, 0, "none", "auto", None)),
        (OLD, OLD._replace(driving=None), Given("a.png", None, 2, 0, "none", "auto", None)),
        (OLD, OLD._replace(driving="b.mp4", landmarks="b.npy"), Given("a.png", "b.mp4", 2, 0, "none", "auto", "b.npy")),
        (OLD, OLD._replace(landmarks="b.npy"), OLD._replace(landmarks="b.npy")),
        # What was chosen first is kept for the file that comes then.
        (OLD._replace(driving=None), OLD, OLD),
    ],
)
def test_what_was_chosen_for_a_file_goes_with_it(before, now, settled):
    assert visits.settled(before, now) == settled
