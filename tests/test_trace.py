"""What a run tells of its speed: traced steps, MFU, tokens a second, goodput."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.planning import chips
from svdp_jax.planning.flops import forward_flops
from svdp_jax.training import journal
from svdp_jax.training.trace import Trace


def test_only_the_steps_that_are_asked_for_are_traced(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: told.append(f"start {now}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append(f"stop {now}"))
    trace = Trace("3:4", tmp_path)
    for now in range(1, 7):
        trace.before(now)
        trace.after(now, {})
    trace.close()
    assert told == ["start 3", "stop 4"]


def test_a_trace_is_written_and_read(tmp_path):
    trace = Trace("1:1", tmp_path)
    trace.before(1)
    trace.after(1, jax.jit(jnp.sin)(jnp.ones(8)))
    [file] = (tmp_path / "profile").rglob("*.xplane.pb")
    assert list(jax.profiler.ProfileData.from_file(str(file)).planes)


@pytest.mark.parametrize("profile", ["3", "0:2", "5:4", "a:b", "1:2:3", "-1:2"])
def test_what_is_no_span_of_steps_is_refused(profile):
    with pytest.raises(UserError, match="START:STOP"):
        configs.from_flags({"name": "x", "model": configs.as_flags(configs.Config("x", configs.toy())).to_dict()["model"],
                            "profile": profile})  # fmt: skip


def test_speed_is_told_of_what_a_step_is_worth(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 2))  # two seconds from look to look
    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    records = journal.Journal(tmp_path, 0, 100, journal.Work(tokens=40, tflop=10.0, peak=50.0))
    monkeypatch.setattr(records, "say_pace", lambda seconds: None)
    records.add(1, {"loss": 1.0, "skipped": False})
    records.write()
    records.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["seconds_per_step"] == 2 and line["tokens_per_second"] == 20 and line["mfu"] == pytest.approx(0.1)
    assert line["goodput"] == pytest.approx(0.5)  # two seconds of four


def test_a_step_is_worth_three_forward_passes():
    config = configs.Config("x", configs.toy())
    device = SimpleNamespace(device_kind="TPU v5 lite")
    work = chips.step_work(config, [device] * 4)
    assert work.tflop == pytest.approx(3 * 16 * sum(forward_flops(config).values()) / 1e12)
    assert work.tokens == 16 * 5 * 16 and work.peak == 4 * 197
    assert chips.step_work(config, jax.devices()).peak == 0
