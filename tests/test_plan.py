import dataclasses

import jax
import jax.numpy as jnp
import pytest
from conftest import tiny_model
from flax import nnx

from svdp_jax import config as configs, parallel, plan
from svdp_jax.errors import UserError
from svdp_jax.models.svdp import SVDP
from svdp_jax.planning import aot, chips, flops, hlo
from svdp_jax.weights import checkpoint


def full() -> configs.Config:
    return configs.full_size("full", "v4:2x2x4", 16, configs.Mesh(data=1, fsdp=4, context=4))


def test_flops_of_the_full_model_are_those_counted_by_hand():
    """f=16, p=4, n=1024, t=333, d=1536, 24 blocks, 13 of them dual; multiplied out on paper. Of the last
    block, queries, output and MLP of the current frames alone, and no past frames with text."""
    config = full()
    model = dataclasses.replace(config.model, video=dataclasses.replace(config.model.video, text="all"))
    config = dataclasses.replace(config, model=model)
    counted = {part: value / 1e12 for part, value in flops.forward_flops(config).items()}
    expected = {
        "image stream": 70.58,
        "text stream": 8.75,
        "joint attention": 27.60,
        "attn2 projections": 13.1,
        "attn2 attention": 12.4,
        "video projections": 9.24,
        "video attention": 61.33,
    }
    for part, value in expected.items():
        assert counted[part] == pytest.approx(value, abs=0.06), part
    assert sum(counted.values()) == pytest.approx(203, abs=1)


def test_frozen_kernels_need_no_gradients():
    """With attention through time alone to learn, a third less work but for what is it and what has no weights."""
    config = dataclasses.replace(full(), learn="video")
    parts = flops.forward_flops(config)
    assert flops.train_flops(full()) == 3 * sum(parts.values())
    spared = sum(parts[part] for part in ("image stream", "text stream", "attn2 projections"))
    assert flops.spared_flops(config) == pytest.approx(spared, rel=1e-3)
    assert flops.train_flops(config) == pytest.approx(3 * sum(parts.values()) - spared, rel=1e-3)
    # Beside a kernel of i x o, rank 16 has 16 (i + o) numbers: in a stream, of 4 kernels d x d and 2 of d x 4d, 288 d of 12 d².
    beside = flops.forward_flops(dataclasses.replace(full(), learn="adapter"))["low-rank parts"]
    streams = (parts["image stream"] + parts["text stream"]) * 288 / (12 * 1536)
    assert beside == pytest.approx(streams + parts["attn2 projections"] * 32 / 1536, rel=0.01)


def test_cached_references_take_little_of_a_step():
    """At f=16, p=4, 512²; and with absent conditions dropped the branches of guidance cost what they hold."""
    joint = full()
    video = dataclasses.replace(joint.model.video, references="cached", null="drop")
    cached = dataclasses.replace(joint, model=dataclasses.replace(joint.model, video=video))
    whole = sum(flops.forward_flops(joint).values())
    assert sum(flops.step_flops(cached).values()) < 0.62 * whole
    by_level = [sum(flops.forward_flops(cached, level).values()) for level in range(4)]
    assert by_level == sorted(by_level) and by_level[0] < 0.6 * by_level[3]
    told = dataclasses.replace(cached, model=dataclasses.replace(cached.model, told=True), sampling=configs.Sampling(steps=4))
    four = sum(flops.once_flops(told).values()) + 4 * sum(flops.step_flops(told).values())
    assert sum(flops.segment_flops(told).values()) == pytest.approx(four)


