"""Programs for a GPU, as far as they go without one: traced, lowered, and their arithmetic by another kernel."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdp_jax import config as configs, parallel
from svdp_jax.models import attention, layers
from svdp_jax.planning import aot


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


def lowered(trace, config: configs.Config) -> str:
    mesh = parallel.make_mesh(config.mesh)
    with jax.numpy_dtype_promotion("standard"):
        traced = trace(config, mesh)
        with jax.set_mesh(mesh):
            return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("name", ["gpu_one", "gpu_h100"])
def test_a_train_step_is_one_that_a_gpu_can_be_given(hopper, name):
    """At full size, since what kernels take depends on lengths."""
    program = lowered(lambda *given: aot.trace_train(*given)[0], on_a_gpu(name))
    assert "__cudnn$fmhaSoftmaxBackward" in program


@pytest.mark.parametrize("name", ["gpu_one", "fast"])
def test_a_sampler_is_one_that_a_gpu_can_be_given(hopper, name):
    assert "__cudnn$fmhaSoftmax" in lowered(aot.trace_sample, on_a_gpu(name))
