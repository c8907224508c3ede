"""What a user gives is never replaced by what is made of it."""

import os
from pathlib import Path

import numpy as np
import pytest

from svdp_jax import animate, prepare
from svdp_jax.animator import Animator
from svdp_jax.errors import UserError
from svdp_jax.files import apart


@pytest.mark.parametrize("name", ["a.mp4", "link.mp4", "hard.mp4", "folder/../a.mp4", "."])
def test_an_output_that_is_an_input_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"the user's")
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    os.link(tmp_path / "a.mp4", tmp_path / "hard.mp4")
    with pytest.raises(UserError, match="would replace the input"):
        apart(tmp_path / name, None, tmp_path / "a.mp4")
    apart(tmp_path / "b.mp4", tmp_path / "a.mp4", tmp_path)


@pytest.mark.parametrize("given", ["--output=clip.mp4", "--guidance=inf", "--guidance=nan", "--seed=99999999999999999999"])
def test_animate_refuses_in_one_sentence(tmp_path, monkeypatch, capsys, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"the user's")
    extra = ["--guidance", given.split("=")[1], "1", "1"] if "guidance" in given else [given]
    arguments = ["animate", "--source", "a.png", "--driving", "./clip.mp4", "--output", "o.mp4", *extra]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as left:
        animate.main()
    assert left.value.code == 2 and (tmp_path / "clip.mp4").read_bytes() == b"the user's"
    said = capsys.readouterr().err
    assert ("would replace" if "output" in given else "is not between") in said


@pytest.mark.parametrize("role", ["source", "driving", "landmarks"])
def test_the_library_replaces_nothing_either(tmp_path, role):
    given = {"source": np.zeros((64, 64, 3), np.uint8), "driving": "clip.mp4", role: tmp_path / "mine.mp4"}
    (tmp_path / "mine.mp4").write_bytes(b"the user's")
    with pytest.raises(UserError, match="would replace the input"):
        Animator.load().save(tmp_path / "mine.mp4", **given)
    assert (tmp_path / "mine.mp4").read_bytes() == b"the user's"


@pytest.mark.parametrize("out", ["films", "films/a.mp4", "other/../films", "old"])
def test_prepare_makes_nothing_where_the_videos_are(tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    for path in ("films/a.mp4", "old/crops/b.mp4"):
        Path(path).parent.mkdir(parents=True)
        Path(path).write_bytes(b"the user's")
    with pytest.raises(SystemExit) as left:
        prepare.main(["old/crops" if out == "old" else "films", out, "--pairs=self", "--codec=pixels:4", "--size=64"])
    said = capsys.readouterr().err
    assert left.value.code == 2 and any(words in said for words in ("is a file", "where the videos are", "would replace"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.mp4", "b.mp4", "crops", "films", "old"]


@pytest.mark.parametrize("name", ["report.html", "settings.json", "triplets/mine.mp4"])
def test_prepare_replaces_nothing_in_a_folder_of_other_things(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    for path in ("films/a.mp4", f"work/{name}"):
        Path(path).parent.mkdir(parents=True)
        Path(path).write_bytes(b'{"the": "user\'s"}')
    with pytest.raises(SystemExit) as left:
        prepare.main(["films", "work", "--pairs=self", "--codec=pixels:4", "--size=64"])
    assert left.value.code == 2 and "no preparation is; name a new folder" in capsys.readouterr().err
    assert Path("work", name).read_bytes() == b'{"the": "user\'s"}' and len(list(Path("work").iterdir())) == 1


def test_prepare_replaces_no_list_or_landmarks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    for given in ("--list=work/report.html", "--landmarks=files:work/masks/mine"):
        with pytest.raises(SystemExit):
            prepare.main(["films", "work", "--pairs=self", "--codec=pixels:4", given])
        assert "would replace the input" in capsys.readouterr().err
