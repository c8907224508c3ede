"""Runs one model on meshes of eight simulated devices; tests/test_mesh.py reads what it prints.

    PYTHONPATH=.:tests python tests/mesh_worker.py all    # every mesh and scheme, five minutes

For every mesh and scheme: the loss and gradients against those of one device, and
the largest share of the training state that any device holds. And what `animate` makes.
"""

import os

from conftest import randomized, tiny_model  # first, for its flags of XLA

os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"

import dataclasses
import json
import sys
from functools import partial

import jax
import numpy as np
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.engines.svdp import SVDPEngine, sampling_mesh
from svdp_jax.models import attention
from svdp_jax.models.mmdit import JointBlock
from svdp_jax.models.svdp import SVDP
from svdp_jax.models.vae import PixelCodec
from svdp_jax.training import start, step as training

MESHES = ((1, 1, 8), (2, 2, 2), (1, 4, 2), (8, 1, 1))  # data, fsdp, context
SOME = (((2, 2, 2), "heads", "full"), ((1, 1, 8), "ring", "full"), ((1, 2, 4), "heads", "factorized"))
ALL = (*((mesh, scheme, "full") for mesh in MESHES for scheme in ("heads", "ring")), SOME[-1])
FRAMES = 8
SAMPLING = configs.Sampling(steps=2)


def config(mesh: tuple, scheme: str, temporal: str) -> configs.Config:
    model = tiny_model(heads=8, scheme=scheme, temporal=temporal)
    backbone = dataclasses.replace(model.backbone, width=64, blocks=2, table=24, text_width=16)
    data = configs.Data(size=32 if temporal == "factorized" else 16, frames=FRAMES, past=FRAMES, batch=8)
    return configs.Config(
        "mesh",
        dataclasses.replace(model, backbone=backbone),
        data=data,
        dtype="float32",
        mesh=configs.Mesh(*mesh),
        flow=configs.Flow(dropout=(0, 0, 0, 1)),
        stages=(configs.Stage(past=True),),
    )


def pictures(data: configs.Data, rows: list[int]) -> dict:
    random = np.random.default_rng(0)
    draw = lambda *lead: random.integers(0, 256, (data.batch, *lead, data.size, data.size, 3), np.uint8)[rows]
    return {"source": draw(), "past": draw(FRAMES), "target": draw(FRAMES), "driving": draw(FRAMES)}


def run(config: configs.Config, devices: list):
    """Loss, gradients by leaf, and the state, from weights that no zero hides."""
    mesh = parallel.make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        graph, state = start.initial_state(config, mesh)
        leaves, tree = jax.tree.flatten(state.weights)
        random = np.random.default_rng(1)
        moved = [
            jax.device_put(np.asarray(w) + 0.1 * random.standard_normal(w.shape).astype(w.dtype), w.sharding) for w in leaves
        ]
        codec_graph, frozen = start.load_frozen(config, mesh)
        gradient = jax.jit(jax.value_and_grad(training.make_loss(config, graph, codec_graph)))
        rows = parallel.own_rows(mesh, config.data.batch)
        batch = parallel.global_batch(pictures(config.data, rows), mesh, config.data.batch)
        value, slopes = gradient(jax.tree.unflatten(tree, moved), state.constants, frozen, batch, jax.random.key(3), 0)
    return float(value), [np.asarray(x) for x in jax.tree.leaves(slopes)], state


def share(state) -> float:
    """The largest part of the state's bytes on one device."""
    held = {}
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values()) / sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def compare(mesh: tuple, scheme: str, temporal: str, alone: tuple) -> dict:
    value, slopes, state = run(config(mesh, scheme, temporal), jax.devices())
    largest = max(np.abs(x).max() for x in alone[1])
    off = [np.abs(a - b).max() / (np.abs(a).max() + 1e-3 * largest) for a, b in zip(alone[1], slopes)]
    return {
        "mesh": mesh,
        "scheme": scheme,
        "temporal": temporal,
        "loss": abs(value / alone[0] - 1),
        "gradient": float(max(off)),
        "share": share(state),
    }


def animated() -> list[dict]:
    """Videos of three people at once on several devices, against those on one."""
    wanted = config((1, 1, 1), "auto", "full")
    wanted = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, frames=4, past=2), sampling=SAMPLING)
    model, codec = randomized(SVDP(wanted.model, nnx.Rngs(0)), 0.1), PixelCodec(4)
    random = np.random.default_rng(0)
    people, drivers = (random.integers(0, 256, (*lead, 3, 16, 16, 3), np.uint8) for lead in ((), (5,)))
    found = []
    for count in (1, 2, 8):
        some = None if count == jax.device_count() else sampling_mesh(wanted, jax.devices()[:count])
        engine = SVDPEngine(wanted, model, codec, mesh=some)  # by itself on all devices
        frames = np.stack(list(engine.generate(people, drivers))).astype(int)
        first = found[0]["frames"] if found else frames
        found.append({"mesh": dict(engine.mesh.shape), "frames": frames, "away": int(np.abs(frames - first).max())})
    return [{name: run[name] for name in ("mesh", "away")} for run in found]


def per_frame_block() -> str:
    """The compiled text of a joint block whose frames lie on eight devices."""
    wanted = config((1, 1, 8), "heads", "full")
    mesh = parallel.make_mesh(wanted.mesh)
    with jax.set_mesh(mesh):
        graph, weights = nnx.split(JointBlock(wanted.model.backbone, "dual", nnx.Rngs(0)))
        place = parallel.sharding(mesh, "batch", "frames")
        tokens = jax.ShapeDtypeStruct((8, FRAMES, 12, 64), "float32", sharding=place)
        text = jax.ShapeDtypeStruct((8, FRAMES, 5, 64), "float32", sharding=place)
        cond = jax.ShapeDtypeStruct((8, 1, 64), "float32", sharding=parallel.sharding(mesh, "batch"))
        attend = partial(attention.frame_attention, frames=attention.Frames(FRAMES), asked=attention.Frames(FRAMES))
        run = lambda w, x, t, c: nnx.merge(graph, w)(x, t, c, attend)
        step = jax.jit(lambda *x: parallel.constrain(run(*x), "batch", "frames"))
        return step.lower(weights, tokens, text, cond).compile().as_text()


if __name__ == "__main__":
    one = {t: run(config((1, 1, 1), "auto", t), jax.devices()[:1]) for t in ("full", "factorized")}
    wanted = ALL if "all" in sys.argv else SOME
    print(json.dumps({"runs": [compare(*w, one[w[2]]) for w in wanted], "block": per_frame_block(), "animated": animated()}))
