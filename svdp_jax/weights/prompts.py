"""Prompts, encoded once with CLIP-L, CLIP-G and T5 into a small file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from svdp_jax.buckets import storage
from svdp_jax.config import Config
from svdp_jax.errors import UserError
from svdp_jax.models.text import sd3_prompt

EMPTY = ""
PORTRAIT = "a portrait of a person, head and shoulders, looking at the camera"
# Encoder and tokenizer by their folders in a pipeline, and how many tokens each reads.
CLIPS = (("text_encoder", "tokenizer", 77), ("text_encoder_2", "tokenizer_2", 77))
STACKS = ("layers", "block")  # of CLIP and of T5
T5 = ("text_encoder_3", "tokenizer_3", 256)
# Tokens of a prompt by `config.model.video.text`: both CLIPs side by side, then T5.
TEXTS = {"all": CLIPS[0][2] + T5[2], "clip": CLIPS[0][2]}


def encode(folder: Path, load: Callable[[str], nnx.Module], prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Text (b t d) and pooled (b d) of each prompt, in float32.

    folder holds the tokenizers; `load` gives the encoder of a folder's name.
    Encoders are loaded one after the other, so that memory is that of the largest.
    """

    def run(encoder, tokenizer, length):
        tokens = tokenize(folder / tokenizer, prompts, length)
        return jax.device_get(nnx.jit(lambda model, x: model(x))(widened(load(encoder)), tokens))

    text, pooled = sd3_prompt(*(run(*clip) for clip in CLIPS), run(*T5))
    return np.asarray(text, np.float32), np.asarray(pooled, np.float32)


def tokenize(folder: Path, prompts: list[str], length: int) -> np.ndarray:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError("to encode a prompt, pip install 'svdp_jax[convert]'.") from None
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; a prompt needs the three tokenizers' folders.")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="np")
    return tokens["input_ids"].astype(np.int32)


def widened(model: nnx.Module) -> nnx.Module:
    """Computes in float32: all but the stacks, whose layers are widened one at a time."""
    # T5 leaves the range of float16, in which SD3.5 stores it; whole in float32 it is 19 GB.
    graph, state = nnx.split(model)
    leaves = [
        (path, leaf if path[0] in STACKS else leaf.replace(leaf[...].astype(jnp.float32)))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def save_prompt(path: Path, text: np.ndarray, pooled: np.ndarray, facts: dict[str, str]) -> None:
    save_file({"text": text, "pooled": pooled}, path, facts)


def load_prompt(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """An encoded prompt: text (t, d) and pooled (d,)."""
    try:
        arrays = load_file(storage.here(path))
        return arrays["text"], arrays["pooled"]
    except Exception as error:
        raise UserError(f"{path} is no encoded prompt ({error}); make one with `python -m convert prompt`.") from None


def prompt_of(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Text (t, w) and pooled (w,) of the config's prompt; zeros where it has none."""
    backbone = config.model.backbone
    if not config.prompt:
        return np.zeros((1, backbone.text_width), np.float32), np.zeros(backbone.pooled_width, np.float32)
    text, pooled = load_prompt(Path(config.prompt))
    return text[: TEXTS[config.model.video.text]], pooled
