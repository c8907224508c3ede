"""Text to image: the whole pipeline against diffusers' from the same folder, and the command."""

import cv2
import numpy as np
import pytest
from einops import rearrange
from flax import nnx
from pipeline import build
from safetensors import safe_open
from torch_reference import REASON

import convert.__main__ as convert
from svdp_jax import draw
from svdp_jax.config import Backbone
from svdp_jax.models.mmdit import MMDiT
from svdp_jax.models.vae import Autoencoder, AutoencoderConfig
from svdp_jax.weights import prompts
from svdp_jax.weights.checkpoint import load_network, named, save_weights

SMALL = Backbone(width=32, heads=4, blocks=3, dual=1, text_width=32, pooled_width=24, channels=4, patch=2, table=24, base=8)
CODER = AutoencoderConfig((8, 16), 1, 4, 4)
PROMPT = "a portrait, seen by day"


@pytest.fixture(scope="module")
def pipeline():
    return build(SMALL, CODER)


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    """The pipeline on disk and, beside it, converted."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(folder / "diffusers")
    (folder / "diffusers/vae copy").mkdir()
    assert convert.main(["all", str(folder / "diffusers"), str(folder / "flax")]) == 0
    return folder


def encoded(folder):
    load = lambda name: load_network(folder / "flax" / name)
    text, pooled = prompts.encode(folder / "flax", load, [PROMPT, ""])
    return (text[0], pooled[0]), (text[1], pooled[1])


@pytest.mark.parametrize("steps", [1, 8, 28])
def test_schedule_is_that_of_diffusers(steps):
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=draw.SHIFT)
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(draw.schedule(steps), scheduler.sigmas.numpy(), atol=1e-6)


def test_prompts_are_encoded_as_in_diffusers(pipeline, folder):
    text, empty, pooled, empty_pooled = (x[0].numpy() for x in pipeline.encode_prompt(PROMPT, PROMPT, PROMPT))
    for ours, theirs in zip(encoded(folder), ((text, pooled), (empty, empty_pooled))):
        for x, y in zip(ours, theirs):
            assert np.abs(x - y).max() <= 1e-4 * y.std()


def test_picture_is_that_of_diffusers(pipeline, folder):
    torch = pytest.importorskip("torch", reason=REASON)
    noise = np.random.default_rng(0).normal(size=(1, 16, 16, 4)).astype(np.float32)
    theirs = pipeline(
        PROMPT,
        latents=torch.tensor(rearrange(noise, "b y x c -> b c y x")),
        num_inference_steps=8,
        guidance_scale=4.5,
        height=32,
        width=32,
        output_type="np",
    ).images
    model = load_network(folder / "flax/backbone")
    pair = encoded(folder)
    run = nnx.jit(lambda model, noise: draw.latents(model, noise, *pair, 8, 4.5))
    ours = np.asarray(draw.picture(load_network(folder / "flax/vae"), run(model, noise)))
    assert ours.std() > 10
    assert np.abs(ours - 255 * theirs).max() <= 2


def test_whole_pipeline_goes_back(folder, pipeline):
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    source, out = str(folder / "flax"), str(folder / "back")
    assert convert.main(["all", source, out, "--reverse"]) == 0
    back = diffusers.StableDiffusion3Pipeline.from_pretrained(out)
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        before = getattr(pipeline, name).state_dict()
        after = getattr(back, name).state_dict()
        assert before.keys() == after.keys()
        assert all((before[key] == after[key]).all() for key in before), name


@pytest.mark.parametrize("source", ["diffusers", "flax"])
def test_prompt_files(folder, tmp_path, source):
    out = tmp_path / "prompts"
    assert convert.main(["prompt", str(folder / source), str(out), "--prompt", PROMPT]) == 0
    for name, (text, pooled) in zip(("prompt", "empty"), encoded(folder)):
        for ours, theirs in zip(prompts.load_prompt(out / f"{name}.safetensors"), (text, pooled)):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    with safe_open(out / "prompt.safetensors", "np") as file:
        facts = file.metadata()
    assert facts["prompt"] == PROMPT
    assert set(facts) == {"prompt", "text_encoder", "text_encoder_2", "text_encoder_3"}


def test_command_takes_words(folder, tmp_path):
    words = ["--checkpoint", str(folder / "flax"), "--size", "32", "--steps", "2"]
    assert draw.main([*words, "--prompt", PROMPT, "--output", str(tmp_path / "a.png")]) == 0
    assert cv2.imread(str(tmp_path / "a.png")).shape == (32, 32, 3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Untrained weights and an encoded prompt, made without PyTorch."""
    folder, rng = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)
    networks = (("backbone", "sd35", MMDiT, SMALL), ("vae", "vae", Autoencoder, CODER))
    for part, name, module, config in networks:
        structs = named(nnx.state(nnx.eval_shape(lambda: module(config, nnx.Rngs(0)))))
        draw = lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32)
        arrays = {path: draw(leaf) for path, leaf in structs.items()}
        save_weights(folder / part, name, config, arrays)
    for name, size in (("prompt", 5), ("empty", 5), ("other", 6)):
        text, pooled = rng.normal(size=(size, 32)), rng.normal(size=24)
        path = folder / f"{name}.safetensors"
        prompts.save_prompt(path, text.astype(np.float32), pooled.astype(np.float32), {})
    return folder


def command(weights, output, *more):
    options = ["--checkpoint", weights, "--prompt-file", weights / "prompt.safetensors"]
    options += ["--output", output, "--size", "32", "--steps", "2", *more]
    return draw.main([str(option) for option in options])


def test_command(weights, tmp_path):
    assert command(weights, tmp_path / "deep/a.png") == 0
    assert command(weights, tmp_path / "b.png", "--seed", "1") == 0
    a, b = (cv2.imread(str(tmp_path / name)) for name in ("deep/a.png", "b.png"))
    assert a.shape == (32, 32, 3) and (a != b).any()


@pytest.mark.parametrize(
    "more, complaint",
    [
        (("--size", "30"), "multiple of 4 up to 96"),
        (("--size", "100"), "multiple of 4 up to 96"),
        (("--steps", "0"), "at least 1"),
        (("--output", "a.docx"), "must end in .png"),
        (("--prompt-file", "nowhere/prompt.safetensors"), "no encoded prompt"),
        (("--checkpoint", "nowhere"), "no converted weights"),
    ],
)
def test_command_says_what_is_wrong(capsys, weights, tmp_path, more, complaint):
    assert command(weights, tmp_path / "a.png", *more) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_command_refuses_the_prompt_of_another_model(capsys, weights, tmp_path):
    other = weights / "other.safetensors"
    assert command(weights, tmp_path / "a.png", "--prompt-file", str(other)) == 2
    assert "encode it again" in capsys.readouterr().err
