import json
from dataclasses import replace

import pytest

from jaxllm.config import DataConfig, RunConfig, SourceConfig, TokenizerConfig, UserError
from jaxllm.train.run_folder import alone, changes, create, enter, is_run_folder, run_folder, saved_config


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "pieces.model"
    path.write_bytes(b"pieces")
    return path


def test_a_run_lives_in_its_output_or_under_its_name():
    assert str(run_folder(RunConfig(name="a"))) == "runs/a"
    assert str(run_folder(RunConfig(name="a", output="elsewhere"))) == "elsewhere"


def test_a_new_run_takes_the_configured_tokenizer_and_a_started_one_its_own_copy(tmp_path, tokenizer):
    config = RunConfig(output=str(tmp_path / "runs" / "a"), tokenizer=TokenizerConfig(path="/given.model"))
    folder = run_folder(config)
    assert enter(folder, config, False) == config.tokenizer
    create(folder, config, tokenizer)
    assert is_run_folder(folder)
    assert saved_config(folder) == config
    assert enter(folder, config, False) == config.tokenizer
    (folder / "checkpoints" / "4").mkdir(parents=True)
    assert enter(folder, config, False) == TokenizerConfig(path=str(folder / "tokenizer.model"))
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"
    (folder / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"its tokenizer .* is missing"):
        enter(folder, config, False)


def test_a_tuned_run_keeps_what_is_said_of_the_use_of_its_base(tmp_path, tokenizer):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    own = tmp_path / "base" / "tokenizer.model"
    own.write_bytes(tokenizer.read_bytes())
    for base in (None, str(tmp_path / "base"), None):
        create(tmp_path / "run", RunConfig(base=base), tokenizer)
        assert (tmp_path / "run" / "generation_config.json").exists() == (base is not None)
    own.write_bytes(b"other pieces")
    create(tmp_path / "run", RunConfig(base=str(tmp_path / "base")), tokenizer)
    assert not (tmp_path / "run" / "generation_config.json").exists()


def test_saved_paths_lead_to_the_same_files_from_any_folder(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = (SourceConfig(kind="text", path="texts/*.txt"), SourceConfig(kind="tfds", path="a/b"), SourceConfig())
    data = DataConfig(sources=sources, cache_dir="cache")
    config = RunConfig(output="run", data=data, tokenizer=TokenizerConfig(path=tokenizer.name))
    create(run_folder(config), config, tokenizer)
    saved = saved_config(tmp_path / "run")
    assert [s.path for s in saved.data.sources] == [str(tmp_path / "texts" / "*.txt"), "a/b", None]
    assert (saved.data.cache_dir, saved.tokenizer.path) == (str(tmp_path / "cache"), str(tokenizer))
    assert changes(saved, config) == []


def test_a_tokenizer_that_lies_elsewhere_now_is_no_change_if_it_is_the_same(tmp_path, tokenizer):
    config = RunConfig(output=str(tmp_path / "run"), tokenizer=TokenizerConfig(path=str(tokenizer)))
    create(tmp_path / "run", config, tokenizer)
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    moved = tokenizer.rename(tmp_path / "moved.model")
    elsewhere = replace(config, tokenizer=TokenizerConfig(path=str(moved)))
    assert enter(tmp_path / "run", elsewhere, False).path == str(tmp_path / "run" / "tokenizer.model")
    moved.write_bytes(b"others")
    with pytest.raises(UserError, match=r"the tokenizer of the run in .* cannot change"):
        enter(tmp_path / "run", elsewhere, False)


def test_a_chat_template_stays_and_is_given_only_where_there_is_none(tmp_path, tokenizer):
    config = RunConfig(output=str(tmp_path / "run"), tokenizer=TokenizerConfig(path=str(tokenizer)))
    create(tmp_path / "run", config, tokenizer)
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    given = replace(config, tokenizer=replace(config.tokenizer, chat_template="plain"))
    assert enter(tmp_path / "run", given, False).chat_template == "plain"
    (tmp_path / "run" / "chat_template.jinja").write_text("{{ messages }}")
    assert enter(tmp_path / "run", config, False).chat_template is None
    with pytest.raises(UserError, match=r"cannot change:\n  tokenizer\.chat_template: None -> 'plain'$"):
        enter(tmp_path / "run", given, True)


def test_a_hugging_face_tokenizer_keeps_the_file_that_names_its_special_tokens(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    create(tmp_path / "run", RunConfig(), tmp_path / "tokenizer.json")
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["config.json", "tokenizer.json", "tokenizer_config.json"]


def test_only_changes_that_matter_are_listed():
    old = RunConfig()
    harmless = replace(
        old,
        name="b",
        log_every=1,
        eval=replace(old.eval, every=1),
        mesh=replace(old.mesh, fsdp=2),
        data=replace(old.data, workers=3),
        train=replace(old.train, remat="full", loss_chunk=64),
    )
    assert changes(old, harmless) == []
    halved = replace(old.train, accumulate=2)
    assert changes(old, replace(old, train=halved)) == ["train.accumulate: 1 -> 2"]
    moved = replace(old.data, sources=(SourceConfig(kind="text", path="elsewhere"),))
    assert changes(old, replace(old, data=moved)) == ["data.sources.0.kind: 'stdlib' -> 'text'"]
    assert changes(old, replace(harmless, seed=4)) == ["seed: 0 -> 4"]
    assert changes(old, replace(old, data=replace(old.data, sequence_length=64))) == ["data.sequence_length: 512 -> 64"]


def test_changes_are_refused_unless_allowed_and_those_of_the_tokenizer_always(tmp_path, tokenizer):
    config = RunConfig(output=str(tmp_path / "run"))
    folder = run_folder(config)
    create(folder, config, tokenizer)
    changed = replace(config, seed=4)
    enter(folder, changed, False)
    (folder / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(UserError, match=r"change its result:\n  seed: 0 -> 4\n.*--allow-change.*--name or --output"):
        enter(folder, changed, False)
    enter(folder, changed, True)
    changed = replace(config, tokenizer=TokenizerConfig(vocab_size=5000))
    with pytest.raises(UserError, match=r"cannot change:\n  tokenizer.vocab_size: 4096 -> 5000"):
        enter(folder, changed, True)


def test_checkpoints_without_their_configuration_are_not_gone_on_with(tmp_path):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(UserError, match=r"is not a run folder: cannot read '.*config\.json'"):
        enter(tmp_path, RunConfig(), True)


def test_a_folder_that_holds_something_else_is_left_as_it_is(tmp_path, tokenizer):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"cannot make the run folder .*not empty; choose another with --output"):
        create(tmp_path / "mine", RunConfig(), tokenizer)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make the run folder .*--output or --name"):
        create(tmp_path / "file" / "run", RunConfig(), tokenizer)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "mine", "pieces.model", "thesis.txt"]


def test_a_configuration_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: cannot read '.*config.json': No such file"):
        saved_config(tmp_path)
    for content, message in (
        ("{", "is not a configuration"),
        ("[]", "config.json"),
        (json.dumps({"sed": 1}), "the nearest is seed"),
        (json.dumps({"seed": "1"}), "seed = '1': expected a whole number"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=message):
            saved_config(tmp_path)


def test_a_second_process_is_kept_out_while_the_first_trains(tmp_path):
    with alone(tmp_path), pytest.raises(UserError, match="another process is training in"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass
