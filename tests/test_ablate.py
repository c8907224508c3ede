"""The study of variants: each really is another model or another training, and the report says what was measured."""

import argparse
import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from conftest import tiny_model
from svdp_jax import ablate, checkpoint, config as configs, toy_score
from svdp_jax.data import records, toy
from svdp_jax.errors import UserError
from svdp_jax.models.svdp import SVDP

FILE = ablate.Path(__file__).parents[1] / "configs" / "ablation" / "toy.py"


def options(file, **changes) -> argparse.Namespace:
    return argparse.Namespace(**{"file": file, "workdir": file.parent, "seeds": [0, 1], "clips": 2} | changes)


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
    frames = np.arange(40)
    growing = (target + 2 * (frames // 4)[:, None, None, None]).astype(np.uint8)
    found = toy_score.endurance(growing, target, 4)
    assert found["drift"] == pytest.approx([2 / 255]) and found["error"][-1] == pytest.approx(18 / 255)
    assert found["seam"] == pytest.approx([2 / 255])
    jumping = (target + 8 * (frames // 4 % 2)[:, None, None, None]).astype(np.uint8)
    found = toy_score.endurance(jumping, target, 4)
    assert found["seam"] == pytest.approx([8 / 255])
    assert found["drift"] == pytest.approx([20 / 82.5 / 255])  # of a line through 0, 8, 0, 8, ...
    alike = toy_score.endurance(target, target, 4)
    assert all((alike[name] == 0).all() for name in alike)


VARIANTS = '''
import dataclasses, sys
sys.path.insert(0, {tests!r})
from conftest import tiny_model
from svdp_jax import config as configs

VARIANTS = {{"base": {{}}, "no past": {{"data": configs.Data(size=16, frames=2, past=0, batch=2)}}}}
QUESTIONS = {{"Is past needed?": ("no past",)}}

def get_config(variant="base"):
    model = tiny_model()
    model = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, blocks=2))
    base = configs.Config("tiny", model, configs.Data(size=16, frames=2, past=1, batch=2), dtype="float32",
        sampling=configs.Sampling(steps=2), stages=(configs.Stage(steps=3),))
    return configs.as_flags(dataclasses.replace(base, **VARIANTS[variant]))
'''


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two variants, whose trainings only draw weights; clips are noise, and half of the scores are made up of it."""
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

    def score(clips, videos):
        numbers = {"psnr": toy_score.psnr(videos, clips.target), "psnr_trivial": 8.0, "identity_error": 0.1, "leak": 0.5}
        return numbers | {"control": dict.fromkeys(toy.Motion._fields, 0.5)}

    monkeypatch.setattr(ablate, "train", train)
    monkeypatch.setattr(ablate, "unseen_clips", clips)
    monkeypatch.setattr(toy_score, "score", score)
    monkeypatch.setattr(ablate, "SEGMENTS", 3)
    return ablate.study(options(file, workdir=tmp_path / "runs"), ("--config.batch=2",)), trained


def test_the_study_is_written_and_goes_on_where_it_was(study, monkeypatch):
    study, trained = study
    ablate.run(study)
    assert trained == [("base", 0), ("base", 1), ("no past", 0), ("no past", 1)]
    words = (study.workdir / "ablation.md").read_text()
    scores = [json.loads((study.folder("no past", seed) / "scores.json").read_text()) for seed in (0, 1)]
    mean, half = np.mean([s["psnr"] for s in scores]), abs(scores[0]["psnr"] - scores[1]["psnr"]) / 2
    assert f"| no past | {mean:.2f} ± {half:.2f} |" in words and "## Is past needed?" in words
    assert "--config.batch=2" in words and (study.workdir / "error_1.svg").read_text().count("<polyline") == 2
    assert all(f"| {name} {value:g} |" in words for name, value in ablate.guided())
    monkeypatch.setattr(ablate, "measure", None)  # nothing is scored again
    ablate.run(study)
    assert len(trained) == 4 and (study.workdir / "ablation.md").read_text() == words


def test_a_file_that_is_none_is_said(tmp_path):
    with pytest.raises(UserError, match="is not there; name a file such as"):
        ablate.study(options(tmp_path / "none.py"), ())
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="defines no QUESTIONS"):
        ablate.study(options(tmp_path / "empty.py"), ())
