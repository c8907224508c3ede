"""Names that begin with gs://, against a server that stands in for Google's: what is read, worked in, fought over, lost."""

import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import tiny_model
from harness import ROOT, STEPS, Run, metrics

from convert import __main__ as convert
from svdp_jax import ablate, animate, config as configs, draw, evaluate, prepare, train
from svdp_jax.buckets import mirror, storage
from svdp_jax.buckets.mirror import mirrored
from svdp_jax.errors import UserError
from svdp_jax.files import write_manifest
from svdp_jax.toy import footage
from svdp_jax.training import identity, records
from svdp_jax.weights import adapter, checkpoint, shipped
from svdp_jax.weights.prompts import save_prompt

gcp = pytest.importorskip("gcp_storage_emulator.server")


@pytest.fixture(scope="module")
def server():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    running = gcp.create_server("localhost", port, in_memory=True, default_bucket="bucket")
    running.start()
    yield f"http://localhost:{port}"
    running.stop()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch, request):
    """A folder of this test's own in the bucket, and an empty cache."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server)
    monkeypatch.setenv("SVDP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "BEAT", 0.05)
    monkeypatch.setattr(mirror, "GONE", 0.3)
    storage.client.cache_clear(), storage.brought.cache_clear()
    yield f"gs://bucket/{request.node.name}"
    storage.client.cache_clear(), storage.brought.cache_clear()


def again() -> None:
    """As another process would begin."""
    storage.brought.cache_clear()


def elsewhere(monkeypatch, tmp_path, name: str = "elsewhere") -> None:
    """As another machine would begin: with nothing in its cache."""
    monkeypatch.setenv("SVDP_CACHE", str(tmp_path / name))
    again()


def objects(place: str) -> dict[str, bytes]:
    """All that lies below a place, by name."""
    found = storage.address(place)
    blobs = storage.client().list_blobs(found.bucket, prefix=f"{found.name}/")
    return {blob.name.removeprefix(f"{found.name}/"): blob.download_as_bytes() for blob in blobs}


def put(place: str, **contents: bytes) -> None:
    found = storage.address(place)
    for name, content in contents.items():
        path = f"{found.name}/{name.replace('__', '/').replace('_dot_', '.')}"
        storage.client().bucket(found.bucket).blob(path).upload_from_string(content)


def upload(folder, place: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            found = storage.address(place)
            name = f"{found.name}/{path.relative_to(folder).as_posix()}"
            storage.client().bucket(found.bucket).blob(name).upload_from_filename(str(path))


def counted(monkeypatch, name: str) -> list:
    """Files that go one way, from here on."""
    seen, real = [], getattr(storage.Copy, name)
    monkeypatch.setattr(storage.Copy, name, lambda self, *about: (seen.append(about), real(self, *about))[1])
    return seen


# Names


@pytest.mark.parametrize(
    "path, found",
    [
        ("gs://bucket/a/b", ("bucket", "a/b")),
        ("gs:/bucket/a", ("bucket", "a")),  # as pathlib writes it
        ("gs://bucket", ("bucket", "")),
        ("runs/toy", None),
        ("C:/runs", None),
        ("", None),
    ],
)
def test_an_address_is_told_from_a_path(path, found):
    assert storage.address(path) == found


@pytest.mark.parametrize("path", ["s3://bucket/run", "gs://", "https://host/run", "gs://bucket/../run", "gs://../run"])
def test_other_schemes_are_refused(path):
    with pytest.raises(UserError, match="name one as gs://BUCKET/FOLDER"):
        storage.address(path)


def test_a_path_on_this_machine_is_itself(tmp_path):
    assert storage.here(tmp_path) == tmp_path
    with mirrored(tmp_path) as folder:
        assert folder == tmp_path


# Reading


def test_what_is_the_same_is_not_brought_again(bucket, monkeypatch):
    put(bucket, a_dot_txt=b"one", deep__b=b"two", deep__c=b"gone later", _dot_hidden=b"no")
    folder = storage.here(bucket)
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {"a.txt", "deep/b", "deep/c"}
    moved = counted(monkeypatch, "bring")
    again(), storage.here(bucket)
    assert not moved
    put(bucket, a_dot_txt=b"six")  # as long as before
    storage.client().bucket("bucket").blob(f"{storage.address(bucket).name}/deep/c").delete()
    again(), storage.here(bucket)
    assert [name for name, _ in moved] == ["a.txt"]
    assert (folder / "a.txt").read_bytes() == b"six" and not (folder / "deep" / "c").exists()


def test_a_copy_whose_note_was_lost_is_known_by_its_checksum(bucket, monkeypatch, tmp_path):
    put(bucket, a=b"one", b=b"two")
    folder = storage.here(bucket)
    (folder.parent / f".{folder.name}.json").unlink()
    (folder / "b").write_bytes(b"ten")  # damaged, of the same size
    moved = counted(monkeypatch, "bring")
    again(), storage.here(bucket)
    assert [name for name, _ in moved] == ["b"] and (folder / "b").read_bytes() == b"two"


def test_a_file_whose_name_begins_another(bucket):
    put(bucket, prompt=b"short", prompt2=b"long", prompt_dot_old__x=b"folder")
    assert storage.here(f"{bucket}/prompt").read_bytes() == b"short"
    assert storage.here(f"{bucket}/prompt2").read_bytes() == b"long"


def test_names_that_lead_out_of_a_folder_are_passed_over():
    """Path(folder) / "/etc" is /etc."""
    assert storage.shown("") and storage.shown("a/b.c")
    assert not any(map(storage.shown, ("/etc/x", "a//etc", "..", "../x", "a/../../x", ".hidden/x", "a/")))


def test_nothing_is_there(bucket):
    with pytest.raises(UserError, match="holds nothing; name a file or folder that is there"):
        storage.here(bucket)
    with pytest.raises(UserError, match=r"gs://nowhere/x cannot be read \(NotFound.*see that the bucket is there"):
        storage.here("gs://nowhere/x")


def test_without_googles_library_or_a_login_it_says_what_to_do(bucket, monkeypatch):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    storage.client.cache_clear()
    with pytest.raises(UserError, match="nobody is logged in to Google Cloud"):
        storage.here(bucket)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    monkeypatch.delattr("google.cloud.storage", raising=False)
    with pytest.raises(UserError, match=r"pip install 'svdp_jax\[gcs\]'"):
        storage.here(bucket)


def test_weights_prompts_and_models_are_read_from_a_bucket(bucket, tmp_path, monkeypatch):
    """All that a config names; and an adapter's base is known by where it is for everybody."""
    upload(shipped.FOLDER, f"{bucket}/run/model")
    put(f"{bucket}/run", checkpoints__5__big=b"not wanted")
    folder = checkpoint.model_folder(storage_path := storage.Path(f"{bucket}/run"))
    assert folder.name == "model" and shipped.find(storage_path) == folder
    assert not (folder.parent / "checkpoints").exists()
    base = checkpoint.about(folder)["training"]
    config = configs.from_flags(base | {"start": f"{bucket}/run", "learn": "adapter"})
    assert adapter.trained_with(config)["adapter"]["folder"] == f"{bucket}/run/model"
    assert adapter.base_of(tmp_path, adapter.Adapter(**adapter.trained_with(config)["adapter"])) == folder
    save_prompt(tmp_path / "p.safetensors", np.ones((3, 8), np.float32), np.ones(8, np.float32), {})
    put(bucket, p_dot_safetensors=(tmp_path / "p.safetensors").read_bytes())
    backbone = configs.Backbone(text_width=8, pooled_width=8)
    here = configs.Config("x", configs.Model(backbone), prompt=str(tmp_path / "p.safetensors"))
    there = configs.Config("x", configs.Model(backbone), prompt=f"{bucket}/p.safetensors")
    assert identity.prompt_mark(here) == identity.prompt_mark(there)


