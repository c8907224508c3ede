"""The page: through its clients, and in a real browser where one is installed."""

import dataclasses
import math
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx
from test_animate import CONFIG
from test_face import canvas

from svdp_jax import demo
from svdp_jax.animator import Animator
from svdp_jax.engines.engine import Step
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.faces import face as faces, live
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.media import video
from svdp_jax.media.images import write_image
from svdp_jax.media.writer import VideoWriter
from svdp_jax.models.svdp import SVDP
from svdp_jax.page import studio as studios, visits
from svdp_jax.page.shown import Progress
from svdp_jax.page.visits import Given
from svdp_jax.toy import example
from svdp_jax.weights import checkpoint, shipped

gradio = pytest.importorskip("gradio", reason="the page needs Gradio, of the extra `demo`")
client = pytest.importorskip("gradio_client")
httpx = pytest.importorskip("httpx")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LONGEST = 5  # seconds
PATIENCE = 120  # seconds that a browser may take for anything: all of it costs nothing where all is well


@pytest.fixture(scope="module")
def animator() -> Animator:
    """As many steps as a visitor needs time to look and to click."""
    config = dataclasses.replace(CONFIG, sampling=dataclasses.replace(CONFIG.sampling, steps=16))
    return Animator(SVDPEngine(config, SVDP(CONFIG.model, nnx.Rngs(0)), checkpoint.load_codec(CONFIG.model.codec)))


@pytest.fixture(scope="module")
def served(animator, drawn) -> str:
    """The address of a page. `drawn` comes first, for its short examples."""
    with demo.serving(animator, LONGEST, "1mb", "127.0.0.1", demo.free_port("127.0.0.1", None)) as url:
        yield url


@pytest.fixture(scope="module")
def caller(served, tmp_path_factory) -> client.Client:
    return client.Client(served, verbose=False, download_files=str(tmp_path_factory.mktemp("fetched")))


class Steps(SimpleNamespace):
    """Sampling steps that take a while: how many have begun, and how many may begin; the next one waits."""

    begun, allowed = 0, math.inf

    def alter(self, advance):
        def altered(*arguments):
            self.begun += 1
            time.sleep(0.15)
            while self.begun > self.allowed:
                time.sleep(0.01)
            return advance(*arguments)

        return altered


@pytest.fixture
def slow(animator, monkeypatch) -> Iterator[Steps]:
    steps = Steps()
    monkeypatch.setattr(animator.engine, "advance", steps.alter(animator.engine.advance))
    yield steps
    steps.allowed = math.inf  # so that a test that has failed leaves nobody waiting


def arguments(files: example.Example, **changes) -> dict:
    """Of the endpoint `animate`, whose names are those of its components' parameters."""
    send = lambda path: client.handle_file(path) if path else None
    given = {**files._asdict(), **changes}
    return dict(
        source=send(given["source"]), driving=send(given["driving"]), face=0, driving_face=0,
        source_crop=given["source_crop"], driving_crop=given["driving_crop"], landmarks=send(given["landmarks"]),
        paste_back=False, steps=2, guide_source=2.0, guide_driving=2.5, guide_past=1.0, seed=0,
        api_name="/animate",
    )  # fmt: skip


def content(value) -> bytes:
    path = value["video"] if isinstance(value, dict) else value
    with open(path, "rb") as file:
        return file.read()


# --- through the client


