"""The copy alarm, on errors of known course and pictures of known drivers."""

import numpy as np
import pytest

from svdp_jax.training import alarm

STEPS = np.arange(40)
BOTH_FALL = (0.9**STEPS, 0.95**STEPS)
COPIES = (0.9**STEPS, np.maximum(0.95**STEPS, 0.8))
LEARNT = (np.maximum(0.9**STEPS, 0.3), 0.1 + np.maximum(0.9**STEPS, 0.3))


# What two runs measured every 100 steps from step 2100 to 4100, as told in the module: pairs of one person, and of two.
SELF_RUN = (
    [353, 337, 325, 319, 309, 302, 294, 290, 286, 280, 276, 271, 267, 264, 261, 259, 255, 250, 247, 244, 242],
    [692, 682, 666, 661, 655, 640, 634, 640, 643, 639, 633, 627, 633, 634, 634, 640, 642, 642, 636, 633, 633],
)
CROSS_RUN = (
    [794, 779, 772, 761, 757, 758, 751, 750, 757, 755, 749, 743, 741, 743, 747, 748, 748, 745, 741, 745, 749],
    [607, 581, 563, 548, 530, 522, 509, 503, 498, 492, 482, 478, 475, 473, 471, 468, 462, 453, 446, 442, 439],
)


def alarms(own, other):
    listening = alarm.CopyAlarm()
    return [index for index, pair in enumerate(zip(own, other, strict=True)) if listening.copying(*pair)]


def test_copying_is_heard_and_nothing_else():
    assert alarms(*BOTH_FALL) == [] and alarms(*LEARNT) == []
    heard = alarms(*COPIES)
    assert heard[0] == 5 + alarm.PATIENCE and heard[-1] == 39


def test_real_runs():
    heard = alarms(*SELF_RUN)
    assert heard and heard[-7:] == [*range(14, 21)] and alarms(*CROSS_RUN) == []


def test_noise_alone_is_no_alarm():
    noise = 1 + 0.01 * np.random.default_rng(0).normal(size=(2, 200))
    assert alarms(*noise) == []


def batch(differs):
    random = np.random.default_rng(0)
    target = random.integers(40, 200, (2, 3, 8, 8, 3), np.uint8)
    driving = np.full_like(target, alarm.face.GREY)
    driving[:, :, 2:5, 2:5] = 255 - target[:, :, 2:5, 2:5] if differs else target[:, :, 2:5, 2:5]
    return {"target": target, "driving": driving, "source": target[:, 0]}


@pytest.mark.parametrize("differs", [True, False])
def test_one_driver_is_the_target_and_the_other_looks_different(differs):
    given = batch(differs)
    own, other = alarm.drivers(given)
    window = np.s_[:, :, 2:5, 2:5]
    assert (own["driving"][window] == given["target"][window]).all()
    away = np.abs(other["driving"].astype(int) - given["target"])[window]
    assert away.mean() > alarm.LOOKS_DIFFER and (not differs or (other["driving"] == given["driving"]).all())
    for parts in (own, other):
        outside = parts["driving"].copy()
        outside[window] = alarm.face.GREY
        assert (outside == alarm.face.GREY).all() and (parts["source"] == given["source"]).all()


def test_it_is_written_down_and_said(tmp_path):
    told, measured = [], []

    class Journal:
        tell = staticmethod(lambda event, facts, words: told.append((event, words)))
        measure = staticmethod(measured.append)

    errors = iter(np.stack(COPIES, 1).ravel())
    watch = alarm.Watch(lambda: batch(False), lambda *_: next(errors), Journal)
    for _ in STEPS[:12]:
        watch.check(None, None)
    assert [m["copying"] for m in measured] == [0] * 9 + [1] * 3
    assert told[0][0] == "copying" and "copying the driver" in told[0][1]
