import ast
import json
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import jaxllm.config
from jaxllm.config import (
    OBJECTIVES_OF,
    DataConfig,
    EvalConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
    TransformerConfig,
    UserError,
    differences,
    from_dict,
    to_dict,
)

UNUSUAL = RunConfig(
    name="unusual",
    seed=7,
    output="/somewhere/else",
    model=TransformerConfig(attention_softcap=30.0, sliding_window=128, qk_norm="head", norm="layer"),
    data=DataConfig(
        sources=(SourceConfig(), SourceConfig(kind="jsonl", path="a/**/*.jsonl", weight=0.1)),
        packing="concatenate",
    ),
    tokenizer=TokenizerConfig(path="tokenizer.json", extra_tokens=("<mask>", "<sep>")),
    objective=ObjectiveConfig(kind="infilling", noise=0.2, target_length=700),
    optimizer=OptimizerConfig(kind="muon", clip_norm=None, schedule=ScheduleConfig(kind="wsd")),
    train=TrainConfig(ema_decay=0.999, skip_nonfinite=True),
    eval=EvalConfig(prompts=("one", "two words", "ü")),
)


@pytest.mark.parametrize("config", [RunConfig(), UNUSUAL], ids=["default", "unusual"])
def test_a_configuration_comes_back_from_json_as_it_was(config):
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_fields_that_are_left_out_have_their_defaults():
    assert from_dict(RunConfig, {"train": {"steps": 5}}) == RunConfig(train=TrainConfig(steps=5))


def test_lists_become_tuples_and_whole_numbers_become_floats():
    config = RunConfig(data=DataConfig(sources=[SourceConfig(weight=2)]))
    read = from_dict(RunConfig, to_dict(config))
    assert read.data.sources == (SourceConfig(weight=2.0),)
    assert type(read.data.sources[0].weight) is float
    hash(read)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nmae": "x"}, "nmae: there is no such field; the nearest is name"),
        ({"model": {"widht": 3}}, "model.widht: there is no such field; the nearest is model.width"),
        ({"data": {"sources": [{"paht": "x"}]}}, "data.sources.0.paht: .* nearest is data.sources.0.path"),
        ({"train": {"steps": "ten"}}, "train.steps = 'ten': expected a whole number"),
        ({"train": {"steps": 1.5}}, "train.steps = 1.5: expected a whole number"),
        ({"train": {"steps": True}}, "train.steps = True: expected a whole number"),
        ({"train": {"steps": None}}, "train.steps = None: expected a whole number"),
        ({"train": {"skip_nonfinite": 1}}, "train.skip_nonfinite = 1: expected true or false"),
        ({"optimizer": {"learning_rate": "3e-4"}}, "optimizer.learning_rate = '3e-4': expected a number"),
        ({"optimizer": {"clip_norm": "x"}}, "optimizer.clip_norm = 'x': expected a number"),
        ({"name": 3}, "name = 3: expected a text"),
        ({"model": {"norm": "rmss"}}, "model.norm = 'rmss': expected one of 'rms', 'layer'"),
        ({"model": {"norm": ["rms"]}}, r"model.norm = \['rms'\]: expected one of 'rms', 'layer'"),
        ({"model": "llama"}, "model = 'llama': expected the fields of a TransformerConfig"),
        ({"eval": {"prompts": "abc"}}, "eval.prompts = 'abc': expected a list, each of it a text"),
        ({"eval": {"prompts": ["a", 2]}}, "eval.prompts.1 = 2: expected a text"),
        ({"data": {"sources": {}}}, "data.sources = {}: expected a list, each of it the fields of a SourceConfig"),
        ([1], r"the configuration = \[1\]: expected the fields of a RunConfig"),
    ],
)
def test_what_cannot_be_read_is_named_with_what_would_do(values, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        from_dict(RunConfig, values)


def test_all_that_cannot_be_read_is_listed_at_once():
    with pytest.raises(UserError) as error:
        from_dict(RunConfig, {"nmae": 1, "seed": "x", "model": {"norm": 3, "layer": 2}})
    assert [line.split(" = ")[0].split(":")[0] for line in str(error.value).splitlines()] == [
        *("nmae", "seed", "model.norm", "model.layer")
    ]


def test_every_objective_belongs_to_one_architecture():
    kinds = [kind for of in OBJECTIVES_OF.values() for kind in of]
    assert sorted(kinds) == sorted(get_args(get_type_hints(ObjectiveConfig)["kind"]))


def test_differences_name_each_leaf_by_its_path():
    old = RunConfig()
    new = replace(
        old,
        seed=3,
        optimizer=replace(old.optimizer, schedule=replace(old.optimizer.schedule, warmup_steps=7)),
        data=DataConfig(sources=(SourceConfig(weight=2.0),)),
    )
    assert differences(old, new) == [
        "seed: 0 -> 3",
        "data.sources.0.weight: 1.0 -> 2.0",
        "optimizer.schedule.warmup_steps: 100 -> 7",
    ]
    assert differences(old, old) == []


def test_sources_that_were_added_are_a_difference():
    old, new = RunConfig(), RunConfig(data=DataConfig(sources=(SourceConfig(), SourceConfig())))
    (line,) = differences(old, new)
    assert line.startswith("data.sources: (SourceConfig(")


def test_a_configuration_cannot_be_changed_or_given_by_position():
    with pytest.raises(FrozenInstanceError):
        RunConfig().seed = 1
    with pytest.raises(TypeError):
        RunConfig("name")


def test_every_field_explains_itself_in_help():
    for node in ast.parse(Path(jaxllm.config.__file__).read_text()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, after in pairwise([*node.body, None]):
            section = (
                isinstance(field, ast.AnnAssign) and ast.unparse(field.value) == f"{ast.unparse(field.annotation)}()"
            )
            if isinstance(field, ast.AnnAssign) and not section:
                assert isinstance(after, ast.Expr), f"{node.name}.{field.target.id}"