def test_a_client_gets_what_the_library_makes(caller, animator, drawn, tmp_path):
    newest, progress, *files = caller.predict(**arguments(drawn))
    assert progress == "Finished." and "data:image/jpeg" in newest
    for value, compare in zip(files, (False, True)):
        made, own = tmp_path / "made.mp4", tmp_path / "own.mp4"
        made.write_bytes(content(value))
        animator.save(own, compare=compare, sampling=CONFIG.sampling, **drawn._asdict())
        assert video.probe(made) == video.probe(own)
        pairs = zip(video.read_frames(made), video.read_frames(own), strict=True)
        assert max(np.abs(a.image.astype(int) - b.image).mean() for a, b in pairs) < 0.5
    again = caller.predict(**arguments(drawn))
    assert [content(value) for value in again[2:]] == [content(value) for value in files]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"driving": "text.mp4"}, "not a video that can be read"),
        ({"source": "text.png"}, "text.png: not a picture"),
        ({"source": "grey.png", "source_crop": "auto"}, "no face is found"),
        ({"driving": "long.mp4"}, "the video has 6 seconds, but 5 are allowed"),
        ({"source": None}, "give a picture and a driving video"),
    ],
)
def test_bad_input_is_one_sentence_and_the_page_lives_on(caller, drawn, tmp_path, change, sentence):
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "text.png").write_text("this is no picture")
    write_image(tmp_path / "grey.png", canvas())
    with VideoWriter(tmp_path / "long.mp4", 1) as writer:
        for _ in range(6):
            writer.write(canvas(32, 32))
    change = {k: str(tmp_path / v) if k != "source_crop" and v else v for k, v in change.items()}
    with pytest.raises(client.exceptions.AppError) as error:
        caller.predict(**arguments(drawn, **change))
    assert sentence in str(error.value) and "\n" not in str(error.value) and "/tmp" not in str(error.value)
    assert caller.predict(**arguments(drawn))[1] == "Finished."


def test_only_what_visitors_gave_or_got_is_served(served):
    weights = shipped.FOLDER / checkpoint.EXPORTED
    assert weights.is_file()
    for path in (
        "/etc/passwd",
        weights,
        __file__,
        "../../etc/passwd",
        f"{__file__}/../conftest.py",
        "README.md",
        "pyproject.toml",
    ):
        for prefix in ("gradio_api/file=", "file=", "gradio_api/file/"):
            answer = httpx.get(f"{served}{prefix}{path}")
            assert answer.status_code in (403, 404), (path, answer.status_code)
            assert len(answer.content) < 200 and b"root:" not in answer.content and b"import" not in answer.content


def called(served: str, files: dict[str, str], drawn) -> str:
    """The events of a call with these paths on the server, sent as they are, as an attacker would."""
    given = arguments(drawn) | {name: {"path": path, "meta": {"_type": "gradio.FileData"}} for name, path in files.items()}
    root = f"{served}gradio_api/call{given.pop('api_name')}"
    number = httpx.post(root, json={"data": list(given.values())}).raise_for_status().json()["event_id"]
    return httpx.get(f"{root}/{number}", timeout=60).text


def test_a_call_cannot_name_files_of_the_server(served, drawn, tmp_path):
    own = {}
    for name in ("source", "driving", "landmarks"):
        with open(getattr(drawn, name), "rb") as file:
            own[name] = httpx.post(f"{served}gradio_api/upload", files={"files": file}).json()[0]
    assert "Finished." in called(served, own, drawn)
    secret = shutil.copy(drawn.source, tmp_path / "secret.png")
    inside = own["source"].rsplit("/", 2)[0]
    for path in (secret, "/etc/passwd", __file__, f"{inside}/../../etc/passwd", f"{inside}/../{tmp_path}/secret.png"):
        for name in own:
            events = called(served, own | {name: str(path)}, drawn)
            assert "event: error" in events and "Finished" not in events and "root:" not in events


def test_an_upload_over_the_limit_is_refused(served):
    answer = httpx.post(f"{served}gradio_api/upload", files={"files": ("big.mp4", bytes(2_000_000))})
    assert answer.status_code == 413
    assert httpx.get(served).status_code == 200


# --- behind the page


@pytest.fixture
def studio(animator, drawn, tmp_path) -> studios.Studio:
    return studios.Studio(animator, tmp_path, LONGEST, [drawn])


def play(studio, drawn, visitor="a"):
    choices = (0, 0, drawn.source_crop, drawn.driving_crop, drawn.landmarks)
    request = SimpleNamespace(session_hash=visitor)
    return studio.animate(drawn.source, drawn.driving, *choices, False, 2, 2.0, 2.5, 1.0, 0, request)


