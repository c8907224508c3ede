"""Programs for a GPU, as far as they go without one: traced, lowered, and their arithmetic by another kernel."""

import dataclasses
import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdp_jax import config as configs, parallel
from svdp_jax.models import attention, layers
from svdp_jax.planning import aot
from svdp_jax.training import step


@pytest.fixture
def hopper(monkeypatch):
    """JAX asks cuDNN for its version, and the GPU for its kind."""
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91100)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)


@pytest.mark.parametrize("policy, runs", [("attention", 1), ("full", 2)])
def test_cudnn_runs_forward_once_where_its_results_are_kept(hopper, policy, runs):
    """How often the gradient of a stack calls the kernel's forward pass."""
    x = jnp.ones((1, 127, 2, 64), jnp.bfloat16)
    body = lambda x: attention.local_attention(x, 2 * x, x, "cudnn")
    kept = jax.checkpoint(body, policy=layers.POLICIES[policy], prevent_cse=False)
    traced = str(jax.make_jaxpr(jax.grad(lambda x: kept(x).astype(jnp.float32).sum()))(x))
    assert traced.count(f"{layers.CUDNN}[") == runs
    assert traced.count("dot_product_attention_bwd_wrapper[") == 1


@pytest.mark.parametrize("queries, keys", [(7, 7), (8, 5), (5, 8)])
def test_what_makes_a_length_even_is_seen_by_none(monkeypatch, queries, keys):
    """JAX's own kernel in place of cuDNN's, which takes the same arguments."""
    native = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, implementation, **k: native(*a, **k, implementation="xla"))
    draw = lambda seed, length: jax.random.normal(jax.random.key(seed), (2, length, 2, 8))
    qkv, weight = (draw(0, queries), draw(1, keys), draw(2, keys)), draw(3, queries)

    def run(kernel):
        return jax.jit(jax.value_and_grad(lambda *x: (attention.KERNELS[kernel](*x) * weight).sum(), (0, 1, 2)))(*qkv)

    with jax.numpy_dtype_promotion("standard"):
        for a, b in zip(jax.tree.leaves(run("cudnn")), jax.tree.leaves(run("xla"))):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def on_a_gpu(name: str) -> configs.Config:
    """The config of that file as one GPU has it."""
    config = configs.from_flags(importlib.import_module(f"configs.{name}").get_config())
    backbone = dataclasses.replace(config.model.backbone, kernel="cudnn")
    return dataclasses.replace(
        config, mesh=configs.Mesh(), topology="", model=dataclasses.replace(config.model, backbone=backbone)
    )


def lowered(function, *arguments) -> str:
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("name", ["gpu_one", "gpu_h100"])
def test_a_train_step_is_one_that_a_gpu_can_be_given(hopper, name):
    """At full size, since what kernels take depends on lengths."""
    config = on_a_gpu(name)
    mesh = parallel.make_mesh(config.mesh)
    graph, state = step.abstract_state(config, mesh)
    update = step.make_update(config, graph, aot.abstract_codec(config)[0])
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        program = lowered(update, state, aot.abstract_frozen(config, mesh), aot.abstract_batch(config, mesh))
    assert "__cudnn$fmhaSoftmaxBackward" in program


@pytest.mark.parametrize("name", ["gpu_one", "fast"])
def test_a_sampler_is_one_that_a_gpu_can_be_given(hopper, name):
    config = on_a_gpu(name)
    mesh = parallel.make_mesh(config.mesh)
    graph, state = step.abstract_state(config, mesh)
    dtype = lambda x: x.dtype if jnp.issubdtype(x.dtype, jnp.integer) else jnp.bfloat16
    bare = partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, dtype(x)))
    prompt = (jax.ShapeDtypeStruct((1, *x.shape), jnp.bfloat16) for x in aot.prompt_shapes(config))
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        segment = aot.segment_sampler(config, graph)
        program = lowered(segment, bare((state.weights, state.constants)), aot.abstract_latents(config, 1), *prompt)
    assert "__cudnn$fmhaSoftmax" in program
