"""The study of variants: each really is another model or another training, and the report says what was measured."""

import argparse
import dataclasses
import os
import re

import numpy as np
import pytest
from conftest import tiny_model
from flax import nnx

from svdp_jax import ablate, config as configs
from svdp_jax.errors import UserError
from svdp_jax.evaluation import toy_score
from svdp_jax.models.svdp import SVDP
from svdp_jax.toy import person
from svdp_jax.training import records
from svdp_jax.weights import checkpoint

FILE = ablate.Path(__file__).parents[1] / "configs" / "ablation" / "toy.py"


def options(file, **changes) -> argparse.Namespace:
    return argparse.Namespace(**{"file": file, "workdir": file.parent, "seeds": [0, 1], "clips": 3, "at_once": 1} | changes)


def test_all_variants_are_whole_differ_and_have_the_same_budget():
    study = ablate.study(options(FILE), ())
    found = {variant: configs.from_flags(study.get_config(variant)) for variant in study.variants}
    assert len({dataclasses.replace(config, name="") for config in found.values()}) == len(found) == 10
    assert len({(configs.stage_ends(c), c.data.batch, c.data.frames, c.seed) for c in found.values()}) == 1
    assert {name for names in study.questions.values() for name in names} == set(found) - {"base"}


def test_an_unmasked_driver_is_seen_whole():
    config = configs.Config("tiny", tiny_model(), configs.Data(size=16, frames=2, past=1, batch=2))
    whole = dataclasses.replace(config, data=dataclasses.replace(config.data, masked=False))
    one = toy_score.unseen_clips(whole.data, 1)
    shown = records.toy_example(whole, None)(0)["driving"]
    for driving in (one.driving[0], shown):
        grey = (driving == driving[0, 0, 0]).all(-1)  # what a masked driver is for the most part
        assert grey.mean() < 0.1
    with pytest.raises(UserError, match="masked=False is for data.source=toy"):
        configs.check(dataclasses.replace(whole, data=dataclasses.replace(whole.data, source="videos")))