def test_old_results_of_a_visitor_make_room_for_new_ones(studio, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(visits, "KEPT", 2)
    others = list(play(studio, drawn, "b"))[-1][2:]
    results = [list(play(studio, drawn))[-1][2:] for _ in range(4)]
    left = {str(path) for path in (tmp_path / visits.RESULTS).glob("*/*")}
    assert left == {*others, *results[-2], *results[-1]}


def by(part: str) -> gradio.EventData:
    """What Gradio says of a visitor's change of this part."""
    return gradio.EventData(SimpleNamespace(elem_id=part), None)


def test_a_form_that_is_behind_brings_nothing_back(studio, drawn, tmp_path):
    """The old film is cleared, and another one given before the page has heard what went with the old one."""
    request = SimpleNamespace(session_hash="a")
    studio.choose(0, request)
    behind = Given(**drawn._asdict())
    assert Given(*studio.change(request, by("driving"), *behind._replace(driving=None))[: len(Given._fields)])[-2:] == (
        "auto",
        None,
    )
    for new in ("own.mp4", "newer.mp4"):
        answer = studio.change(request, by("driving"), *behind._replace(driving=new))
        assert studio.visits.of("a").given == Given(drawn.source, new, source_crop="none")
        assert Given(*answer[: len(Given._fields)])[-2:] == ("auto", None)
    # What is chosen for the new film stays, though the page may still show the old choice elsewhere.
    studio.change(request, by("driving_face"), *behind._replace(driving="newer.mp4", driving_face=1))
    assert studio.visits.of("a").given == Given(drawn.source, "newer.mp4", driving_face=1, source_crop="none")


def test_a_look_that_was_overtaken_is_not_shown(studio, drawn, monkeypatch):
    request, prepared = SimpleNamespace(session_hash="a"), studio.prepared
    studio.choose(0, request)

    def slow(given):
        studio.change(request, by("source"), "other.png", *given[1:])
        return prepared(given)

    monkeypatch.setattr(studio, "prepared", slow)
    assert studio.look(request) == gradio.skip()
    monkeypatch.setattr(studio, "prepared", prepared)
    assert "other.png is no longer on the server" in studio.look(request)


def test_a_failure_of_ours_is_said_and_logged(studio, drawn, monkeypatch, capsys):
    monkeypatch.setattr(studio, "film", lambda *_: 1 / 0)
    running = play(studio, drawn)
    assert "Looking" in next(running)[1] and studios.BROKEN in next(running)[1]
    with pytest.raises(gradio.Error, match="the server has failed"):
        next(running)
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [False, True])
def test_a_stopped_animation_ends_at_the_next_step_and_leaves_nothing(studio, drawn, slow, tmp_path, closed):
    running = play(studio, drawn)
    while not slow.begun:
        next(running)
    other, before = play(studio, drawn, "b"), slow.begun
    next(other)
    if closed:
        running.close()
    else:
        studio.stop(SimpleNamespace(session_hash="a"))
        assert list(running) == [("", "Stopped.", None, None)]
    assert slow.begun <= before + 1 and studio.visits.of("a").running is None and studio.visits.of("b").running
    assert not list((tmp_path / visits.RESULTS).glob("*/*"))
    assert list(other)[-1][1] == "Finished."


def test_progress_counts_segments_steps_and_frames():
    progress = Progress(frames=10, segment=4, steps=5)
    progress.step(Step(1, 2))
    progress.done, progress.start = 4, time.monotonic() - 8
    assert str(progress) == (
        "<progress aria-label='Sampling steps' max=15 value=8></progress><br>Segment 2 of 3, step 3 of 5; 4 of 10 frames done, about 7 s left"
    )


