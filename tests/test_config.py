import dataclasses
import importlib.util
from pathlib import Path

import pytest
from conftest import tiny_model

from svdp_jax import config as configs
from svdp_jax.errors import UserError

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_is_complete_and_possible(path):
    config = configs.from_flags(load(path))
    assert config.name == path.stem
    assert path.read_text().startswith('"""python -m svdp_jax.train --config configs/' + path.name)


def test_flags_and_back():
    config = configs.Config("tiny", tiny_model(), stages=(configs.Stage(3), configs.Stage(2, past=True)))
    assert configs.from_flags(configs.as_flags(config)) == config


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"model.backbone.heads": 5}, "backbone.heads=5 must divide backbone.width=32"),
        ({"model.video.heads": 3}, "video.heads=3 must divide"),
        ({"model.video.heads": 32}, "which must be even"),
        ({"model.backbone.dual": 4}, "must be below backbone.blocks"),
        ({"data.size": 20}, "must be a multiple of 8"),
        ({"data.size": 64}, "do not fit side by side"),
        ({"data.past": 5}, "data.past=5 must lie between"),
        ({"optimizer.accumulate": 3}, "must divide data.batch"),
        ({"mesh.context": 3}, "mesh.context=3 must divide data.frames=4"),
        ({"flow.dropout": (0.5, 0.1, 0.1, 0.1)}, "sum to 1"),
        ({"model.video.temporal": "some"}, "must be one of full, factorized, none"),
        ({"model.backbone.channels": 16}, "must be 3 x codec.factor"),
        ({"data.batch": "many"}, "config.data.batch must be int"),
        ({"data.frames": True}, "config.data.frames must be int"),
    ],
)
def test_what_cannot_work_is_said_in_one_sentence(change, sentence):
    config = configs.Config("tiny", tiny_model(), data=configs.Data(size=16))
    values = dataclasses.asdict(config)
    for path, value in change.items():
        *parents, name = path.split(".")
        place = values
        for parent in parents:
            place = place[parent]
        place[name] = value
    with pytest.raises(UserError) as error:
        configs.from_flags(values)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_field_that_does_not_exist_is_named():
    values = dataclasses.asdict(configs.Config("tiny", tiny_model()))
    values["data"]["frame"] = 3
    with pytest.raises(UserError, match="config.data has no field 'frame'; its fields are source"):
        configs.from_flags(values)
