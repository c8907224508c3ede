"""SD3.5-M at full size against diffusers: blocks of each kind, then all 24, in f32 and bf16.

    python tests/reference/full_parity.py WORK       # all blocks: 20 GB of memory, 10 of disk
    python tests/reference/full_parity.py WORK --blocks 3

Weights are random. The two sides run one after the other, each in a process of
its own, so that only one of them is in memory. Errors are the largest
difference in units of the reference's standard deviation; diffusers' own error
in bf16 is printed as a yardstick.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

TEXT, TIME = 77, 0.6


def inputs(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "latents": (1, rows, rows, 16),
        "text": (1, TEXT, 4096),
        "pooled": (1, 2048),
        "block_image": (1, rows * rows // 4, 1536),
        "block_text": (1, TEXT, 1536),
        "block_cond": (1, 1536),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def theirs(work: Path, blocks: int, dual: int, rows: int) -> None:
    import torch
    from diffusers import SD3Transformer2DModel
    from torch_reference import randomize

    from convert.sd35 import write_config
    from svdp_jax.config import Backbone

    config = write_config(Backbone(blocks=blocks, dual=dual))
    del config["_class_name"]
    model = randomize(SD3Transformer2DModel(**config))
    model.save_pretrained(work / "source/transformer")
    tensors = {name: torch.tensor(x) for name, x in inputs(rows).items()}
    results = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        model = model.to(dtype)
        given = {key: x.to(dtype) for key, x in tensors.items()}
        for kind, number in (("dual", 0), ("plain", dual)):
            block = model.transformer_blocks[number]
            text, image = block(given["block_image"], given["block_text"], given["block_cond"])
            results |= {f"{name}_{kind}_image": image, f"{name}_{kind}_text": text}
        out = model(given["latents"].permute(0, 3, 1, 2), given["text"], given["pooled"], torch.tensor([1000 * TIME])).sample
        results[f"{name}_model"] = out.permute(0, 2, 3, 1)
    np.savez(work / "theirs.npz", **{key: x.float().numpy() for key, x in results.items()})


def ours(work: Path, rows: int) -> None:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from convert import networks
    from convert.sd35 import SD35
    from svdp_jax.weights.checkpoint import replaced

    config, params = networks.read(work / "source", SD35, None, False)
    graph, state = nnx.split(nnx.eval_shape(lambda: SD35.build(config, nnx.Rngs(0))))
    model, results = nnx.merge(graph, replaced(state, params.arrays)), {}
    del params
    run = nnx.jit(lambda network, *given: network(*given))
    for name, dtype in (("f32", jnp.float32), ("bf16", jnp.bfloat16)):
        graph, state = nnx.split(model)
        model = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), state))
        del state
        given = {key: jnp.asarray(x, dtype) for key, x in inputs(rows).items()}
        for kind in ("dual", "plain"):
            block_graph, stack = nnx.split(getattr(model, kind))
            block = nnx.merge(block_graph, jax.tree.map(lambda x: x[0], stack))
            block_inputs = (given[f"block_{key}"] for key in ("image", "text", "cond"))
            image, text = run(block, *block_inputs)
            results |= {f"{name}_{kind}_image": image, f"{name}_{kind}_text": text}
        time = jnp.array([TIME])
        results[f"{name}_model"] = run(model, given["latents"], time, given["text"], given["pooled"])
    np.savez(work / "ours.npz", **{key: np.asarray(x, np.float32) for key, x in results.items()})


def report(work: Path) -> None:
    theirs, ours = (np.load(work / f"{name}.npz") for name in ("theirs", "ours"))
    error = lambda x, y: np.abs(x - y).max() / y.std()
    print(f"{'':12} {'f32':>10} {'bf16':>10} {'diffusers bf16':>15}")
    for key in (k.removeprefix("f32_") for k in theirs.files if k.startswith("f32_")):
        reference = theirs[f"f32_{key}"]
        figures = ours[f"f32_{key}"], ours[f"bf16_{key}"], theirs[f"bf16_{key}"]
        first, second, third = (error(x, reference) for x in figures)
        print(f"{key:12} {first:10.1e} {second:10.1e} {third:15.1e}")


def main() -> None:
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("work", type=Path)
    parser.add_argument("--side", choices=["theirs", "ours"], help="run one side only")
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--rows", type=int, default=32, help="of latents, 8 pixels each")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    dual = min(13, options.blocks - 2)
    if options.side == "theirs":
        theirs(options.work, options.blocks, dual, options.rows)
    elif options.side == "ours":
        ours(options.work, options.rows)
    else:
        for side in ("theirs", "ours"):
            subprocess.run([sys.executable, *sys.argv, "--side", side], check=True)
        report(options.work)


if __name__ == "__main__":
    main()
