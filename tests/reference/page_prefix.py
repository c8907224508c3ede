"""The page behind a proxy that serves it below a prefix, and after its server was started anew.

    PYTHONPATH=tests python -m pytest -n0 tests/reference/page_prefix.py

Two servers are started and compiled, one after the other: 83 s, so it is not of the suite.
"""

import http.client
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from test_demo import browser as browser  # the fixture

from svdp_jax import demo
from svdp_jax.media.images import write_image

ROOT = Path(__file__).parents[2]
PREFIX = "/svdp"


def proxy_to(port: int) -> ThreadingHTTPServer:
    """A server that hands what is asked below PREFIX on to a port of this machine, without the prefix."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith(f"{PREFIX}/"):
                return self.send_error(404)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            behind = http.client.HTTPConnection("127.0.0.1", port)
            behind.request(self.command, self.path[len(PREFIX) :], body, dict(self.headers))
            answer = behind.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("connection", "close")
            self.end_headers()
            while part := answer.read1(1 << 16):
                self.wfile.write(part)
                self.wfile.flush()

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def started(port: int, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "svdp_jax.demo", "--port", str(port), "--root-path", PREFIX]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)})
    while "in a browser" not in (line := process.stdout.readline()):
        assert line, "the page did not start"
    return process


def test_a_page_below_a_prefix_takes_files_and_says_that_its_server_was_started_anew(browser, tmp_path):
    port, own = demo.free_port("127.0.0.1", None), tmp_path / "own.png"
    write_image(own, np.full((64, 64, 3), 200, np.uint8))
    proxy = proxy_to(port)
    first = started(port, tmp_path)
    page = browser.new_page(viewport={"width": 1300, "height": 1200})
    page.goto(f"http://127.0.0.1:{proxy.server_port}{PREFIX}/")
    page.get_by_text("Example 1").click()
    page.wait_for_selector("#preview img", timeout=60_000)
    page.locator("#source button[aria-label='Remove Image']").click()
    page.locator("#source input[type=file]").first.set_input_files(own)
    page.wait_for_selector("#source img", timeout=60_000)
    page.wait_for_timeout(3000)  # the upload has been heard of
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0
    second = started(port, tmp_path)
    page.get_by_role("button", name="Animate").click()
    page.get_by_text("started anew since").first.wait_for(timeout=60_000)
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0
    proxy.shutdown()
    assert not list(tmp_path.glob("svdp_jax_demo_*"))
