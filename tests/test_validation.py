import dataclasses
import math
import re
from typing import Any

import pytest

from jaxllm.config import AXES, OBJECTIVES_OF, DataConfig, RunConfig, SourceConfig, UserError
from jaxllm.validation import RANGES, problems, refuse


def put(config: Any, path: str, value: Any) -> Any:
    """`config` with one field set."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(config, **{name: put(getattr(config, name), rest, value) if rest else value})


def run(**changes: Any) -> RunConfig:
    """The default run with fields set; `__` stands for a dot."""
    config = RunConfig()
    for path, value in changes.items():
        config = put(config, path.replace("__", "."), value)
    return config


def numbers(config: Any, prefix: str = "") -> dict[str, type]:
    """Path and type of every number."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= numbers(value, f"{prefix}{field.name}.")
        elif field.type in (int, int | None):
            found[prefix + field.name] = int
        elif field.type in (float, float | None):
            found[prefix + field.name] = float
    return found


NUMBERS = numbers(RunConfig())


def test_the_default_run_is_in_order():
    assert problems(RunConfig()) == problems(RunConfig(), devices=8) == []
    refuse(problems(RunConfig(), devices=8))


def test_every_number_has_a_range():
    assert set(RANGES) == set(NUMBERS) - {f"mesh.{axis}" for axis in AXES}


@pytest.mark.parametrize("path", RANGES)
def test_a_number_outside_its_range_is_named_with_its_value_and_what_would_do(path):
    allowed, kind = RANGES[path], NUMBERS[path]
    outside = [allowed.low - 1] + [allowed.low] * allowed.low_open
    if allowed.high < math.inf:
        outside += [allowed.high + 1] + [allowed.high] * allowed.high_open
    for value in [*map(kind, outside), *([math.nan, math.inf] if kind is float else [])]:
        assert f"{path} = {value}: must be {allowed}" in problems(put(RunConfig(), path, value))
    inside = kind(allowed.low if not allowed.low_open else allowed.low + 0.5)
    assert not any(line.endswith(f"must be {allowed}") for line in problems(put(RunConfig(), path, inside)))


@pytest.mark.parametrize(
    ("path", "refused", "text"),
    [
        ("model.dropout", 1.0, "at least 0 and below 1"),
        ("optimizer.b1", 1.0, "at least 0 and below 1"),
        ("optimizer.learning_rate", 0.0, "above 0"),
        ("optimizer.schedule.final_fraction", 1.1, "at least 0 and at most 1"),
        ("data.validation_fraction", 1.0, "at least 0 and below 1"),
        ("train.ema_decay", 1.0, "above 0 and below 1"),
        ("train.loss_chunk", 0, "at least 1 and below 2147483648"),
        ("model.sliding_window", 2**31, "at least 1 and below 2147483648"),
        ("checkpoint.keep", 0, "at least 1 and below 2147483648"),
        ("seed", -1, "at least 0 and below 4294967296"),
    ],
)
def test_published_bounds_are_kept(path, refused, text):
    assert problems(put(RunConfig(), path, refused)) == [f"{path} = {refused}: must be {text}"]


def sources(*given: SourceConfig) -> RunConfig:
    return RunConfig(data=DataConfig(sources=given))


PAIRS = SourceConfig(kind="jsonl", path="pairs.jsonl", field="x", target_field="y")
CHATS = SourceConfig(kind="jsonl", path="chats.jsonl", format="auto")


def sft(*given: SourceConfig, **changes: Any) -> RunConfig:
    """A run that learns from such sources what the assistant says."""
    template = {"tokenizer__chat_template": "plain"}
    return run(objective__kind="sft", data__sources=given or (CHATS,), **{**template, **changes})


def chats(**changes: Any) -> RunConfig:
    """The same from one that has such fields besides."""
    return sft(dataclasses.replace(CHATS, **changes))