def test_endurance_of_known_videos():
    """Ten segments of four frames: an error that grows by 2 levels a segment, a jump of 8 where they meet."""
    target = np.full((1, 40, 8, 8, 3), 100, np.uint8)
    steps = np.arange(40)
    growing = (target + 2 * (steps // 4)[:, None, None, None]).astype(np.uint8)
    found = toy_score.endurance(growing, target, 4)
    assert found["drift"] == pytest.approx([25 * 2 / 255]) and found["error"][0, -1] == pytest.approx(18 / 255)
    assert found["seam"] == pytest.approx([2 / 255]) and found["seams_seen"] == [1]
    jumping = (target + 8 * (steps // 4 % 2)[:, None, None, None]).astype(np.uint8)
    found = toy_score.endurance(jumping, target, 4)
    assert found["seam"] == pytest.approx([8 / 255])
    assert found["drift"] == pytest.approx([25 * 20 / 82.5 / 255])  # of a line through 0, 8, 0, 8, ...
    alike = toy_score.endurance(target, target, 4)
    assert all((alike[name] == 0).all() for name in alike)
    noise = np.random.default_rng(0).integers(90, 110, (200, 40, 8, 8, 3)).astype(np.uint8)
    found = toy_score.endurance(noise, np.broadcast_to(target, noise.shape), 4)
    assert found["seams_seen"].mean() == pytest.approx(0.05, abs=0.03)  # chance
    assert np.isnan(toy_score.endurance(target[:, :4], target[:, :4], 4)["drift"]).all()


def runs(*psnr: list[float], control: float = 1.0) -> list[dict]:
    """Scores of runs with these numbers by clip; what is fitted is the truth, or a share of it beside noise."""
    rng = np.random.default_rng(1)
    true, noise = rng.normal(size=(2, len(psnr[0]), 4, len(person.Motion._fields)))
    one = {name: np.linspace(0, 1, len(psnr[0])) for name in ablate.MEANS}
    one |= {"hidden": np.zeros(true.shape[:2], bool), "squares": np.ones(true.shape[:2])}
    return [one | {"psnr": np.array(p), "true": true, "fitted": control * true + (1 - control) * noise} for p in psnr]


def test_differences_are_paired_and_bold_where_every_seed_agrees():
    base = runs([10.0, 20.0, 30.0, 40.0], [11.0, 21.0, 31.0, 41.0])
    better = runs([11.0, 21.0, 31.0, 41.0], [12.5, 22.5, 32.5, 42.5])
    torn = runs([9.0, 19.0, 29.0, 39.0], [14.0, 24.0, 34.0, 44.0], control=0.5)
    rows = ablate.differences({"base": base, "better": better, "torn": torn}).splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert cells[0][:3] == ["better", "**+1.25** [+1.25, +1.25]", "+0.000 [+0.000, +0.000]"]  # clips differ far more
    assert cells[1][:2] == ["torn", "+1.00 [+1.00, +1.00]"] and cells[1][2].startswith("**-")
    head, _, row = ablate.table({"base": base}).splitlines()
    assert row.startswith("| base | 25.50 ± 0.50 | 1.000 ± 0.000 |") and "hidden" not in head


def test_a_study_of_hidden_drivers_tells_them_apart():
    (base,) = runs([10.0, 20.0, 30.0, 40.0])
    base["hidden"][:, :2], base["squares"][:, :2] = True, 255**2 / 100
    head, _, row = ablate.table({"base": [base]}).splitlines()
    names, cells = ([cell.strip() for cell in line.split("|")] for line in (head, row))
    told = dict(zip(names, cells))
    assert told["hidden: PSNR, dB ↑"] == "20.00" and told["hidden: control ↑"] == "1.000"


VARIANTS = """
import dataclasses, sys
sys.path.insert(0, {tests!r})
from conftest import tiny_model
from svdp_jax import config as configs

VARIANTS = {{"base": {{}}, "no past": {{"data": configs.Data(size=16, frames=2, past=0, batch=2)}}}}
WEIGHTS = {{"driving": (1.0,), "past": (1.0, 1.4)}}
QUESTIONS = {{"Is past needed?": ("no past",)}}

def get_config(variant="base"):
    model = tiny_model()
    model = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, blocks=2))
    base = configs.Config("tiny", model, configs.Data(size=16, frames=2, past=1, batch=2), dtype="float32",
        sampling=configs.Sampling(steps=2), stages=(configs.Stage(steps=3),))
    return configs.as_flags(dataclasses.replace(base, **VARIANTS[variant]))
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two variants, whose trainings only draw weights; clips are noise, and their scores are made up of it."""
    file = tmp_path / "tiny.py"
    file.write_text(VARIANTS.format(tests=str(ablate.Path(__file__).parent)))
    trained = []

    def train(study, variant, seed):
        config = configs.from_flags(study.get_config(variant))
        _, weights, constants = nnx.split(SVDP(config.model, nnx.Rngs(seed)), nnx.Param, ...)
        if not (folder := study.folder(variant, seed) / "model").exists():
            checkpoint.save_model(folder, config, weights, constants)
            trained.append((variant, seed))

    def clips(data, count, frames):
        noise = lambda *lead: np.random.default_rng(0).integers(0, 256, (count, *lead, 16, 16, 3), np.uint8)
        return toy_score.Clips(noise(), noise(frames), noise(frames), None, None, None)

    def measured(clips, videos, segment):
        psnr = toy_score.psnr(videos, clips.target)
        return runs(psnr)[0] | {"trivial": psnr - 1} | toy_score.endurance(videos, clips.target, segment)

    monkeypatch.setattr(ablate, "train", train)
    monkeypatch.setattr(ablate, "unseen_clips", clips)
    monkeypatch.setattr(toy_score, "measured", measured)
    monkeypatch.setattr(ablate, "SEGMENTS", 3)
    return ablate.study(options(file, workdir=tmp_path / "runs"), ("--config.batch=2",)), trained


def test_the_study_is_written_and_goes_on_where_it_was(study, monkeypatch):
    study, trained = study
    ablate.run(study)
    assert trained == [("base", 0), ("base", 1), ("no past", 0), ("no past", 1)]
    words = (study.workdir / "ablation.md").read_text()
    psnr = [ablate.scores_of(study, "no past", seed)["psnr"].mean() for seed in (0, 1)]
    assert f"| no past | {np.mean(psnr):.2f} ± {abs(psnr[0] - psnr[1]) / 2:.2f} |" in words and "## Is past needed?" in words
    assert "--config.batch=2" in words and (study.workdir / "error_1.svg").read_text().count("<polyline") == 2
    assert ablate.guided(study) == [("driving", 1.0), ("past", 1.4)]
    assert all(words.count(f"| {name} {value:g} |") == 2 for name, value in ablate.guided(study))
    assert all((study.workdir / name).exists() for name in re.findall(r"\]\((\S+)\)", words))
    assert ablate.frames(study, ["base", "no past"]).shape[1] > 8 * 16
    monkeypatch.setattr(toy_score, "measured", None)  # nothing is scored again
    ablate.run(study)
    assert len(trained) == 4 and (study.workdir / "ablation.md").read_text() == words


def test_trainings_at_once_have_cores_of_their_own(study, monkeypatch):
    study, _ = study
    mine = os.sched_getaffinity(0)
    seen = []
    monkeypatch.setattr(ablate, "train", lambda study, variant, seed: seen.append((seed, os.sched_getaffinity(0))))
    ablate.train_all(study._replace(at_once=len(mine)), [("base", seed) for seed in range(20)])
    assert sorted(seed for seed, _ in seen) == list(range(20))
    assert all(len(cores) == 1 and cores <= mine for _, cores in seen) and os.sched_getaffinity(0) == mine


def test_a_training_that_fails_is_said_with_its_last_words(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(VARIANTS.format(tests=str(ablate.Path(__file__).parent)))
    study = ablate.study(options(file, workdir=tmp_path / "runs"), ("--config.data.batch=0",))
    with pytest.raises(UserError, match=r"'base', seed 3, ended early; .*: train: .*batch"):
        ablate.train(study, "base", 3)


def test_a_file_that_is_none_is_said(tmp_path):
    with pytest.raises(UserError, match="is not there; name a file such as"):
        ablate.study(options(tmp_path / "none.py"), ())
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="defines no QUESTIONS"):
        ablate.study(options(tmp_path / "empty.py"), ())
