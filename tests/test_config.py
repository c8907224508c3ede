import contextlib
import dataclasses
import importlib.util
import json
import math
import operator
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import flags
from conftest import tiny_model

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.training import preflight
from svdp_jax.values import declared

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))


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
        ({"optimizer.warmup": 0}, "optimizer.warmup must be from 1"),
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
    ((path, value),) = change.items()
    said = refused(path, value)
    assert sentence in said and "\n" not in said


def with_value(path: str, value) -> dict:
    """A small config with another value of one field, such as data.batch or stages[0].rate."""
    config = configs.Config("tiny", tiny_model(), data=configs.Data(size=16))
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    *parents, name = (int(key) if key.isdigit() else key for key in path.replace("[0]", ".0").split("."))
    place = values
    for parent in parents:
        place = place[parent]
    place[name] = value
    return values


def refused(path: str, value) -> str:
    """What is said of a value; "" where it is taken."""
    try:
        configs.from_flags(with_value(path, value))
        return ""
    except UserError as error:
        return str(error)


def fields(kind=configs.Config, path: str = "") -> Iterator[tuple[str, type, tuple]]:
    """Every field by path, with its type and what else it is declared to be."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        hint, marks = declared.declared(hint)
        if typing.get_origin(hint) is tuple:
            name, (hint, marks) = f"{name}[0]", declared.declared(typing.get_args(hint)[0])
        if dataclasses.is_dataclass(hint):
            yield from fields(hint, f"{path}{name}.")
        else:
            yield f"{path}{name}", hint, marks


FIELDS = list(fields())
WRONG = {int: ["many", 1.5, True, None, [1]], float: ["many", True, None, [1.0]], bool: ["yes", 1, None], str: [1, None, ["a"]]}


def test_every_number_declares_its_range():
    assert len(FIELDS) > 55
    free = [
        path for path, kind, marks in FIELDS if kind in (int, float) and not any(isinstance(m, declared.Range) for m in marks)
    ]
    assert free == []


@pytest.mark.parametrize("path, kind, marks", FIELDS, ids=[path for path, *_ in FIELDS])
def test_every_field_is_refused_beyond_its_edges_in_one_sentence(path, kind, marks):
    """And of another type; the sentence names it, before anything else is looked at."""
    (edges,) = [mark for mark in marks if isinstance(mark, declared.Range)] or [None]
    wrong = list(WRONG.get(kind, ["banana", 3, None, ["full"]]))
    if edges:
        assert math.nextafter(edges.most, math.inf) > edges.most  # a float that is finite
        beyond = [edges.least - 1, edges.most + 1, math.nan, math.inf, -math.inf, 10**400, -(10**400)]
        wrong += beyond if kind is float else [x for x in beyond if not isinstance(x, float) or x in (edges.least - 1,)]
        wrong += [value for value in (-1, 0) if not edges.least <= value <= edges.most]
    if kind is str:
        wrong += ["a\nb", "\0", "a" * 2000]
    for value in wrong:
        said = refused(path, value)
        assert said.startswith(f"config.{path} must be ") and "\n" not in said and len(said) < 300, (value, said)


SHAPES = [(path, marks) for path, kind, marks in FIELDS if kind is int and path.startswith(("model.", "data.", "mesh."))]


@pytest.mark.parametrize("path, marks", SHAPES, ids=[path for path, _ in SHAPES])
def test_the_largest_shapes_are_taken_or_said_before_a_run_starts(path, marks, tmp_path):
    """By the config as a whole, or by what looks at machine and disk."""
    largest = next(mark.most for mark in marks if isinstance(mark, declared.Range))
    said = refused(path, largest)
    assert "\n" not in said
    if not said:
        with contextlib.suppress(UserError):
            preflight.check(configs.from_flags(with_value(path, largest)), tmp_path / "work")


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "-inf", "1" * 30, "1" * 5000, "1e999", "many", ""])
def test_every_field_can_be_set_by_a_flag_or_is_refused_in_one_sentence(value):
    for path, *_ in FIELDS:
        found = flags.FlagValues()
        try:
            config = configs.parse(["train", "--config", str(FILES[0]), f"--config.{path}={value}"], found)
            assert isinstance(config, configs.Config)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 600, error


@pytest.mark.parametrize(
    "argument, sentence",
    [
        ("--config.banana=1", "config has no field 'banana'; it has name, model, data"),
        ("--config.optimizer.rate=1", "config.optimizer has no field 'rate'; it has beta1"),
        ("--config.stages[0].rates=1", r"config.stages\[0\] has no field 'rates'; it has steps"),
        ("--config.stages.rate=1", r"config.stages has no field 'rate'; it has \[0\] and so on"),
        ("--config.seed.x=1", "config.seed has no field 'x'; it has none"),
        ("--config.stages[0]=1", r"config.stages\[0\] holds fields; set one of them: steps"),
        ("config.seed=1", "config.seed=1 is no flag: these begin with --"),
    ],
)
def test_a_flag_that_names_no_field_is_told_which_there_are(argument, sentence):
    with pytest.raises(UserError, match=sentence):
        configs.parse(["train", "--config", str(FILES[0]), argument], flags.FlagValues())


@pytest.mark.parametrize("path", ["stages", "flow.dropout", "model", "data", "mesh"])
@pytest.mark.parametrize("value", [None, 3, "toy", [3], ["toy"], {"a": 1}])
def test_a_group_of_fields_that_is_none_is_said(path, value):
    assert refused(path, value).startswith("config.")


def test_a_field_that_is_missing_is_named():
    with pytest.raises(UserError, match="config.model is missing"):
        configs.from_flags({"name": "tiny"})


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"mesh.fsdp": 0}, "at least 1 device along each axis"),
        ({"topology": "banana"}, "must be empty or a slice such as v4:2x2x4"),
        ({"name": "../mine"}, "must name a folder"),
        ({"name": ""}, "must name a folder"),
        ({"stages[0].steps": 1 << 28}, "are more than the 2147483648 there are"),
    ],
)
def test_what_no_run_can_have_is_said(change, sentence):
    ((path, value),) = change.items()
    assert sentence in refused(path, value)


def test_the_list_of_what_a_toy_run_has_otherwise_is_whole():
    """Each line of it is names in parentheses behind their group; kinds and sizes, `name` and `topology` apart."""
    listed = set()
    for line in re.findall(r"^ *(\S+ \(.+\)):", configs.toy.__doc__, re.M):  # from Python 3.13 on without indentation
        for group, names in re.findall(r"([\w.]+) \(([\w ]+)\)", line):
            listed |= {name if group == "config" else f"{group}.{name}" for name in names.split()}
    toy = configs.from_flags(load(ROOT / "configs" / "toy_cpu.py"))
    full = configs.full_size("full", "", batch=16, mesh=configs.Mesh())
    whole = ("stages", "optimizer", "flow", "sampling")  # a recipe, named as one

    def values(kind, path: str = "") -> Iterator[tuple[str, object, object]]:
        for field in dataclasses.fields(kind):
            one, other = (operator.attrgetter(f"{path}{field.name}")(config) for config in (toy, full))
            if dataclasses.is_dataclass(one) and field.name not in whole:
                yield from values(one, f"{path}{field.name}.")
            else:
                yield f"{path}{field.name}", one, other

    different = {path for path, one, other in values(toy) if one != other}
    assert different - {"name"} == listed


def test_a_field_that_does_not_exist_is_named():
    values = dataclasses.asdict(configs.Config("tiny", tiny_model()))
    values["data"]["frame"] = 3
    with pytest.raises(UserError, match="config.data has no field 'frame'; its fields are source"):
        configs.from_flags(values)