def test_runs_on_conversations_are_in_order():
    assert problems(sft()) == []
    assert problems(sft(CHATS, SourceConfig(weight=0.5))) == []
    assert problems(sft(tokenizer__chat_template=None, tokenizer__path="tokenizer.json")) == []
    assert problems(run(base="base", model__vocab_size=512)) == []  # whose tokenizer it takes
    assert problems(sft(SourceConfig(kind="stdlib_functions", system="s"))) == []
    assert problems(chats(format="prompt_completion", prompt="{{ x }}", completion="{{ y }}")) == []
    assert problems(chats(task_field="task", held_out_tasks=("a",))) == []
    assert problems(sft(data__mixture__kind="temperature", data__mixture__temperature=2.0, data__mixture__cap=9)) == []


@pytest.mark.parametrize("kind", ["prefix", "masked", "span_corruption", "infilling", "seq2seq"])
def test_every_objective_has_runs_that_are_in_order(kind):
    fitting = next(name for name, kinds in OBJECTIVES_OF.items() if kind in kinds)
    sources = (PAIRS,) * (kind == "seq2seq") or (SourceConfig(),)
    assert problems(run(model__architecture=fitting, objective__kind=kind, data__sources=sources)) == []
    if kind == "prefix":
        assert problems(run(objective__kind=kind, data__sources=(PAIRS,))) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (run(name=""), "name = '': must name a folder, without '/'; for a path set output"),
        (run(name="a/b"), "name = 'a/b': must name a folder"),
        (run(name=".."), "name = '..': must name a folder"),
        (run(name="a\nb"), r"name = 'a\\nb': must name a folder"),
        (run(model__heads=12, model__kv_heads=5), "model.kv_heads = 5: must divide model.heads = 12; 4 or 6 would do"),
        (run(model__heads=4, model__kv_heads=8), "model.kv_heads = 8: must divide model.heads = 4; 4 would do"),
        (run(model__head_dim=15), "model.head_dim = 15: must be even, since RoPE rotates pairs; 14 or 16 would do"),
        (
            run(data__sequence_length=4096),
            "data.sequence_length = 4096: is more than model.max_positions = 2048; at most 2048 would do",
        ),
        (
            run(tokenizer__vocab_size=5000),
            "model.vocab_size = 4096: must hold the tokenizer; at least tokenizer.vocab_size = 5000 would do",
        ),
        (
            run(train__batch_size=10, train__accumulate=4),
            "train.batch_size = 10: must be a multiple of train.accumulate = 4; 8 or 12 would do",
        ),
        (run(train__steps=50), "warmup_steps = 100: is more than train.steps = 50; at most 50 would do"),
        (
            run(train__steps=110, optimizer__schedule__kind="wsd"),
            "warmup_steps = 100: leaves fewer than the 22 steps that decay .*; at most 88 would do",
        ),
        (sources(), "data.sources is empty: give one source"),
        (sources(SourceConfig(weight=0.0)), "data.sources: every weight is 0; give one source a positive weight"),
        (sources(SourceConfig(), SourceConfig(weight=-1.0)), "data.sources.1.weight = -1.0: must be at least 0"),
        (
            sources(SourceConfig(kind="jsonl")),
            "data.sources.0.path = None: kind 'jsonl' needs a file, a folder or a glob",
        ),
        (
            sources(SourceConfig(kind="tfds", path="")),
            "data.sources.0.path = '': kind 'tfds' needs the name of a data set",
        ),
        (
            sources(SourceConfig(path="x.txt")),
            "data.sources.0.path = 'x.txt': kind 'stdlib' has none; set data.sources.0.kind",
        ),
        (run(objective__noise=0.2), "objective.noise = 0.2: kind 'causal' hides nothing; None would do"),
        (
            run(model__architecture="encoder"),
            "objective.kind = 'causal': is not for model.architecture = 'encoder'; 'masked' would do",
        ),
        (
            run(model__architecture="encoder_decoder", objective__kind="infilling", objective__whole_words=True),
            "objective.whole_words = True: kind 'infilling' does not read it; 'masked' does",
        ),
        (
            run(model__architecture="encoder", objective__kind="masked", objective__target_length=9),
            "objective.target_length = 9: kind 'masked' has one kind of row; None would do",
        ),
        (
            run(model__architecture="encoder_decoder", objective__kind="infilling", data__sequence_length=2048),
            "objective.target_length = None: the decoder's rows have 2560 places, more than model.max_positions = "
            "2048; at most 2048, or a shorter data.sequence_length, would do",
        ),
        (
            run(model__architecture="encoder_decoder", objective__kind="seq2seq"),
            "data.sources.0.target_field = None: objective.kind = 'seq2seq' needs the field of what is to be written",
        ),
        (
            sources(PAIRS),
            "data.sources.0.target_field = 'y': objective.kind = 'causal' has no use for pairs; 'seq2seq' and 'prefix'",
        ),
        (
            run(objective__kind="prefix", data__sources=(PAIRS, SourceConfig())),
            "data.sources.1.target_field = None: another source gives pairs; all or none would do",
        ),
        (
            run(objective__kind="prefix", data__sources=(SourceConfig(target_field="y"),)),
            "data.sources.0.target_field = 'y': kind 'stdlib' has no fields; 'jsonl', 'parquet' and 'tfds' have",
        ),
        (
            run(
                model__architecture="encoder_decoder",
                objective__kind="seq2seq",
                data__sources=(PAIRS,),
                data__packing="concatenate",
            ),
            "data.packing = 'concatenate': cuts pairs apart; 'documents' would do",
        ),
        (
            sources(CHATS),
            "data.sources.0.format = 'auto': objective.kind = 'causal' has no use for conversations; 'sft' has",
        ),
        (
            sources(SourceConfig(kind="stdlib_functions")),
            "data.sources.0.kind = 'stdlib_functions': objective.kind = 'causal' has no use for conversations",
        ),
        (
            run(objective__kind="sft", tokenizer__chat_template="plain"),
            "objective.kind = 'sft': no source gives conversations; another data.sources.N.format than 'text', or",
        ),
        (
            sft(CHATS, SourceConfig(format="auto")),
            "data.sources.1.format = 'auto': kind 'stdlib' has no fields; 'jsonl', 'parquet' and 'tfds' have",
        ),
        (chats(prompt="{{ x }}"), r"data.sources.0.prompt = '\{\{ x \}\}': format 'auto' does not read it"),
        (chats(tasks=("a",)), r"tasks = \('a',\): needs data.sources.0.task_field, which tells"),
        (
            chats(task_field="t", tasks=("a",), held_out_tasks=("b",)),
            "held_out_tasks: 'b' is not in data.sources.0.tasks",
        ),
        (chats(held_out_tasks=("a",)), r"held_out_tasks = \('a',\): needs data.sources.0.task_field, which tells"),
        (chats(task="a", task_field="b"), "data.sources.0.task = 'a': data.sources.0.task_field names the task of"),
        (chats(loss_weight=0.0), "data.sources.0.loss_weight = 0.0: must be above 0; to leave a source out, set its"),
        (sources(SourceConfig(system="s")), "data.sources.0.system = 's': format 'text' has no messages; None would"),
        (
            sft(tokenizer__chat_template=None),
            "tokenizer.chat_template = None: there is none beside a tokenizer that is trained; 'plain', or a .jinja",
        ),
        (sft(data__packing="concatenate"), "data.packing = 'concatenate': cuts conversations apart; 'documents' would"),
        (
            run(objective__weigh="conversations"),
            "objective.weigh = 'conversations': kind 'causal' has no conversations",
        ),
        (run(data__truncation="start"), "data.truncation = 'start': objective.kind = 'causal' does not read it; 'end'"),
        (run(data__mixture__cap=9), "data.mixture.cap = 9: kind 'weights' does not read it; 'proportional' does"),
        (
            run(data__mixture__kind="proportional", data__mixture__temperature=2.0),
            "data.mixture.temperature = 2.0: kind 'proportional' does not read it; 1.0 would do",
        ),
        (
            run(tokenizer__extra_tokens=("<a>", "<b>", "<a>")),
            r"tokenizer.extra_tokens = \('<a>', '<b>', '<a>'\): '<a>' is there twice",
        ),
        (
            run(tokenizer__extra_tokens=("a b",)),
            r"tokenizer.extra_tokens = \('a b',\): a token must be a word, without spaces",
        ),
        (
            run(tokenizer__path="t.model", tokenizer__extra_tokens=("<a>",)),
            "tokenizer.extra_tokens = .*: only a tokenizer that is trained can be given any",
        ),
        (
            run(mesh__fsdp=-1),
            "mesh is data -1 x fsdp -1 x sequence 1 x tensor 1: only one axis may be -1; 1 would do for the others",
        ),
        (run(mesh__tensor=0), "mesh.tensor = 0: must be at least 1, or -1"),
        (run(mesh__fsdp=-2), "mesh.fsdp = -2: must be at least 1, or -1"),
    ],
)
def test_fields_that_contradict_each_other_are_named_with_what_would_do(config, message):
    (line,) = problems(config)
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            run(mesh__data=3),
            "mesh is data 3 x fsdp 1 x sequence 1 x tensor 1: makes 3 devices, and there are 8; "
            "-1 fills one axis with what is left",
        ),
        (
            run(mesh__tensor=3),
            "mesh is data -1 x fsdp 1 x sequence 1 x tensor 3: 3 does not divide the 8 devices there are; "
            "2 or 4 would do for the other axes together",
        ),
        (
            run(train__batch_size=12),
            "train.batch_size = 12: each of the train.accumulate = 1 parts must be a multiple of mesh "
            "data 8 x fsdp 1 = 8 rows; 8 or 16 would do",
        ),
        (
            run(train__batch_size=8, train__accumulate=2, mesh__fsdp=2),
            "train.batch_size = 8: each of the train.accumulate = 2 parts must be a multiple of mesh "
            "data 4 x fsdp 2 = 8 rows; 16 would do",
        ),
        (
            run(mesh__tensor=4, model__kv_heads=2),
            "model.kv_heads = 2: mesh.tensor = 4 does not divide it, the axis K of parameter "
            "'layers/attention/key/kernel' and 1 more; 4, or mesh.tensor = 2, would do",
        ),
        (
            run(mesh__tensor=2, model__ffn=77),
            "model.ffn = 77: mesh.tensor = 2 does not divide it, the axis F of parameter 'layers/mlp/gate/kernel' "
            "and 2 more; 76 or 78, or mesh.tensor = 1, would do",
        ),
        (
            run(mesh__sequence=4, data__sequence_length=500, train__batch_size=2),
            "data.sequence_length = 500: each of the mesh.sequence = 4 devices takes two equal parts of a row; "
            "496 or 504 would do",
        ),
        (
            run(mesh__fsdp=8, mesh__data=1, model__width=100),
            "model.width = 100: mesh.fsdp = 8 does not divide it, the axis D of parameter 'embedding/tokens' "
            "and 7 more; 96 or 104, or mesh.fsdp = 4 with mesh.data = -1, would do",
        ),
        (
            run(mesh__tensor=2, model__vocab_size=5001),
            "model.vocab_size = 5001: mesh.tensor = 2 does not divide it, the axis V of parameter 'embedding/tokens'; "
            "5000 or 5002, or mesh.tensor = 1, would do",
        ),
    ],
)
def test_what_eight_devices_cannot_hold_is_named_with_what_would_do(config, message):
    assert problems(config, devices=8) == [message]


