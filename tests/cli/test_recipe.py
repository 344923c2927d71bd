import json
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from jaxllm.cli.recipe import load_run, load_run_with
from jaxllm.cli.train import Options
from jaxllm.config import RunConfig, SourceConfig, TokenizerConfig, UserError, differences, to_dict
from jaxllm.train.run_folder import save_config
from jaxllm.validation import problems

ROOT = Path(__file__).parents[2]
RECIPES = {path.stem: path for path in (ROOT / "configs/pretrain").glob("*.py")}
RECIPES |= {f"scale_{path.stem}": path for path in (ROOT / "configs/scale").glob("*.py")}
QUICKSTART = str(RECIPES["quickstart"])

DEVICES = dict.fromkeys(("quickstart", "stdlib_25m", "bert_small", "t5_small", "bart_small"), 1)
DEVICES |= {"gpt2_124m": 8, "llama_1b": 8, "llama2_7b": 64, "llama3_8b": 128}
DEVICES |= {"scale_llama2_70b": 512, "scale_decoder_16b": 256, "scale_llama3_70b": 256}
"""The smallest machine that each recipe's docstring names."""

TUNING = [path for kind in ("sft", "lora", "prompt") for path in sorted((ROOT / "configs" / kind).glob("*.py"))]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> str:
    path.write_text(dedent(text))
    return path.name


def load(*argv: str) -> RunConfig:
    return load_run(argv, "jaxllm train")


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as error:
        load(*argv)
    return str(error.value)


def test_every_recipe_has_a_machine_here():
    assert set(RECIPES) == set(DEVICES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_fits_its_machine(name):
    config = load(str(RECIPES[name]))
    assert config.name == name
    assert problems(config, DEVICES[name]) == []


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_command_hardware_cost_and_result(name):
    text = RECIPES[name].read_text().split('"""')[1]
    assert f"jaxllm train {RECIPES[name].relative_to(ROOT)}" in text
    for word in ("Hardware:", "Cost:", "Result"):
        assert word in text


@pytest.mark.parametrize("path", TUNING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_of_tuning_loads_fits_its_machine_and_says_command_and_result(path, here):
    config = load(str(path))
    assert config.base is not None
    assert problems(config, {"llama2_7b": 8, "llama3_70b": 64}.get(path.stem, 1)) == []
    text = path.read_text().split('"""')[1]
    tools = {"forgetting": "python tools/forgetting.py", "labels": "python tools/compare_prompts.py"}
    assert tools.get(path.stem, f"jaxllm train {path.relative_to(ROOT)}") in text
    assert "Result" in text


def test_options_override_fields_of_every_type():
    config = load(
        *(QUICKSTART, "--optimizer.learning-rate", "3e-4", "--train.steps=7", "--train.skip-nonfinite"),
        *("--model.no-tied-embeddings", "--optimizer.clip-norm", "None", "--optimizer.schedule.warmup_steps", "2"),
        *("--eval.prompts", "a b", "c", "--name", "other", "--model.norm", "layer", "--model.sliding-window", "64"),
        *("--data.sources.0.kind", "text", "--data.sources.0.path", "*.txt"),
    )
    plain = load(QUICKSTART)
    assert config.data.sources == (SourceConfig(kind="text", path="*.txt"),)
    assert [line.split(": ")[0] + " ->" + line.split("->")[1] for line in differences(plain, config)] == [
        "name -> 'other'",
        "model.norm -> 'layer'",
        "model.sliding_window -> 64",
        "model.tied_embeddings -> False",
        "data.sources.0.kind -> 'text'",
        "data.sources.0.path -> '*.txt'",
        "optimizer.learning_rate -> 0.0003",
        "optimizer.clip_norm -> None",
        "optimizer.schedule.warmup_steps -> 2",
        "train.steps -> 7",
        "train.skip_nonfinite -> True",
        "eval.prompts -> ('a b', 'c')",
    ]


def test_a_run_folder_and_its_config_json_give_the_saved_configuration(here):
    saved = replace(load(QUICKSTART), seed=5)
    (here / "run").mkdir()
    (here / "run" / "config.json").write_text(json.dumps(to_dict(saved)))
    expected = replace(saved, output="run")
    assert load("run") == load("run/config.json") == expected
    assert load("run", "--seed", "6") == replace(expected, seed=6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def recipe(:\n", "recipe 'r.py', line 1: invalid syntax"),
        ("x = 1\ny = z\n", "recipe 'r.py', line 2: NameError: name 'z' is not defined"),
        ("import no_such_module\n", "recipe 'r.py', line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys\n\nsys.exit(3)\n", "recipe 'r.py', line 3: SystemExit: 3"),
        ("def recipe():\n    return 1 / 0\n", "recipe 'r.py', line 2: ZeroDivisionError: division by zero"),
        ("def recipe(size):\n    return size\n", "recipe 'r.py': TypeError: recipe() missing 1 required"),
        ("x = 1\n", "recipe 'r.py' has no function recipe(), which returns a RunConfig"),
        ("recipe = 3\n", "recipe 'r.py' has no function recipe(), which returns a RunConfig"),
        ("def recipe():\n    return {}\n", "recipe 'r.py': recipe() returned {}; it must return a RunConfig"),
        (
            "from jaxllm.config import *\n\ndef recipe():\n    return RunConfig(\n        sede=3)\n",
            "recipe 'r.py', line 4: TypeError: RunConfig.__init__() got an unexpected keyword argument 'sede'; "
            "the nearest field is 'seed'",
        ),
        (
            "from jaxllm.config import *\n\ndef recipe():\n    return RunConfig(seed='a', name=3, data=DataConfig())\n",
            "2 mistakes in the configuration:\n  recipe 'r.py': name = 3: expected a text\n"
            "  recipe 'r.py': seed = 'a': expected a whole number",
        ),
        (
            "from jaxllm.config import *\n\ndef recipe():\n    raise UserError('set $DATA to a folder')\n",
            "set $DATA to a folder",
        ),
        (
            "from jaxllm.config import *\n\ndef recipe():\n    return RunConfig(seed=-1, name='')\n",
            "2 mistakes in the configuration:\n  seed = -1: must be at least 0 and below 4294967296\n  name = '': ",
        ),
    ],
)
def test_a_recipe_that_will_not_do_is_named_with_its_line(here, text, message):
    name = write(here / "r.py", text)
    assert refusal(name).startswith(message)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00x", b"x = 1\0", b"\x7fELF\x02\x01\x00\x00"])
def test_a_binary_file_is_no_recipe(here, content):
    (here / "r.py").write_bytes(content)
    assert refusal("r.py").startswith("recipe 'r.py'")


def test_a_mistake_in_what_a_recipe_imports_is_placed_in_that_file(here, monkeypatch):
    (here / "helper_of_recipe.py").write_text("x = = 1\n")
    monkeypatch.syspath_prepend(str(here))
    message = refusal(write(here / "r.py", "import helper_of_recipe\n"))
    assert message.startswith(f"recipe '{here / 'helper_of_recipe.py'}', line 1: ")


def test_a_recipe_that_is_missing_names_the_nearest_that_there_are(here):
    folder = here / "configs" / "pretrain"
    folder.mkdir(parents=True)
    for name in ("quickstart", "gpt2", "llama"):
        (folder / f"{name}.py").write_text("")
    assert refusal("configs/pretrain/quikstart.py").startswith(
        "there is no recipe or run folder 'configs/pretrain/quikstart.py'; the nearest recipes are "
        "configs/pretrain/quickstart.py, "
    )
    message = refusal()
    assert message.startswith("jaxllm train takes a recipe or a run folder first, then options; there are ")
    assert "configs/pretrain/llama.py" in message
    assert refusal("--train.steps", "3") == message


def test_recipes_are_found_beside_the_package_from_any_folder(here):
    assert str(RECIPES["gpt2_124m"]) in refusal("gpt2_124.py")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", "x", "'notes.txt' is none of a recipe (.py), a run folder and its config.json"),
        ("config.json", "{", "config.json is not a configuration: Expecting property name"),
        ("config.json", '{"sede": 3}', "config.json: sede: there is no such field; the nearest is seed"),
        ("config.json", "[]", "config.json: the configuration = []: expected the fields of a RunConfig"),
    ],
)
def test_a_file_that_holds_no_configuration_is_named(here, name, content, message):
    (here / name).write_text(content)
    assert refusal(name).startswith(message)