# Working


def test_what_is_done_is_sent_and_what_is_gone_is_taken_away(bucket, monkeypatch, tmp_path):
    with mirrored(bucket) as folder:
        (folder / "checkpoints" / "1").mkdir(parents=True)
        (folder / "checkpoints" / "1" / "data").write_bytes(b"one")
        (folder / ".half").write_bytes(b"no")
        (folder / "log").write_text("a\n")
        assert soon(lambda: objects(bucket).keys() == {"checkpoints/1/data", "log", mirror.OWNER})
        shutil.rmtree(folder / "checkpoints")
        (folder / "log").write_text("a\nb\n")
        assert soon(lambda: objects(bucket) | {mirror.OWNER: b""} == {"log": b"a\nb\n", mirror.OWNER: b""})
        (folder / "last").write_text("sent at the end")
    assert objects(bucket) == {"log": b"a\nb\n", "last": b"sent at the end"}
    elsewhere(monkeypatch, tmp_path)
    with mirrored(bucket) as folder:
        assert (folder / "last").read_text() == "sent at the end"


def test_a_manifest_is_sent_last(bucket, tmp_path, monkeypatch):
    order, real = [], storage.Copy.object
    monkeypatch.setattr(storage.Copy, "object", lambda self, name: (order.append(name), real(self, name))[1])
    with mirrored(bucket) as folder:
        (folder / "zebra").write_text("z")
        write_manifest(folder)
    sent = [name for name in order if name != mirror.OWNER]
    assert sent.index("zebra") < sent.index("manifest.json")