# --- the command


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--port", "0"], "give one from 1 to 65535"),
        (["--port", "99999"], "give one from 1 to 65535"),
        (["--port", "TAKEN"], "in use"),
        (["--host", "203.0.113.7"], "no address of this machine"),
        (["--host", "no such name"], "no address of this machine"),
        (["--longest", "nan"], "a number of seconds above 0"),
        (["--longest", "-1"], "a number of seconds above 0"),
        (["--largest", "much"], "a size such as 50mb"),
        (["--root-path", "svdp"], "a prefix such as /svdp"),
    ],
)
def test_what_would_fail_after_the_compilation_is_one_sentence_before(monkeypatch, capsys, options, sentence):
    monkeypatch.setattr(demo.Animator, "load", lambda _: pytest.fail("the model is loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = [str(taken.getsockname()[1]) if option == "TAKEN" else option for option in options]
        monkeypatch.setattr(sys, "argv", ["demo", *options])
        with pytest.raises(SystemExit) as ended:
            demo.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("demo: ") and sentence in said and said.count("\n") == 1


# --- in a browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed; `apt-get install chromium`")
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by Playwright")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def visited(browser, served, **options):
    page = browser.new_page(**options)
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(served)
    return page


def opened(browser, served, **options):
    """A page on which the first example has been chosen, and its preview seen."""
    page = visited(browser, served, viewport={"width": 1300, "height": 1200}, **options)
    page.get_by_text("Example 1").click()
    page.wait_for_selector("#preview img")
    return page


def told(page) -> str:
    return page.locator("#progress").inner_text()


def until(page, condition) -> None:
    """Waits for it; fails with what the page shows instead."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {PATIENCE} s; the page shows:\n{page.locator('body').inner_text()}")
        time.sleep(0.02)


def test_a_visitor_sees_all_of_it(browser, served, slow, animator, tmp_path):
    page, other = opened(browser, served), opened(browser, served)
    slow.allowed = 4
    page.get_by_role("button", name="Animate").click()
    until(page, lambda: "step" in told(page))
    other.get_by_role("button", name="Animate").click()
    until(other, lambda: "queue" in other.locator("body").inner_text().lower())
    assert "step" in told(page)
    seen, taken = set(), animator.engine.pace()[1] * 2  # steps, of two segments
    slow.allowed = taken + 2
    until(page, lambda: seen.add(told(page)) or "Finished." in told(page))
    assert len([text for text in seen if "step" in text]) >= 3
    movie = page.locator("#result video")
    movie.evaluate("video => { video.muted = true; return video.play() }")
    until(page, lambda: movie.evaluate("video => video.currentTime") > 0.1)
    # The other visitor's turn has come; they change their mind.
    until(other, lambda: "step" in told(other))
    other.get_by_role("button", name="Cancel").click()
    until(other, lambda: "Stopped." in told(other))
    before = slow.begun
    slow.allowed = math.inf
    time.sleep(0.5)
    assert slow.begun <= before + 1
    page.screenshot(path=tmp_path / "finished.png"), other.screenshot(path=tmp_path / "stopped.png")


def give(page, where, path) -> None:
    page.locator(f"#{where} input[type=file]").first.set_input_files(path)


def clear(page, where) -> None:
    page.locator(f"#{where} button[aria-label=Clear], #{where} button[aria-label='Remove Image']").first.click()


def seen(page, where="preview") -> str:
    return page.locator(f"#{where}").inner_text()


def test_a_visitor_is_told_what_is_wrong(browser, served, drawn, tmp_path):
    page = visited(browser, served)
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "big.mp4").write_bytes(bytes(2_000_000))
    give(page, "driving", tmp_path / "big.mp4")
    until(page, lambda: "maximum allowed size" in page.locator("body").inner_text())
    give(page, "source", drawn.source)
    give(page, "driving", tmp_path / "text.mp4")
    until(page, lambda: "text.mp4: not a video that can be read" in seen(page))
    page.get_by_role("button", name="Animate").click()
    until(page, lambda: "text.mp4: not a video that can be read" in told(page) and "Looking" not in told(page))
    page.screenshot(path=tmp_path / "told.png")
    # With another file the sentences are gone.
    clear(page, "driving")
    until(page, lambda: "text.mp4" not in seen(page) + told(page))
    # The part of the form is another object for Gradio by now, since its value was changed.
    give(page, "driving", drawn.driving)
    (tmp_path / "text.png").write_text("this is no picture")
    clear(page, "source"), give(page, "source", tmp_path / "text.png")
    until(page, lambda: "text.png: not a picture" in seen(page))


@pytest.fixture(scope="module")
def own(drawn, tmp_path_factory) -> dict[str, str]:
    """A visitor's files, of another shape than the examples: a grey picture, and a film of 4 frames."""
    folder = tmp_path_factory.mktemp("own")
    write_image(folder / "own.png", canvas(96, 80))
    with VideoWriter(folder / "own.mp4", 10) as writer:
        for frame in list(video.read_frames(drawn.driving))[:4]:
            writer.write(frame.image)
    return {"source": str(folder / "own.png"), "driving": str(folder / "own.mp4")}


def complaints(page) -> int:
    return page.locator(".toast-wrap .toast-body").count()


def test_an_example_chosen_after_own_files_is_the_example(browser, served, own):
    page = visited(browser, served)
    give(page, "source", own["source"]), give(page, "driving", own["driving"])
    until(page, lambda: "no face is found" in seen(page))
    page.get_by_text("Example 1").click()
    until(page, lambda: "8 frames" in seen(page))
    assert "no face" not in seen(page) and not complaints(page)
    page.get_by_role("button", name="Animate").click()
    until(page, lambda: "Finished." in told(page))


def test_own_files_after_an_example_are_not_cropped_as_it_was(browser, served, own, drawn, face_networks):
    page = opened(browser, served)
    page.get_by_role("button", name="Animate").click()
    until(page, lambda: "Finished." in told(page))
    clear(page, "driving"), give(page, "driving", own["driving"])
    # The result of the old film is gone, and so are its landmarks and crop.
    until(page, lambda: "4 frames" in seen(page) and not told(page) and not page.locator("#result video").count())
    page.get_by_text("Faces and cropping").click()
    assert page.locator("#landmarks").get_by_text("landmarks.npy").count() == 0
    # The same landmarks, given anew, belong to the own film now.
    give(page, "landmarks", drawn.landmarks)
    until(page, lambda: "landmarks.npy" in seen(page))
    page.get_by_text("Example 2").click()
    until(page, lambda: "8 frames" in seen(page))
    assert not complaints(page)


def test_another_file_stops_what_is_made_of_the_old_one(browser, served, own, slow):
    page = opened(browser, served)
    slow.allowed = 4
    page.get_by_role("button", name="Animate").click()
    until(page, lambda: "step" in told(page))
    clear(page, "source"), give(page, "source", own["source"])
    until(page, lambda: "step" not in told(page) and "no face is found" in seen(page))
    before = slow.begun
    slow.allowed = math.inf
    time.sleep(0.5)
    assert slow.begun <= before + 1 and "step" not in told(page)


SERIOUS = ("serious", "critical")


def test_axe_finds_nothing_serious_that_is_ours(browser, served):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(browser, served)
    page.get_by_text("Faces and cropping").click(), page.get_by_text("Settings").click()
    page.get_by_role("button", name="Animate").click()
    until(page, lambda: "Finished." in told(page))
    found = axe.Axe().run(page).response["violations"]
    print([(rule["id"], rule["impact"], [node["html"][:150] for node in rule["nodes"]]) for rule in found])
    serious = [(rule["id"], node["html"]) for rule in found if rule["impact"] in SERIOUS for node in rule["nodes"]]
    assert not serious


def test_a_visitor_is_the_driver_and_sees_it_while_they_move(browser, served, monkeypatch, tmp_path):
    """Chromium's fake camera; that a face is followed in it is left to a stand-in."""

    def followed(frames, framing, pick, cropped):
        for image in frames:
            crop = faces.crop(image, faces.square(image), framing.driving_size)
            yield DrivingFrame(crop, crop, live.now())

    monkeypatch.setattr(live, "followed", followed)
    flags = [*FLAGS, "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    chromium = browser.browser_type.launch(executable_path=CHROMIUM, args=flags)
    page = opened(chromium, served, permissions=["camera"])
    page.get_by_text("Live: you are the driver").click()
    page.get_by_text("Click to Access Webcam").click()
    page.locator("#camera button[aria-label='capture photo']").click()
    rate, made = page.locator("#rate"), page.locator("#live img")
    until(page, lambda: "frames a second" in rate.inner_text())
    first = made.get_attribute("src")
    until(page, lambda: made.get_attribute("src") != first)
    page.screenshot(path=tmp_path / "live.png")
    chromium.close()