def test_another_name_moves_a_run_that_was_opened_by_its_folder(here):
    folder = here / "elsewhere"
    folder.mkdir()
    save_config(folder, RunConfig(name="first", seed=3))
    assert load(str(folder)).output == str(folder)
    moved = load(str(folder), "--name", "second")
    assert (moved.output, moved.seed) == (None, 3)
    assert load(str(folder), "--name", "second", "--output", "there").output == "there"


def test_a_run_that_is_moved_keeps_the_tokenizer_that_it_was_trained_with(here):
    (here / "first").mkdir()
    (here / "first" / "tokenizer.model").touch()
    save_config(here / "first", RunConfig(name="first", tokenizer=TokenizerConfig(path="gone.model")))
    copy = str(Path("first") / "tokenizer.model")
    assert load("first", "--name", "second").tokenizer.path == copy
    assert load("first", "--name", "second", "--tokenizer.path", "new.model").tokenizer.path == "new.model"
    save_config(here / "first", RunConfig(name="first"))
    assert load("first", "--name", "second").tokenizer.path is None


def test_another_name_leaves_the_output_that_a_recipe_sets(here):
    text = "from jaxllm.config import *\ndef recipe():\n    return RunConfig(output='/big/run')\n"
    assert load(write(here / "r.py", text), "--name", "mine").output == "/big/run"


def test_a_folder_that_is_no_run_is_named(here):
    (here / "empty").mkdir()
    assert refusal("empty").startswith("'empty' is not a run folder: ")


@pytest.mark.parametrize(
    ("options", "unknown", "nearest"),
    [
        (["--optimizer.lerning-rate", "3"], "--optimizer.lerning-rate", "--optimizer.learning-rate"),
        (["--optimizer.lerning-rate=3"], "--optimizer.lerning-rate", "--optimizer.learning-rate"),
        (["--learning-rate", "3"], "--learning-rate", "--optimizer.learning-rate"),
        (["--no-tied-embeddings"], "--no-tied-embeddings", "--model.no-tied-embeddings"),
        (["--no-model.tied-embeddings"], "--no-model.tied-embeddings", "--model.no-tied-embeddings"),
        (["--train.step", "3"], "--train.step", "--train.steps"),
        (["--data.source.0.path", "3"], "--data.source.0.path", "--data.sources.0.path"),
        (["--batch-size", "3"], "--batch-size", "--train.batch-size"),
    ],
)
def test_an_unknown_option_names_the_nearest(options, unknown, nearest):
    told = f"  {unknown}: there is no such option; did you mean '{nearest}'?"
    assert refusal(QUICKSTART, *options) == "a mistake in the configuration:\n" + told


