"""Imports run one way: config, parallel -> models -> diffusion, data -> commands."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A module may import from its own row only what stands before it, and from rows above anything.
ROWS = (
    ("errors", "files", "stop", "config", "parallel", "attention"),
    ("models.layers", "models.mmdit", "models.svdp", "models.vae", "models.text"),
    ("models.keypoints", "models.volume", "models.liveportrait", "models.metric_nets"),
    ("diffusion.flow", "diffusion.guidance", "diffusion.sampler"),
    ("data.images", "data.video", "data.writer", "data.face", "data.landmarks", "data.paste", "data.scene", "data.sound", "data.toy"),
    ("data.example", "data.footage", "data.ingest", "data.shots", "data.crops", "data.gates", "data.masks"),
    ("data.drivers", "data.encode", "data.report", "data.pipeline", "data.records", "data.feed"),
    ("prompts", "checkpoint", "runs", "preflight", "journal", "health", "alarm", "shipped", "credentials", "animator"),
    # Networks make these pairs, so they come after what loads networks.
    ("data.pairs", "stages", "builders", "metrics", "clips", "measure", "report", "toy_fit", "toy_score", "unseen", "reenact"),
    ("flops", "chips", "hlo", "draw", "animate", "evaluate", "train", "prepare", "aot", "plan", "demo", "ablate"),
)
ORDER = [module for row in ROWS for module in row]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources() -> dict[str, Path]:
    package = ROOT / "svdp_jax"
    paths = [path for path in package.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in paths}


def test_every_module_has_a_place():
    assert sorted(sources()) == sorted(ORDER)


def test_imports_run_one_way():
    for module, path in sources().items():
        ours = {name.removeprefix("svdp_jax.") for name in imported(path)} & set(ORDER)
        later = {name for name in ours if ORDER.index(name) >= ORDER.index(module)}
        assert not later, f"{module} imports {later}, which come after it"


def test_data_knows_no_networks():
    for module, path in sources().items():
        if module.startswith("data.") and module != "data.pairs":
            assert not {name for name in imported(path) if "models" in name or "diffusion" in name}


def test_networks_know_no_files():
    banned = {"pathlib", "os", "io", "absl", "argparse", "safetensors", "orbax", "tqdm", "logging"}
    for module, path in sources().items():
        if module.startswith(("models.", "diffusion.")):
            assert not {name.split(".")[0] for name in imported(path)} & banned


def test_svdp_jax_never_imports_convert_or_torch():
    for path in sources().values():
        assert not {name.split(".")[0] for name in imported(path)} & {"convert", "torch", "diffusers"}
