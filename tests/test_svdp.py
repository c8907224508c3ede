"""The video model: its size, where tokens stand, and what can see what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomized, tiny_model
from einops import rearrange
from flax import nnx

from svdp_jax import config as configs
from svdp_jax.models import layers, svdp
from svdp_jax.models.mmdit import PatchEmbed

B, F, P, TEXT = 2, 3, 2, 3
SHAPE = (4, 4, 48)  # latents of a 16x16 picture


def drawn(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def inputs():
    return {
        "z": drawn(B, F, *SHAPE),
        "time": jnp.array([0.3, 0.9]),
        "text": drawn(B, TEXT, 8, seed=1),
        "pooled": drawn(B, 8, seed=2),
    }


def conditions():
    return {"source": drawn(B, *SHAPE, seed=3), "driving": drawn(B, F, *SHAPE, seed=4), "past": drawn(B, P, *SHAPE, seed=5)}


@nnx.jit
def call(model, x, c={}):
    return model(**x, **c)


def count(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def test_full_size_has_the_published_parameters():
    model = nnx.eval_shape(lambda: svdp.SVDP(configs.sd35m(), nnx.Rngs(0)))
    assert count(model.image) == 2_243_171_520
    assert count(model) - count(model.image) == 396_625_920
    assert model.image.pos_embed.line.shape == (384, 768)


def test_full_size_runs_in_shape():
    model = configs.sd35m()
    frame = jax.ShapeDtypeStruct((1, 2, 64, 64, 16), jnp.bfloat16)
    graph, state = nnx.split(nnx.eval_shape(lambda: svdp.SVDP(model, nnx.Rngs(0))))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), state)
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    out = jax.eval_shape(
        lambda state, *args: nnx.merge(graph, state)(*args),
        state,
        frame,
        struct(1),
        struct(1, 333, 4096),
        struct(1, 2048),
        struct(1, 64, 64, 16),
        frame,
        struct(1, 1, 64, 64, 16),
    )
    assert out.shape == frame.shape and out.dtype == jnp.bfloat16


@pytest.mark.parametrize("temporal", ["full", "factorized", "none"])
def test_without_conditions_and_with_zero_gates_it_is_the_image_model(temporal):
    model = svdp.SVDP(tiny_model(temporal=temporal), nnx.Rngs(0))
    model.image = randomized(model.image)
    x = inputs()
    image = nnx.jit(lambda image, *args: image(*args))
    frames = call(model, x)
    for i in range(F):
        alone = image(model.image, x["z"][:, i], x["time"], x["text"], x["pooled"])
        np.testing.assert_allclose(frames[:, i], alone, atol=2e-5 * float(alone.std()))


def test_shift_puts_three_pictures_side_by_side():
    """Against crops computed by hand on a table that holds its own coordinates: columns first, then rows."""
    embed = PatchEmbed(tiny_model().backbone, nnx.Rngs(0))
    embed.line[...] = jnp.stack([jnp.arange(12.0)] * 16, -1)
    corners = {shift: embed.crop(2, 2, shift)[:, [16, 0]].tolist() for shift in (-1, 0, 1)}
    assert corners[0] == [[5, 5], [5, 6], [6, 5], [6, 6]]
    assert corners[svdp.SHIFTS["source"]] == [[5, 3], [5, 4], [6, 3], [6, 4]]
    assert corners[svdp.SHIFTS["driving"]] == [[5, 7], [5, 8], [6, 7], [6, 8]]


def test_shift_beyond_the_table_is_an_error():
    embed = PatchEmbed(tiny_model().backbone, nnx.Rngs(0))
    with pytest.raises(ValueError, match="leave the 12"):
        embed.crop(6, 6, 1)


def reference_attention(layer, tokens, cond, angles):
    """VideoAttention in full mode, one query and one key at a time, in numpy."""
    tokens, cond, angles = (np.asarray(x, np.float64) for x in (tokens, cond, angles))
    weights = {
        k: np.asarray(v[...], np.float64)
        for k, v in ((".".join(map(str, p)), leaf) for p, leaf in nnx.to_flat_state(nnx.state(layer)))
    }
    linear = lambda name, x: x @ weights[f"{name}.kernel"] + weights[f"{name}.bias"]
    rms = lambda name, x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weights[f"{name}.scale"]
    out = np.empty_like(tokens)
    for b in range(len(tokens)):
        x = rearrange(tokens[b], "f n d -> (f n) d")
        turn = rearrange(angles, "f n k -> (f n) k")
        shift, scale, gate = np.split(linear("norm", cond[b] / (1 + np.exp(-cond[b]))), 3)
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        y = y * (1 + scale) + shift
        heads = []
        for h in range(layer.heads):
            q, k, v = (rearrange(linear(to, y), "l (h k) -> h l k", h=layer.heads)[h] for to in ("to_q", "to_k", "to_v"))

            def turned(a):
                half = a.shape[-1] // 2
                z = (a[:, :half] + 1j * a[:, half:]) * np.exp(1j * turn)
                return np.concatenate([z.real, z.imag], -1)

            q, k = turned(rms("norm_q", q)), turned(rms("norm_k", k))
            rows = []
            for i in range(len(q)):
                scores = np.array([q[i] @ k[j] for j in range(len(k))]) / np.sqrt(q.shape[-1])
                p = np.exp(scores - scores.max())
                rows.append((p / p.sum()) @ v)
            heads.append(np.stack(rows))
        out[b] = rearrange(x + gate * linear("to_out", np.concatenate(heads, -1)), "(f n) d -> f n d", f=tokens.shape[1])
    return out


def test_full_video_attention_equals_a_plain_softmax():
    layer = randomized(svdp.VideoAttention(tiny_model(), nnx.Rngs(0)))
    tokens, cond = drawn(B, P + F, 4, 32), drawn(B, 32, seed=1)
    angles = svdp.rotary_angles(F, P, 2, 2, 16)
    expected = reference_attention(layer, tokens, cond, angles)
    np.testing.assert_allclose(layer(tokens, cond[:, None], angles[None]), expected, atol=1e-4)


def test_rotary_positions_are_relative_and_past_comes_before_zero():
    angles = svdp.rotary_angles(frames=4, past=2, rows=2, columns=3, size=32)
    assert angles.shape == (6, 6, 16)
    assert angles[2, 0].tolist() == [0] * 16  # time 0, top left
    np.testing.assert_allclose(angles[1, 0], -angles[3, 0])  # times -1 and 1
    q, k = drawn(1, 1, 1, 32), drawn(1, 1, 1, 32, seed=1)
    turned = lambda x, i: svdp.rotate(x[None], angles[None, i : i + 1, :1])
    dot = lambda i, j: float((turned(q, i) * turned(k, j)).sum())
    assert dot(0, 1) == pytest.approx(dot(3, 4), abs=1e-4)
    assert dot(0, 1) != pytest.approx(dot(0, 3), abs=1e-2)


def reach(temporal):
    """Which tokens (f n) move when token 0 of frame 1 does, in one layer of attention."""
    layer = randomized(svdp.VideoAttention(tiny_model(temporal=temporal), nnx.Rngs(0)))
    tokens, cond = drawn(1, F, 4, 32), drawn(1, 32, seed=1)
    angles = svdp.rotary_angles(F, 0, 2, 2, 16)
    changed = tokens.at[:, 1, 0].set(drawn(1, 32, seed=2))
    run = lambda x: layer(x, cond[:, None], angles[None])
    moved = run(changed) - run(tokens)
    return np.abs(moved[0]).max(-1) > 1e-6


def test_full_attention_reaches_every_token_of_every_frame():
    assert reach("full").all()


def test_factorized_attention_reaches_only_its_own_position():
    moved = reach("factorized")
    assert moved[:, 0].all() and not moved[:, 1:].any()


@pytest.mark.parametrize("temporal, reaches", [("full", True), ("factorized", True), ("none", False)])
def test_a_frame_reaches_the_others_only_through_time(temporal, reaches):
    model = randomized(svdp.SVDP(tiny_model(temporal=temporal), nnx.Rngs(0)))
    x, c = inputs(), conditions()
    changed = call(model, x | {"z": x["z"].at[:, 1].add(1.0)}, c) - call(model, x, c)
    assert np.abs(changed[:, 1]).max() > 1e-3
    assert (np.abs(changed[:, [0, 2]]).max() > 1e-4) == reaches


@pytest.mark.parametrize("name", ["source", "driving", "past"])
def test_every_condition_reaches_the_prediction_and_can_be_left_out(name):
    model = randomized(svdp.SVDP(tiny_model(), nnx.Rngs(0)))
    x, c = inputs(), conditions()
    whole = call(model, x, c)
    changed = call(model, x, c | {name: c[name] + 1.0})
    dropped = call(model, x, {other: c[other] for other in c if other != name})
    assert np.abs(changed - whole).max() > 1e-4 and np.abs(dropped - whole).max() > 1e-4


def test_source_and_driving_take_no_part_in_time():
    """Driving frame 1 reaches frame 0 only after z has carried it through a block's attention."""
    config = tiny_model()
    one_block = configs.Backbone(**{**vars(config.backbone), "blocks": 1, "dual": 0})
    model = randomized(svdp.SVDP(configs.Model(one_block, config.video, config.codec), nnx.Rngs(0)))
    x, c = inputs(), conditions()
    changed = call(model, x, c | {"driving": c["driving"].at[:, 1].add(1.0)}) - call(model, x, c)
    assert np.abs(changed[:, 1]).max() > 1e-3 and np.abs(changed[:, [0, 2]]).max() == 0