def test_a_word_that_belongs_to_no_option_is_named_and_silences_nothing():
    lines = refusal(QUICKSTART, "--train.skip-nonfinite", "3", "--sed", "1", "--model.kv-heads", "3").splitlines()
    assert lines[1].startswith("  unexpected '3': options are --field")
    assert [line.split(" ")[2] for line in lines[2:]] == ["--sed:", "model.kv_heads"]
    assert "train.steps = 0" in refusal(QUICKSTART, "", "--train.steps", "0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.steps", "many"], "--train.steps many: expected a whole number"),
        (["--train.steps=1.5"], "--train.steps 1.5: expected a whole number"),
        (["--train.steps", "a=b"], "--train.steps a=b: expected a whole number"),
        (["--train.steps"], "--train.steps: expected a whole number, and nothing follows"),
        (["--model.norm", "rmss"], "--model.norm rmss: expected one of 'rms', 'layer'"),
        (["--optimizer.clip_norm", "much"], "--optimizer.clip_norm much: expected a number, or None"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_would_do(options, message):
    assert refusal(QUICKSTART, *options) == f"a mistake in the configuration:\n  {message}"


def test_mistakes_of_all_kinds_are_told_together(here):
    recipe = write(
        here / "r.py",
        """
        from jaxllm.config import *

        def recipe():
            return RunConfig(seed="a", optimizer=OptimizerConfig(b2=2.0))
        """,
    )
    argv = [recipe, "--sed", "1", "--train.steps", "many", "--nmae=x", "--model.kv-heads", "3", "--mesh.data", "5"]
    with pytest.raises(UserError) as error:
        load_run_with(argv, "jaxllm train", Options(), devices=lambda _: 8)
    assert str(error.value).splitlines() == [
        "7 mistakes in the configuration:",
        "  --sed: there is no such option; did you mean '--seed'?",
        "  --nmae: there is no such option; did you mean '--name'?",
        "  recipe 'r.py': seed = 'a': expected a whole number",
        "  --train.steps many: expected a whole number",
        "  optimizer.b2 = 2.0: must be at least 0 and below 1",
        "  model.kv_heads = 3: must divide model.heads = 4; 2 or 4 would do",
        "  mesh is data 5 x fsdp 1 x sequence 1 x tensor 1: makes 5 devices, and there are 8; -1 fills one axis "
        "with what is left",
    ]


def test_mistakes_that_need_no_device_are_told_before_devices_are_waited_for():
    asked = []

    def devices(own):
        asked.append(own)
        return 8

    def refused(*words):
        with pytest.raises(UserError) as error:
            load_run_with([QUICKSTART, *words], "jaxllm train", Options(), devices, waits=lambda _: True)
        return [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]

    assert refused("--sed", "1", "--train.steps", "0", "--mesh.data", "16") == ["--sed", "train.steps = 0"]
    assert refused("--sed", "1") == ["--sed"]
    assert refused("--seed", "one") == ["--seed one"]
    assert refused("--train.steps", "0") == ["train.steps = 0"]
    assert not asked
    assert refused("--mesh.data", "16") == ["mesh is data 16 x fsdp 1 x sequence 1 x tensor 1"]
    assert asked == [Options()]


def test_nothing_is_said_of_what_a_value_that_could_not_be_read_would_have_mended():
    wrong = ["--model.heads", "six", "--mesh.fsdp", "four"]
    argv = [QUICKSTART, *wrong, "--model.kv-heads", "3", "--mesh.data", "5", "--data.sequence-length", "9999"]
    with pytest.raises(UserError) as error:
        load_run_with(argv, "jaxllm train", Options(), devices=lambda _: 8)
    assert [line.split(" = ")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "--model.heads six: expected a whole number",
        "--mesh.fsdp four: expected a whole number",
        "data.sequence_length",
    ]


def test_overrides_that_contradict_each_other_are_all_told():
    lines = refusal(QUICKSTART, "--model.kv-heads", "3", "--data.sequence-length", "9999", "--name", "a/b").splitlines()
    assert [line.split(" = ")[0].strip() for line in lines[1:]] == ["name", "model.kv_heads", "data.sequence_length"]


def test_a_base_on_the_command_line_brings_its_model_to_which_the_other_options_are_applied(here):
    based = load(QUICKSTART, "--model.layers", "2", "--model.dropout", "0.2")
    (here / "based").mkdir()
    save_config(here / "based", based)
    for words in (["--base", "based", "--model.dropout", "0.1"], ["--model.dropout=0.1", "--base=based"]):
        assert load(QUICKSTART, *words).model == replace(based.model, dropout=0.1)
    assert load(QUICKSTART, "--base", "based").model.dropout == load(QUICKSTART).model.dropout


@pytest.mark.parametrize("argv", [["--help"], [QUICKSTART, "--help"]])
def test_help_lists_every_field_with_its_text(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        load(*argv)
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usage: jaxllm train RECIPE" in out
    assert "RECIPE is a Python file with a function recipe()" in out
    assert "--optimizer.schedule.warmup-steps INT Steps of linear warm-up from 0." in out
    assert "noqa" not in out
