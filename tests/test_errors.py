"""What every command says and how, whatever the terminal and the locale are."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def said(code: str, *arguments, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    code = f"from svdp_jax.errors import UserError, say_errors\n{code}"
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, env=env, capture_output=True)


def test_a_terminal_that_cannot_show_a_letter_ends_nothing():
    done = said("say_errors('train', lambda: print('h\\xe4us \\u2191'))", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout == rb"h\xe4us \u2191" + b"\n"


def test_names_that_are_no_text_in_this_locale_are_refused(tmp_path):
    """In an argument, or where the command is run."""
    work, main = tmp_path / "häus", "say_errors('train', lambda: print('done'))"
    work.mkdir()
    for done in (said(main, work, **ASCII), said(main, cwd=work, **ASCII)):
        assert done.returncode == 2 and not done.stdout
        assert done.stderr.startswith(b"train: ") and b"set PYTHONUTF8=1" in done.stderr
    assert said(main, work, PYTHONUTF8="1").stdout == b"done\n"
    assert b"rename it" in said(main, b"h\xe4us", PYTHONUTF8="1").stderr


def test_a_folder_that_is_gone_is_said(tmp_path):
    done = said("import os; os.rmdir(os.getcwd()); say_errors('train', print)", cwd=tmp_path)
    assert done.returncode == 2 and b"the current folder is no longer there" in done.stderr


def test_garbage_is_looked_for_as_usual_once_a_command_begins():
    """Not while it imports: nothing there is garbage."""
    told = "print(gc.get_threshold() == errors.USUAL, gc.get_freeze_count() > 0)"
    code = f"import gc; from svdp_jax import errors; errors.end_quietly(); {told}; say_errors('x', lambda: {told})"
    assert said(code).stdout.split() == [b"False", b"False", b"True", b"True"]