@pytest.mark.parametrize("policy", ["full", "attention"])
def test_keeping_less_for_the_backward_pass_changes_no_gradient(policy):
    config = tiny_model()
    short = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, blocks=2))
    model = randomized(svdp.SVDP(short, nnx.Rngs(0)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    x, c = inputs(), conditions()

    def loss(params, policy):
        return (nnx.merge(graph, params, rest)(**x, **c, policy=policy) ** 2).mean()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    kept = gradient(params, "none")
    remade = gradient(params, policy)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(remade)):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("norm", [layers.layer_norm, layers.rms_norm])
def test_of_norms_nothing_wide_is_kept_for_the_backward_pass(norm):
    """In a loop whose body is computed again, as the model's blocks are, the compiler would share the wide ones."""
    x = jnp.ones((2, 8), jnp.bfloat16)
    _, back = jax.vjp(norm, x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(back)} <= {"bfloat16"}
    body = jax.checkpoint(lambda x, _: (norm(x), None), policy=layers.POLICIES["full"], prevent_cse=False)
    program = jax.jit(jax.grad(lambda x: jax.lax.scan(body, x, length=3)[0].astype(jnp.float32).sum())).lower(x).as_text()
    assert "optimization_barrier" in program


def test_position_table_is_the_published_formula():
    """First and last columns of row 5, written out for d = 8, base 4 in a table of 12."""
    table = layers.position_table(12, 8, 4)
    column, row = 7 * 4 / 12, 5 * 4 / 12
    expected = [f(v * w) for v in (column, row) for f in (np.sin, np.cos) for w in (1, 0.01)]
    np.testing.assert_allclose(table[5, 7], expected, atol=1e-6)
