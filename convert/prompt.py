"""Encodes the empty prompt and one other with the three text encoders of a pipeline."""

from pathlib import Path

from flax import nnx

from convert import networks
from svdp_jax.weights import prompts
from svdp_jax.weights.checkpoint import about, load_network, replaced

FOLDERS = (*networks.TEXT, *networks.TOKENIZERS)


def write(src: Path, out: Path, prompt: str) -> None:
    """Writes `empty.safetensors` and `prompt.safetensors` into the new folder `out`.

    src: a diffusers folder, or one that `convert all` or `convert text` made. Each
    file holds text (t d) and pooled (d), and tells the prompt and the encoders' checksums.
    """
    checksums = {}

    def load(folder: str) -> nnx.Module:
        if (src / folder / "params").is_dir():
            checksums[folder] = about(src / folder)["checksum"]
            return load_network(src / folder)
        network = networks.TEXT[folder]
        config, params = networks.read(src, network, dtype=None, nonfinite=False)
        checksums[folder] = params.checksum.hex()
        graph, state = nnx.split(nnx.eval_shape(lambda: network.build(config, nnx.Rngs(0))))
        return nnx.merge(graph, replaced(state, params.arrays))

    texts = [prompts.EMPTY, prompt]
    text, pooled = prompts.encode(src, load, texts)
    out.mkdir()
    for i, name in enumerate(("empty", "prompt")):
        facts = {"prompt": texts[i]} | checksums
        prompts.save_prompt(out / f"{name}.safetensors", text[i], pooled[i], facts)
