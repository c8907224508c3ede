"""Nothing a file holds is executed, and nothing outside the named files is opened or written."""

import ast
import json
import os
import re
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import fuzz
import numpy as np
import pytest

from convert.__main__ import main as convert
from svdp_jax.errors import UserError
from svdp_jax.faces import landmarks
from svdp_jax.media import images, video
from svdp_jax.media.images import read_image
from svdp_jax.toy import footage, person
from svdp_jax.training import records
from svdp_jax.weights import prompts

ROOT = Path(__file__).parents[1]
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "input"}
BANNED_METHODS = {
    ("torch", "load"), ("joblib", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("os", "system"), ("os", "popen"),
    ("pickle", "load"), ("pickle", "loads"), ("marshal", "loads"), ("pandas", "read_pickle"),
}  # fmt: skip
BANNED_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "code", "runpy"}
RUN_BY_NATURE = {"svdp_jax/ablate.py": ["runpy"]}  # a study is a config, and a config is a program that its user wrote
BANNED_KEYWORDS = {"shell", "allow_pickle", "trust_remote_code"}  # other than False


def dangers(source: str) -> list[str]:
    """What in a program could run something that a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in BANNED_MODULES]
        if isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            found += [module] if module in BANNED_MODULES else []
            found += [a.name for a in node.names if (module, a.name) in BANNED_METHODS]
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in BANNED_CALLS:
            found.append(called.id)
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            name = (called.value.id, called.attr)
            found += [".".join(name)] if name in BANNED_METHODS else []
        for keyword in node.keywords:
            off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            found += [keyword.arg] if keyword.arg in BANNED_KEYWORDS and not off else []
    return found


FOLDERS = ("svdp_jax", "convert", "configs", "tpu_scripts")


def programs() -> dict[str, str]:
    """All that is not a test, cells of notebooks too, by path."""
    found = {str(p): p.read_text() for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")}
    for path in (ROOT / "tpu_scripts").glob("*.ipynb"):
        cells = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        lines = [line for cell in cells for line in "".join(cell).splitlines()]
        found[str(path)] = "\n".join(re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in lines)
    return found


def test_no_program_runs_what_a_file_says():
    sources = programs()
    for folder in FOLDERS:
        assert any(f"/{folder}/" in path for path in sources), folder
    found = {path.removeprefix(f"{ROOT}/"): dangers(source) for path, source in sources.items()}
    assert {path: names for path, names in found.items() if names} == RUN_BY_NATURE


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from torch import load", "torch.load(x)", "np.load(x, allow_pickle=True)", "exec(x)", "eval(x)",
     "subprocess.run(x, shell=True)", "os.system(x)", "f(trust_remote_code=y)"],
)  # fmt: skip
def test_dangers_are_seen(source):
    assert dangers(source)
    assert not dangers("np.load(x, allow_pickle=False); re.compile(x); model.eval()")


class Run:
    """Whose unpickling would leave a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch {self.mark}",))


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A folder with files of every kind that try to run a command, open another file or leave the folder."""
    import pickle

    folder, mark = tmp_path / "hostile", tmp_path / "ran"
    folder.mkdir()
    program = pickle.dumps(Run(mark))
    for name in ("model.pth", "model.pt", "model.ckpt", "model.bin", "a.safetensors", "a.onnx", "a.mp4", "a.png"):
        (folder / name).write_bytes(program)
    with zipfile.ZipFile(folder / "archive.pth", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("../../escaped", b"out")
        archive.writestr("archive/version", b"3")
    np.savez(folder / "a.npz", x=np.array([Run(mark)], object), allow_pickle=True)
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(fuzz.originals()["mp4"])
    for suffix in ("ffconcat", "mp4", "mkv", "txt"):
        (folder / f"list.{suffix}").write_text(f"ffconcat version 1.0\nfile '{secret}'\nfile 'http://127.0.0.1:9/x'\n")
    (folder / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    (folder / "list.sdp").write_text("v=0\nm=video 9 RTP/AVP 96\nc=IN IP4 127.0.0.1\na=rtpmap:96 H264/90000\n")
    (folder / "drawing.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{secret}"/></svg>')
    (folder / "elsewhere.onnx").write_bytes(onnx_naming("../secret.mp4"))
    for name in ("../escape.kernel", "/etc/escape", "a/../../b", "x\0y"):
        header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        path = folder / f"names{len(list(folder.iterdir()))}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return folder


def field(number: int, content: bytes | int) -> bytes:
    """A field of a protocol buffer of fewer than 128 bytes."""
    key = number << 3
    return bytes([key, content]) if isinstance(content, int) else bytes([key | 2, len(content)]) + content


def onnx_naming(elsewhere: str) -> bytes:
    """A model whose only weight lies in another file."""
    entry = field(1, b"location") + field(2, elsewhere.encode())
    weight = field(1, 1) + field(2, 1) + field(8, b"w") + field(13, entry) + field(14, 1)
    return field(7, field(5, weight))


def outside(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in tmp_path.iterdir())


def test_hostile_files_are_refused_by_every_reader(hostile, tmp_path, capsys):
    before = outside(tmp_path)
    for path in sorted(hostile.iterdir()):
        for read in (video.probe, lambda p: next(video.read_frames(p)), read_image, prompts.load_prompt):
            with pytest.raises(UserError) as error:
                read(path)
            assert str(path) in str(error.value), path
        for network in ("sd35", "vae", "arcface", "syncnet", "lpips_alex", "liveportrait"):
            assert convert([network, str(path), str(tmp_path / "out")]) == 2, path
            (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("convert: ")]
            assert path.name in said, said
    assert outside(tmp_path) == before  # no mark of a command, nothing that left its folder, no partial output


def test_arrays_of_objects_are_refused_by_every_reader(tmp_path):
    """What NumPy would unpickle if it were asked to: crops, landmarks, and truths of the toy world."""
    mark = tmp_path / "ran"
    hostile = np.array([Run(mark)], object)
    np.save(tmp_path / "a.npy", hostile)
    np.savez(tmp_path / "a.toy.npz", **{f"identity.{person.Identity._fields[0]}": hostile})
    assert not records.readable(tmp_path / "a.npy")
    with pytest.raises(UserError, match="a.npy: no landmarks"):
        landmarks.opened(tmp_path / "a.npy", 1)
    with pytest.raises(UserError, match="no truth of the toy world"):
        footage.load(tmp_path / "a.mp4")
    assert not mark.exists()


def test_a_file_that_a_container_names_is_never_opened(hostile, tmp_path):
    """Read in a process of its own whose every opened file is listed."""
    code = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(event) if event.startswith("socket") else None)
from svdp_jax.faces import landmarks; from svdp_jax.media import video; from svdp_jax.toy import footage, person
from svdp_jax.training import records
from svdp_jax.errors import UserError
for path in sys.argv[2:]:
    try:
        list(video.read_frames(path))
        print("read", path)
    except UserError:
        pass
print(opened)
"""
    secret = tmp_path / "secret.mp4"
    secret.unlink()
    os.mkfifo(secret)  # whoever opens it waits for ever
    paths = [str(p) for p in hostile.glob("list.*")]
    done = subprocess.run([sys.executable, "-c", code, "x", *paths], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_a_picture_or_video_larger_than_memory_is_refused_from_its_header(tmp_path):
    bomb = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + bytes(4))
    with pytest.raises(UserError, match="over the limit"):
        read_image(bomb)
    huge = tmp_path / "huge.png"
    with open(huge, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", 64, 64))
        file.truncate(8 << 30)  # a hole, without a byte on disk
    with pytest.raises(UserError, match="larger than a picture"):
        read_image(huge)


def test_mutated_videos_and_pictures_are_read_or_refused():
    """The first ones of `python tests/fuzz.py 1000`."""
    result = fuzz.fuzz(250)
    assert result["wrong"] == [] and result["files"] == 250
    assert result["read"] > 50 and result["refused"] > 50


def test_fuzzing_sees_what_goes_wrong(monkeypatch, tmp_path):
    (tmp_path / "a.png").write_bytes(fuzz.originals()["png"])
    assert fuzz.read(tmp_path / "a.png") == "read"
    monkeypatch.setattr(images, "check_regular_file", lambda _: 1 / 0)
    assert fuzz.read(tmp_path / "a.png").startswith("ZeroDivisionError")


def test_reading_warns_in_words_and_raises_in_one_sentence(tmp_path):
    (tmp_path / "a.mkv").write_bytes(fuzz.originals()["mkv"][:-200])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = list(video.read_frames(tmp_path / "a.mkv"))
    assert frames and all("\n" not in str(w.message) for w in caught)