def test_what_was_not_sent_comes_first_when_the_same_machine_goes_on(bucket, monkeypatch, caplog):
    with mirrored(bucket) as folder:
        (folder / "a").write_text("sent")
    (folder / "b").write_text("done while the network was lost")
    (folder / "a").unlink()
    with mirrored(bucket):
        assert objects(bucket).keys() == {"b", mirror.OWNER}
    assert "was not all sent" in caplog.text


def test_work_of_two_machines_is_never_mixed(bucket, monkeypatch, tmp_path):
    with mirrored(bucket) as folder:
        (folder / "a").write_text("here")
    (folder / "a").write_text("here, never sent")
    here = os.environ["SVDP_CACHE"]
    elsewhere(monkeypatch, tmp_path)
    with mirrored(bucket) as other:
        (other / "a").write_text("elsewhere")
    monkeypatch.setenv("SVDP_CACHE", here)
    with pytest.raises(
        UserError, match="has been worked in elsewhere, and its copy .* holds what was never sent there, such as a;"
    ):
        with mirrored(bucket):
            pass
    assert (folder / "a").read_text() == "here, never sent" and objects(bucket) == {"a": b"elsewhere"}


def owner(beat: int, **changes) -> bytes:
    about = {"mark": "other", "host": "far", "process": 7, "machine": "far", "beat": beat}
    return json.dumps(about | changes).encode()


def test_a_folder_that_another_machine_works_in_is_refused(bucket):
    place = bucket
    put(place, _dot_owner_dot_json=owner(0))
    beats = iter(range(1, 1000))
    ended = threading.Event()

    def live():
        while not ended.wait(0.05):
            put(place, _dot_owner_dot_json=owner(next(beats)))

    (thread := threading.Thread(target=live)).start()
    try:
        with pytest.raises(UserError, match="Process 7 on far is at work in gs://bucket/.*; wait until it ends"):
            with mirrored(bucket):
                pass
    finally:
        ended.set(), thread.join()
    assert json.loads(objects(bucket)[mirror.OWNER])["mark"] == "other"


def test_one_that_was_lost_is_followed(bucket, caplog):
    put(bucket, _dot_owner_dot_json=owner(3), a=b"kept")
    with mirrored(bucket) as folder:
        assert (folder / "a").read_text() == "kept"
        assert json.loads(objects(bucket)[mirror.OWNER])["process"] == os.getpid()
    assert "may be at work" in caplog.text and mirror.OWNER not in objects(bucket)


def test_one_whose_folder_was_taken_stops_and_sends_nothing(bucket, monkeypatch, caplog):
    told = []
    monkeypatch.setattr(os, "kill", lambda process, number: told.append(number))
    with mirrored(bucket) as folder:
        put(bucket, _dot_owner_dot_json=owner(0))
        assert soon(lambda: told == [signal.SIGTERM])
        (folder / "late").write_text("mine")
    assert objects(bucket).keys() == {mirror.OWNER} and "has taken" in caplog.text


@pytest.mark.parametrize(
    "place, name, fault",
    [
        (storage.Copy, "send", ConnectionError("no route to host")),
        (storage, "write_whole", OSError(28, "No space left on device")),
    ],
)
def test_a_network_that_is_lost_and_a_disk_that_is_full_are_borne_and_said_once(
    bucket, monkeypatch, caplog, place, name, fault
):
    tries = []

    def broken(*about):
        tries.append(about)
        raise fault

    with mirrored(bucket) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, broken)
            (folder / "a").write_text("a")
            assert soon(lambda: len(tries) > 2)
        (folder / "b").write_text("b")
        assert soon(lambda: {"a", "b"} <= objects(bucket).keys())
    assert caplog.text.count("It is tried again") == 1 and str(fault) in caplog.text
    with pytest.raises(UserError, match=re.escape(str(fault))), mirrored(bucket) as folder:
        monkeypatch.setattr(place, name, broken)
        (folder / "c").write_text("c")


def test_a_cache_that_cannot_be_written_is_a_sentence(bucket, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SVDP_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="make room, or set SVDP_CACHE"):
        storage.here(bucket)


def soon(condition, seconds: float = 60) -> bool:
    wait = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        wait.wait(0.02)
    return False