def advised(config: RunConfig, line: str) -> list[RunConfig]:
    """`config` with each change that a line offers."""
    field, offers = line.partition(" = ")[0], line.rpartition("; ")[2].removesuffix(" would do")
    found = []
    for offer in re.sub(r"^(?=\d)", f"{field} = ", offers).split(", or "):
        changed = [config]
        for path, values in re.findall(r"([\w.]+) = (-?\d+(?: or \d+)?)", offer):
            changed = [put(c, path, int(value)) for c in changed for value in values.split(" or ")]
        found += changed
    assert found
    return found


@pytest.mark.parametrize(
    ("config", "devices"),
    [
        (run(model__width=20, mesh__fsdp=8), 8),
        (run(model__width=100, mesh__fsdp=8, mesh__data=1), 8),
        (run(model__width=100, mesh__fsdp=-1, mesh__data=2, train__batch_size=16), 16),
        (run(model__heads=12, model__kv_heads=6, mesh__tensor=4), 8),
        (run(model__heads=12, model__kv_heads=6, mesh__tensor=4), None),
        (run(model__heads=12, model__kv_heads=6, mesh__tensor=4, model__ffn=30), 8),
        (run(model__heads=6, model__kv_heads=3, mesh__tensor=4), 8),
        (run(model__heads=6, model__kv_heads=2, mesh__tensor=2, model__ffn=31), 8),
        (run(model__heads=6, model__kv_heads=6, mesh__tensor=4, mesh__data=2), 8),
        (run(model__heads=6, model__kv_heads=3, mesh__tensor=3, tokenizer__path="x.model"), 9),
        (run(model__ffn=30, mesh__tensor=4), 8),
        (run(model__ffn=30, mesh__tensor=4, train__batch_size=2), 8),
        (run(model__vocab_size=4099, tokenizer__vocab_size=4097, mesh__tensor=2), 8),
        (run(model__vocab_size=4099, tokenizer__vocab_size=4099, mesh__tensor=4), 8),
        (run(model__ffn=30, mesh__tensor=4, mesh__data=1, mesh__fsdp=-1, model__width=6), 24),
        (run(model__ffn=30, mesh__tensor=4, mesh__data=1, mesh__sequence=-1, data__sequence_length=40), 16),
    ],
)
def test_each_change_that_is_offered_in_the_place_of_what_a_mesh_cannot_cut_would_do(config, devices):
    fields = {line.partition(" = ")[0]: line for line in problems(config, devices)}
    for field, line in fields.items():
        for changed in advised(config, line):
            assert {line.partition(" = ")[0] for line in problems(changed, devices)} <= fields.keys() - {field}