@pytest.mark.parametrize(
    ("temporal", "references"), [("full", "joint"), ("full", "cached"), ("factorized", "joint"), ("none", "cached")]
)
def test_flops_are_those_that_the_compiler_counts(temporal, references):
    model = tiny_model(temporal=temporal, references=references)
    backbone = dataclasses.replace(model.backbone, width=128, kernel="xla")
    model = dataclasses.replace(model, backbone=backbone)
    data = configs.Data(size=32, frames=4, past=2, batch=1)
    config = configs.Config("count", model, data=data, dtype="float32")
    network = nnx.eval_shape(lambda: SVDP(model, nnx.Rngs(0)))
    shape = lambda *lead: jax.ShapeDtypeStruct((1, *lead, 8, 8, 48), jnp.float32)
    text, pooled = (jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in aot.prompt_shapes(config))
    graph, state = nnx.split(network)
    call = jax.jit(lambda state, z, t, c, p, source, driving, past: nnx.merge(graph, state)(z, t, c, p, source, driving, past))
    time = jax.ShapeDtypeStruct((1,), jnp.float32)
    lowered = call.lower(state, shape(4), time, text, pooled, shape(), shape(4), shape(2))
    counted = lowered.compile().cost_analysis()["flops"]
    # The compiler counts norms, softmax and activations too.
    assert 0.97 < counted / sum(flops.forward_flops(config).values()) < 1.05


PROGRAM = """HloModule step

%body (carry: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %gathered = bf16[8,16]{1,0} all-gather(%x), replica_groups=[4,4]<=[16], dimensions={0}
  %swapped = f32[4,4]{1,0} all-to-all(%y), replica_groups={{0,1},{2,3}}, dimensions={0}
}

%condition (carry: (s32[], bf16[8,16])) -> pred[] {
  %less = pred[] compare(%i, %n), direction=LT
}

%up_to_three (carry: (s32[], bf16[8,16])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%i, %constant.1), direction=LT
}

%named (carry: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %back = bf16[8]{0} reduce-scatter(%z), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, dimensions={0}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (s32[], bf16[8,16]) while(%tuple), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  %second = (s32[], bf16[8,16]) while(%tuple), condition=%up_to_three, body=%named
  ROOT %sum = f32[8]{0} all-reduce(%p), replica_groups=[1,16]<=[16], to_apply=%add
}
"""


def test_collectives_in_loops_count_as_often_as_they_run():
    found = hlo.collectives(PROGRAM)
    assert found["all-gather"] == {"calls": 24, "bytes": pytest.approx(24 * 8 * 16 * 2 * 3 / 4)}
    assert found["all-to-all"] == {"calls": 24, "bytes": pytest.approx(24 * 16 * 4 / 2)}
    assert found["all-reduce"] == {"calls": 1, "bytes": pytest.approx(8 * 4 * 2 * 15 / 16)}
    assert found["reduce-scatter"] == {"calls": 3, "bytes": pytest.approx(3 * 8 * 2 * 7)}
    assert set(found) == {"all-gather", "all-to-all", "all-reduce", "reduce-scatter"}


def test_time_is_work_over_rates():
    """One chip at 100 TFLOP/s for matmuls and 50 for attention, 1 GB over 10 GB/s."""
    config, chip = full(), chips.Chip(200, 32, 1000, 10, 0.5, {64: 50, 128: 50})
    work = {"image stream": 1e15, "joint attention": 1e14, "attn2 attention": 0, "video attention": 0}
    times = chips.seconds(config, chip, work, clips=1, chips=1, bytes_sent=1e9, passes=(4, 3))
    assert times == {"matmuls": pytest.approx(40), "attention": pytest.approx(6), "network": pytest.approx(0.1)}


def out_of_memory(*_):
    raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 40.11G of 30.75G hbm. Exceeded hbm capacity by 9.36G."
    )


def test_out_of_memory_is_a_finding_with_advice():
    step = plan.attempt(out_of_memory, full(), chips.CHIPS["v4"], None)
    assert not step["fits"] and step["used"] == 40.11
    config = dataclasses.replace(full(), remat="attention")
    lines = plan.advice(config, mesh_of(1), used=40.11)
    rows = "\n".join(plan.step_rows(step | {"advice": lines}))
    assert "out of memory | uses 40.1 GiB" in rows and "does not fit; try | --config.remat=full saves" in rows


