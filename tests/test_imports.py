"""Imports run one way: a room may know those before it in ORDER, never one after it, and nobody knows a command."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "svdp_jax"
ORDER = (
    "errors", "files", "buckets", "values", "config", "parallel", "media", "faces", "diffusion", "models", "weights", "engines", "animator",
    "toy", "preparation", "training", "evaluation", "planning", "page",
)  # fmt: skip
COMMANDS = ("ablate", "animate", "demo", "draw", "evaluate", "plan", "prepare", "train")
# What must not be known where: libraries, and rooms of our own.
FILES = {"pathlib", "os", "io", "absl", "argparse", "safetensors", "orbax", "tqdm", "logging"}
NETWORKS = {"svdp_jax.models", "svdp_jax.diffusion", "svdp_jax.weights"}
UNKNOWN = {"models": FILES, "diffusion": FILES, "media": NETWORKS, "faces": NETWORKS, "toy": NETWORKS}


def imported(path: Path) -> set[str]:
    """Modules that a file imports, and what of `svdp_jax` it takes from them, by dotted names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules() -> dict[str, Path]:
    """Files by dotted name below the package."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


MODULES = modules()


def ours(path: Path) -> set[str]:
    """Our own modules that a file imports, by dotted name below the package."""
    return {name.removeprefix("svdp_jax.") for name in imported(path)} & set(MODULES)


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_a_place_and_says_what_lives_there():
    assert {room(module) for module in MODULES} == {*ORDER, *COMMANDS}
    for folder in {path.parent for path in MODULES.values()} - {PACKAGE}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    known = {room(name) for name in ours(MODULES[module])} - {room(module)}
    assert not known & set(COMMANDS), "nobody knows a command"
    if room(module) in ORDER:
        later = {name for name in known if ORDER.index(name) > ORDER.index(room(module))}
        assert not later, f"{module} knows {later}, which come after it"


def test_no_circles_within_a_room():
    arrows = {module: ours(path) for module, path in MODULES.items()}
    while free := [module for module, known in arrows.items() if not known & set(arrows)]:
        arrows = {module: known for module, known in arrows.items() if module not in free}
    assert not arrows, f"these import each other in a circle, or need some that do: {sorted(arrows)}"


@pytest.mark.parametrize("module", MODULES)
def test_rooms_do_not_know_what_is_not_their_job(module):
    found = imported(MODULES[module])
    parts = {name.split(".")[0] for name in found} | {".".join(name.split(".")[:2]) for name in found}
    assert not parts & (UNKNOWN.get(room(module), set()) | {"convert", "torch", "diffusers"})


def test_the_listing_is_short():
    shown = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len([path for path in shown if path.is_file()]) <= 14
    assert not [path for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > 400]