def test_without_a_number_of_devices_only_the_given_axes_are_checked():
    assert problems(run(train__batch_size=7)) == []
    assert problems(run(train__batch_size=7, mesh__fsdp=2))[0].startswith("train.batch_size = 7: ")


def test_an_existing_tokenizer_is_not_held_against_the_size_of_a_trained_one():
    assert problems(run(tokenizer__vocab_size=5000, tokenizer__path="x.model")) == []


def test_wrong_types_are_told_of_in_place_of_failing():
    config = run(train__steps="ten", model=3)
    assert problems(config) == [
        "model = 3: expected the fields of a TransformerConfig",
        "train.steps = 'ten': expected a whole number",
    ]


def test_all_mistakes_are_raised_at_once():
    with pytest.raises(UserError) as error:
        refuse(problems(run(name="a/b", train__steps=0, model__head_dim=3, optimizer__b2=2.0)))
    first, *lines = str(error.value).splitlines()
    assert first == "4 mistakes in the configuration:"
    assert [line.split(" = ")[0].strip() for line in lines] == [
        *("optimizer.b2", "train.steps", "name", "model.head_dim")
    ]


def test_sizes_of_zero_are_told_of_once_and_break_nothing():
    sizes = [path for path in RANGES if NUMBERS[path] is int and RANGES[path].low >= 1]
    config = RunConfig()
    for path in sizes:
        config = put(config, path, 0)
    assert [line.split(" = ")[0] for line in problems(config, devices=8)] == sizes