def test_other_faults_are_not_taken_for_out_of_memory():
    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        plan.attempt(broken, full(), chips.CHIPS["v4"], None)


def test_search_takes_the_first_that_fits(monkeypatch):
    """Of candidates in the order of their expected time, where only remat=full fits; of one chip the longest clip, too."""

    def fake(config, chip, mesh):
        peak = {"none": 90.0, "attention": 40.0, "full": 4.0}[config.remat] * config.data.frames
        return {"memory": {"peak": peak}, "step_seconds": 1.0, "mfu": 0.5}

    monkeypatch.setattr(plan, "plan_train", fake)
    monkeypatch.setattr(aot, "slice_devices", lambda topology: jax.devices()[:1])
    tiny = configs.Config("tiny", tiny_model(), data=configs.Data(size=16, frames=2, past=1, batch=4))
    found = plan.search(tiny, "v4:1x1x1")
    assert [step["fits"] for step in found] == [False] * (len(found) - 1) + [True]
    assert found[0]["flags"].startswith("--config.data.frames=16 --config.data.past=4 --config.mesh")
    assert found[-1]["flags"].startswith("--config.data.frames=8 --config.data.past=2 --config.mesh")
    assert found[-1]["flags"].endswith("accumulate=1 --config.remat=full")
    assert "best: --config.data.frames=8" in plan.search_table(found, chips.CHIPS["v4"])


def test_search_leaves_the_clip_of_several_chips_as_it_is(monkeypatch):
    fits = {"memory": {"peak": 1.0}, "step_seconds": 1.0, "mfu": 0.5}
    monkeypatch.setattr(plan, "plan_train", lambda config, *_: fits | {"clip": config.data.frames})
    monkeypatch.setattr(plan, "slice_of", lambda topology: (chips.CHIPS["v4"], [*range(4)]))
    monkeypatch.setattr(plan, "candidates", lambda config, *_: [(1.0, config, jax.make_mesh((1,), ("data",)))])
    [found] = plan.search(configs.Config("tiny", tiny_model(), data=configs.Data(size=16, frames=2, past=1)), "v4:2x2x1")
    assert found["clip"] == 2 and "data.frames" not in found["flags"]


def test_the_price_of_a_chip_becomes_that_of_steps_and_minutes(monkeypatch):
    """16 chips at 3.6 an hour: 0.016 a second for all, 0.001 for one."""
    step = {"memory": {"peak": 1.0}, "collectives": {}, "seconds": {}, "step_seconds": 2.0, "mfu": 0.5}
    monkeypatch.setattr(plan, "plan_train", lambda *_: dict(step))
    monkeypatch.setattr(plan, "plan_sample", lambda *_: step | {"chip_seconds_per_frame": 0.5})
    monkeypatch.setattr(aot, "slice_devices", lambda topology: jax.devices()[:1] * 16)
    monkeypatch.setattr(parallel, "make_mesh", lambda config, devices, mesh=mesh_of(1): mesh)
    found = plan.plan(full(), "v4:2x2x4", price=3.6)
    assert found["train"]["cost"] == {"1 000 steps": pytest.approx(1000 * 2 * 0.016)}
    assert found["sample"]["cost"] == {"a minute of video (25 fps)": pytest.approx(60 * 25 * 0.5 * 0.001)}
    assert "| 1 000 steps: cost | 32.00 |" in plan.table(found)
    assert "cost" not in plan.table(plan.plan(full(), "v4:2x2x4"))


