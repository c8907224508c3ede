import importlib.util
import json
import runpy
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from svdp_jax import config as configs
from svdp_jax.models import attention, splash, tiles

BENCH = Path(__file__).parents[1] / "tpu_scripts" / "bench.py"


def test_attention_is_softmax_attention():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, 3, 8)) for i in range(3))
    scores = np.einsum("blhk,bmhk->bhlm", q, k) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.einsum("bhlm,bmhk->blhk", weights, v)
    halves = ([x[:, :2], x[:, 2:]] for x in (q, k, v))
    attended = jnp.concatenate(attention.picture_attention(*halves), 1)
    np.testing.assert_allclose(attended, expected, atol=1e-5)


def test_frames_see_themselves_their_text_and_their_references():
    """Two current frames with two references each, one past frame: against attention of each by itself."""
    frames = attention.Frames(current=2, past=1, references=2)
    image = [jax.random.normal(jax.random.key(i), (1, 7, 4, 2, 8)) for i in range(3)]  # b r n h k
    text = [jax.random.normal(jax.random.key(i), (1, 3, 5, 2, 8)) for i in range(3, 6)]  # b (f p) t h k
    out, text_out = attention.frame_attention(*map(list, zip(image, text)), "xla", frames, frames)
    for frame, rows in enumerate(([0, 3, 4], [1, 5, 6], [2])):
        parts = [[*(x[:, row] for row in rows), t[:, frame]] for x, t in zip(image, text)]
        *expected, expected_text = attention.picture_attention(*parts, "xla")
        for row, tokens in zip(rows, expected):
            np.testing.assert_allclose(out[:, row], tokens, atol=1e-5)
        np.testing.assert_allclose(text_out[:, frame], expected_text, atol=1e-5)
    # Asked for the current frames alone, they come out the same.
    seen = [[x[:, [0, 1, *range(3, 7)]], t[:, :2]] for x, t in zip(image, text)]
    (alone,) = attention.frame_attention(
        [image[0][:, :2]], *seen[1:], "xla", frames._replace(past=0), attention.Frames(current=2)
    )
    np.testing.assert_allclose(alone, out[:, :2], atol=1e-5)


def test_splash_pads_little_and_its_tiles_divide():
    for length, padded in ((3405, 3456), (1357, 1536), (20480, 20480), (1024, 1024), (3072, 3072)):
        found, blocks = splash.fitting(length, length, tiles.Tiles())
        assert found == (padded, padded)
        assert padded % blocks.block_q == padded % blocks.block_kv == 0
        assert blocks.block_kv % blocks.block_kv_compute == 0
        assert blocks.block_q >= 768 and blocks.block_kv <= 2048


def test_splash_and_its_gradients_are_those_of_softmax_attention(monkeypatch):
    """The TPU's kernel, interpreted: 200 tokens, so the padding counts."""
    make = splash.splash_kernel.make_splash_mha_single_device
    interpreted = lambda *a, **k: make(*a, **k, interpret=True)
    monkeypatch.setattr(splash.splash_kernel, "make_splash_mha_single_device", interpreted)
    qkv = [jax.random.normal(jax.random.key(i), (1, 200, 1, 64)) for i in range(4)]

    def run(kernel):
        value = lambda *x: (attention.KERNELS[kernel](*x) * qkv[3]).sum()
        with jax.numpy_dtype_promotion("standard"):
            return jax.jit(jax.value_and_grad(value, (0, 1, 2)))(*qkv[:3])

    for a, b in zip(jax.tree.leaves(run("splash")), jax.tree.leaves(run("xla"))):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


def test_tiles_are_timed_and_the_fastest_written_down(monkeypatch, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("bench", BENCH)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    make = splash.splash_kernel.make_splash_mha_single_device
    monkeypatch.setattr(splash.splash_kernel, "make_splash_mha_single_device", lambda *a, **k: make(*a, **k, interpret=True))
    monkeypatch.setattr(tiles, "TILES", {("another chip", 64): tiles.Tiles()})
    toy = configs.Config("tiny", configs.toy(), configs.Data(size=64, frames=3, past=1))
    with jax.numpy_dtype_promotion("standard"):
        rows = bench.tune(toy, 1, ((128, 256), (256,), (128,), (128,)))
    timed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    fastest = {name: timed[0][name] for name in tiles.Tiles._fields}
    assert len(timed) == 2 and timed[0]["seconds"] <= timed[1]["seconds"] and timed[0]["queries"] != timed[1]["queries"]
    assert rows == {("another chip", 64): tiles.Tiles(), (jax.devices()[0].device_kind, 32): tiles.Tiles(**fastest)}
    shutil.copyfile(tiles.__file__, tmp_path / "tiles.py")
    for _ in range(2):  # in place of none, and of itself
        bench.written(tmp_path / "tiles.py", rows)
        module = runpy.run_path(str(tmp_path / "tiles.py"))
        assert module["TILES"] == rows and module["tiles_for"](7) == tiles.Tiles()
    monkeypatch.setattr(tiles, "TILES", rows)
    blocks = splash.fitting(256, 256, tiles.tiles_for(32))[1]
    assert blocks.block_q == fastest["queries"] and blocks.block_kv_compute == 128
