"""python -m svdp_jax.demo [--checkpoint DIR]

A page to try a model on: a picture and a video in, the animation out, frame by
frame as they are made. Needs `pip install 'svdp_jax[demo]'`. It is seen from this
machine alone unless --host says otherwise, and serves nothing but what visitors
gave it and what it made for them, which is deleted when the page ends.
"""

from svdp_jax import errors

if __name__ == "__main__":
    errors.end_quietly()  # imports take seconds

import argparse
import contextlib
import importlib.util
import math
import os
import re
import socket
import tempfile
import threading
from collections.abc import Generator
from pathlib import Path

from svdp_jax.animator import Animator
from svdp_jax.errors import UserError, say_errors
from svdp_jax.page.visits import EXAMPLES
from svdp_jax.toy import example

PORTS = range(7860, 7960)  # of which the first free one is taken


@contextlib.contextmanager
def serving(animator: Animator, longest: float, largest: str, host: str, port: int, prefix: str = "") -> Generator[str]:
    """A running page; gives its address. Its files are gone afterwards."""
    from svdp_jax.page import layout, studio  # they need Gradio, an extra

    animator.engine.compile()  # so that no visitor waits for it
    with tempfile.TemporaryDirectory(prefix="svdp_jax_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # the one way to tell Gradio
        drawn = []
        for number, seeds in enumerate(example.PLAYS):
            (Path(folder) / EXAMPLES / f"{number}").mkdir(parents=True)
            drawn.append(example.draw(Path(folder) / EXAMPLES / f"{number}", seeds))
        blocks = layout.page(studio.Studio(animator, Path(folder), longest, drawn))
        try:
            _, url, _ = blocks.launch(
                prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False, max_file_size=largest,
                theme=layout.THEME, css=layout.CSS, footer_links=["api"],
                server_name=host, server_port=port, root_path=prefix,
            )  # fmt: skip
        except OSError:
            raise UserError(f"port {port} of {host} was taken in the meantime; name another one with --port.") from None
        try:
            yield url
        finally:
            blocks.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m svdp_jax.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="DIR",
        help="a work folder of svdp_jax.train (default: the model that comes with the package)")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in (default 127.0.0.1)")
    add("--port", type=int, help=f"default: the first free one from {PORTS.start}")
    add("--root-path", default="", metavar="PREFIX",
        help="where a proxy in front shows the page, such as /svdp or https://example.org/svdp")  # fmt: skip
    add("--longest", type=float, default=60, metavar="SECONDS", help="of driving video (default 60)")
    add("--largest", default="50mb", metavar="SIZE", help="of an uploaded file (default 50mb)")
    options = parser.parse_args()
    say_errors("demo", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    check(options)
    port = free_port(options.host, options.port)
    print("Loading and compiling the model ...", flush=True)
    animator = Animator.load(options.checkpoint)
    with serving(animator, options.longest, options.largest, options.host, port, options.root_path) as url:
        print(f"Open {url} in a browser; Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def check(options: argparse.Namespace) -> None:
    """What would fail after the compilation fails here."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio; pip install 'svdp_jax[demo]'.")
    if not (0 < options.longest < math.inf):
        raise UserError(f"--longest {options.longest:g}: give a number of seconds above 0.")
    if not re.fullmatch(r"[1-9]\d*(b|kb|mb|gb)", options.largest):
        raise UserError(f"--largest {options.largest}: give a size such as 50mb or 2gb.")
    if not re.fullmatch(r"|(/[\w.~-]+)+|https?://[\w.:\[\]-]+(/[\w.~-]+)*", options.root_path):
        raise UserError(f"--root-path {options.root_path}: give a prefix such as /svdp, or https://example.org/svdp.")


def free_port(host: str, wanted: int | None) -> int:
    """The wanted port, or else the first of PORTS that can be listened on. UserError where there is none."""
    if wanted is not None and not 0 < wanted < 1 << 16:
        raise UserError(f"--port {wanted}: give one from 1 to 65535.")
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.bind((address[0], 0))
    except (OSError, UnicodeError):
        raise UserError(f"--host {host}: is no address of this machine; 127.0.0.1 and 0.0.0.0 always are.") from None
    for port in PORTS if wanted is None else [wanted]:
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address[0], port))
            return port
    ports = f"{wanted}: is" if wanted is not None else f"{PORTS.start} to {PORTS.stop - 1}: are"
    raise UserError(f"--port {ports} in use or not for you to take; name another one.")


if __name__ == "__main__":
    main()