# Commands


@pytest.mark.parametrize(
    "command, arguments",
    [
        (animate, ["--demo", "--output", "gs://b/x.mp4"]),
        (animate, ["--driving", "x.mp4", "--output", "gs://b/x.safetensors"]),
        (ablate, [str(ROOT / "configs/ablation/toy.py"), "--workdir", "gs://b/x"]),
        (evaluate, ["--checkpoint", "x", "--data", "x", "--output", "gs://b/x"]),
        (convert, ["vae", "x", "gs://b/x"]),
        (draw, ["--checkpoint", "x", "--prompt", "x", "--output", "gs://b/x.png"]),
    ],
)
def test_what_writes_to_a_disk_alone_says_so(tmp_path, monkeypatch, capsys, command, arguments):
    """A path would be made below a folder that is named gs: here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    said = ""
    try:
        command.main(*([arguments] if inspect.signature(command.main).parameters else []))
    except (SystemExit, UserError) as error:  # before or after it is told
        said = str(error)
    assert "what this makes is written to a disk" in said + capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_several_hosts_are_told_to_share_a_disk(bucket, monkeypatch, tmp_path):
    monkeypatch.setattr(train.jax, "process_count", lambda: 2)
    monkeypatch.setattr(train.stop, "listen", lambda: None)
    monkeypatch.setattr(train.stop, "together", lambda *_: None)
    with pytest.raises(UserError, match="one host can work in a bucket"):
        train.main(["train", "--config", str(ROOT / "configs" / "toy_cpu.py"), "--workdir", bucket])


def test_a_run_whose_machine_is_lost_goes_on_on_another_and_its_model_animates(bucket, tmp_path, server, monkeypatch):
    """The commands: killed without a word, gone on with from an empty cache, and a picture made of what it left."""
    cache = lambda name: {"SVDP_CACHE": str(tmp_path / name)}
    first = Run(tmp_path / "a", f"--workdir={bucket}", "--config.save_every=3", faults={"slow": 1.0}, **cache("a"))
    name = storage.address(bucket).name
    saved = lambda: any(key.startswith("checkpoints/") and key.endswith("manifest.json") for key in objects(bucket))
    first.until(saved).signal(signal.SIGKILL).end()
    assert saved(), first.said()
    monkeypatch.setenv("SVDP_CACHE", str(tmp_path / "b"))
    second = Run(tmp_path / "b", f"--workdir={bucket}", "--config.save_every=3", **cache("b"))
    assert second.end() == 0, second.said()
    assert "step 3 of" in second.said() or "step 6 of" in second.said(), second.said()
    steps = [line["step"] for line in metrics(tmp_path / "b" / "work" / "bucket" / name)]
    assert steps[-1] == STEPS and steps == sorted(set(steps))
    assert f"The model is in {bucket}/model" in second.said()
    assert {"model/config.json", "model/manifest.json", "config.json"} <= objects(bucket).keys()
    assert mirror.OWNER not in objects(bucket)
    made = subprocess.run(
        [sys.executable, "-m", "svdp_jax.animate", "--demo", "--checkpoint", bucket, "--output", tmp_path / "made.mp4"],
        env=os.environ | cache("c"), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0 and (tmp_path / "made.mp4").exists(), made.stderr
    assert not list((tmp_path / "c").rglob("checkpoints"))


def test_a_preparation_goes_into_a_bucket_and_is_trained_on_from_there(bucket, tmp_path, monkeypatch):
    films = tmp_path / "films"
    footage.write(films, 1, 0.4, 128)
    command = [str(films), f"{bucket}/out", "--size", "32", "--codec", "pixels:4", "--pairs", "self"]
    command += ["--landmarks", f"files:{films}", "--limit", "yaw=0:50", "--limit", "face=50", "--limit", "seconds=0.1"]
    command += ["--workers", "1", "--", "--runner=none"]
    prepare.main(command)
    assert {"settings.json", "records/manifest.json", "report.html"} <= objects(f"{bucket}/out").keys()
    elsewhere(monkeypatch, tmp_path)
    done = counted(monkeypatch, "bring")
    prepare.main(command)  # all is brought, and nothing is made again
    assert "records/manifest.json" in {name for name, _ in done}
    data = configs.Data(source="records", path=f"{bucket}/out", size=32, frames=2, past=1, batch=2)
    config = configs.Config("x", tiny_model(), data=data)
    assert records.examples(config, tmp_path)(0)["target"].shape[:1] == (2,)
    assert records.identity(data).startswith("records ")