def test_stages_of_other_shapes_are_planned_each(monkeypatch):
    """The largest is the plan, in memory, whichever comes first; a sampler has the shapes of the last."""
    changes = ({"frames": 4}, {"frames": 32, "path": "elsewhere"}, {"frames": 4, "path": "elsewhere"}, {"batch": 8})
    stages = tuple(configs.Stage(data=configs.Changes(**change)) for change in changes)
    step = {"collectives": {}, "seconds": {}, "step_seconds": 2.0, "mfu": 0.5}
    taken = lambda config, *_: step | {"memory": {"peak": float(config.data.frames * config.data.batch) / 8}}
    monkeypatch.setattr(plan, "plan_train", taken)
    monkeypatch.setattr(plan, "plan_sample", taken)
    monkeypatch.setattr(aot, "slice_devices", lambda topology: jax.devices()[:1] * 16)
    monkeypatch.setattr(parallel, "make_mesh", lambda config, devices, mesh=mesh_of(1): mesh)
    found = plan.plan(dataclasses.replace(full(), stages=stages), "v4:2x2x4")
    assert found["train"]["used"] == 64 and not found["train"]["fits"] and found["train"]["advice"]
    assert {name: stage["used"] for name, stage in found["train"]["stages"].items()} == {
        "stages[1]": 64, "stages[3]": 16, "stages[0] and stages[2]": 8,
    }  # fmt: skip
    assert found["sample"]["used"] == 16
    assert sum(found["tflop_forward"].values()) > 2 * sum(flops.forward_flops(full()).values()) / 1e12
    table = plan.table(found)
    assert "| stages[1] | 64.0 GiB, does not fit, 2.000 s a step, MFU 50 % |" in table
    assert "stages" not in plan.plan(full(), "v4:2x2x4")["train"]


def test_a_step_that_encodes_what_it_reads_takes_as_much_longer():
    """The published encoder of 512x512 is 1.1 TFLOP, of 37 frames beside a train step of 3 x 192."""
    videos = dataclasses.replace(full(), data=dataclasses.replace(full().data, source="videos"))
    chip = chips.CHIPS["v4"]
    records, encoded = (plan.train_seconds(config, chip, mesh_of(1), 0) for config in (full(), videos))
    work = flops.encoding_flops(videos)
    assert encoded == records | {"encoding": pytest.approx(16 * work / 1e12 / (275 * 0.589))}
    assert work / flops.train_flops(videos) == pytest.approx(0.07, abs=0.01)
    assert not flops.encoding_flops(full())


def test_a_codec_is_counted_as_a_training_holds_it():
    codec = configs.Codec("small")
    config = configs.Config("x", configs.miniature(), configs.Data(size=128), dtype="bfloat16")
    held = checkpoint.named(nnx.state(checkpoint.load_codec(codec, config.dtype)))
    planned = checkpoint.named(aot.abstract_frozen(config, mesh_of(1)).codec)
    told = lambda arrays: {name: (x.shape, x.dtype) for name, x in arrays.items()}
    assert told(planned) == told(held) and {x.dtype.name for x in planned.values()} == {"bfloat16"}


def mesh_of(count: int):
    return parallel.make_mesh(configs.Mesh(), jax.devices()[:count])


@pytest.mark.parametrize("topology", ["v9:2x2", "v4", "v4:two", ""])
def test_a_slice_that_is_none_is_said(topology):
    with pytest.raises(UserError, match="is no TPU slice; write one such as v4:2x2x4"):
        aot.slice_devices(topology)


def test_training_for_a_slice_that_is_not_here_points_to_plan():
    with pytest.raises(UserError, match="for 16 chips of TPU v4 .* svdp_jax.plan"):
        parallel.need("v4:2x2x4")
    parallel.need("")


@pytest.mark.parametrize("name", ["tpu_v4", "tpu_v5e", "tpu_v5p", "tpu_v6e", "gpu_h100"])
def test_every_full_size_config_is_whole_and_divides_its_slice(name):
    module = __import__(f"configs.{name}", fromlist=["get_config"])
    config = configs.from_flags(module.get_config())
    m = config.mesh
    chips = m.data * m.fsdp * m.context
    shape = config.topology.partition(":")[2] or "8"
    count = 1
    for side in shape.split("x"):
        count *= int(side)
    assert chips == count and config.data.batch % (m.data * m.fsdp) == 0
