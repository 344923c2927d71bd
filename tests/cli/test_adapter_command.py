import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxllm.cli import adapter_show
from jaxllm.cli.adapter import run
from jaxllm.cli.adapter_runs import load_adapter
from jaxllm.cli.main import main
from jaxllm.common.console import plain_console
from jaxllm.common.trees import flatten, nest
from jaxllm.config import LoraConfig, MeshConfig, PromptConfig, TokenizerConfig, TuningConfig, UserError
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.evaluation.model import open_model
from jaxllm.models.adapters import adapter_table
from jaxllm.sharding.mesh import make_mesh
from jaxllm.train.checkpoint import Checkpoints, Info
from jaxllm.train.params import Origin, fingerprint, load_run_params, read_origin, write_origin
from jaxllm.train.run_folder import create, save_config, saved_config, saved_tokenizer
from jaxllm.train.state import abstract_state
from tests.interop.folders import decoder

LORA = TuningConfig(method="lora", lora=LoraConfig(targets=("query_value",), rank=2, alpha=3))
TUNINGS = {
    "lora": LORA,
    "other": TuningConfig(method="lora", lora=LoraConfig(targets=("attention/value", "mlp/"), rank=3)),
    "dora": TuningConfig(method="lora", lora=LoraConfig(rank=2, magnitudes=True)),
    "adalora": TuningConfig(method="adalora", lora=LoraConfig(rank=2)),
    "prompt": TuningConfig(method="prompt", prompt=PromptConfig(length=3)),
    "longer": TuningConfig(method="prompt", prompt=PromptConfig(length=4)),
    "prefix": TuningConfig(method="prefix", prompt=PromptConfig(length=3)),
    "hybrid": TuningConfig(method="hybrid", prompt=PromptConfig(length=3)),
    "norms": TuningConfig(method="full", also=("norm/scale",)),
    "also": replace(LORA, also=("norm/scale",)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    folder = decoder(root / "llama", "llama", _name_or_path="someone/llama")
    assert main(["import", str(folder), str(root / "base")]) == 0
    return root / "base"


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """Of every method, as if it had been trained; no leaf is at its start."""
    root = tmp_path_factory.mktemp("runs")
    own, params, info = load_run_params(base)
    tokenizer = saved_tokenizer(base)
    told = Info(step=7, tokens=1, corpus="text", tokenizer=load_tokenizer(tokenizer).fingerprint)
    for number, (name, tuning) in enumerate(TUNINGS.items()):
        config = replace(own, name=name, output=None, base=str(base), tuning=tuning)
        create(root / name, config, tokenizer)
        write_origin(root / name, Origin(info.step, fingerprint(base, info.step, params)))
        random = np.random.default_rng(number)
        leaves = {}
        for path, leaf in adapter_table(config.model, tuning).items():
            leaves[path] = (leaf.start + 0.1 * random.normal(size=leaf.shape)).astype(np.float32)
            if path.endswith("lora_e"):
                leaves[path][0, 1] = 0
        if tuning.also:
            leaves |= {path: np.asarray(x) + 1 for path, x in flatten(params).items() if "norm/scale" in path}
        with Checkpoints(root / name) as checkpoints:
            checkpoints.save({"params": nest(leaves)}, told)
            checkpoints.wait()
    return root


def whole(folder):
    """The parameters that a run generates with."""
    return {path: np.asarray(leaf) for path, leaf in flatten(load_run_params(folder)[1]).items()}


def close(one, other, atol=1e-6):
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_allclose(other[path], leaf, atol=atol, err_msg=path)


@pytest.mark.parametrize(("name", "kind"), [("lora", "LORA"), ("adalora", "LORA"), ("prefix", "PREFIX_TUNING")])
def test_what_is_exported_for_peft_is_imported_as_the_same(name, kind, base, runs, tmp_path, capsys):
    assert main(["adapter", "export", str(runs / name), str(tmp_path / "peft")]) == 0
    assert f"exported the adapter of '{runs / name}' at step 7 as {kind} for a llama" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert main(["adapter", "import", str(tmp_path / "peft"), str(tmp_path / "back"), "--base", str(base)]) == 0
    close(whole(runs / name), whole(tmp_path / "back"))
    assert read_origin(tmp_path / "back") == read_origin(runs / name)
    for file in ("tokenizer.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        assert (tmp_path / "back" / file).read_bytes() == (base / file).read_bytes()


def test_ranks_that_were_taken_are_not_exported(runs, tmp_path):
    run(["export", str(runs / "adalora"), str(tmp_path / "peft")])
    said = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    ranks = {name: said["rank_pattern"].get(name, said["r"]) for name in list_of(tensors)}
    assert {rank for name, rank in ranks.items() if ".layers.0." in name} == {2}
    assert {rank for name, rank in ranks.items() if ".layers.1." in name} == {3}
    for name, rank in ranks.items():
        assert tensors[f"base_model.model.{name}.lora_A.weight"].shape[0] == rank


def list_of(tensors):
    return sorted({name.removeprefix("base_model.model.").partition(".lora_")[0] for name in tensors})


def test_others_find_the_base_by_its_own_name_or_by_the_one_that_is_given(base, runs, tmp_path):
    run(["export", str(runs / "lora"), str(tmp_path / "one")])
    run(["export", str(runs / "lora"), str(tmp_path / "two"), "--base-name", "mine"])
    names = [
        json.loads((tmp_path / name / "adapter_config.json").read_text())["base_model_name_or_path"]
        for name in ("one", "two")
    ]
    assert names == ["someone/llama", "mine"]


def test_an_imported_adapter_is_a_run_that_can_be_trained_further(base, runs, tmp_path):
    run(["export", str(runs / "lora"), str(tmp_path / "peft")])
    run(["import", str(tmp_path / "peft"), str(tmp_path / "back"), "--base", str(base)])
    config = saved_config(tmp_path / "back")
    assert (config.name, config.base, config.tuning.lora.targets) == ("back", str(base), ("query_value",))
    config = replace(config, mesh=MeshConfig(fsdp=2, data=1))
    with Checkpoints(tmp_path / "back") as checkpoints:
        state, info = checkpoints.restore(abstract_state(config, make_mesh(config.mesh, jax.devices()[:2])), 0)
    assert (info.step, int(state.step)) == (0, 0)
    close(load_adapter(runs / "lora").leaves, flatten(state.params))


def test_an_adapter_is_imported_for_a_base_that_made_its_own_tokenizer(base, runs, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    config = saved_config(base)
    save_config(tmp_path / "base", replace(config, tokenizer=TokenizerConfig(vocab_size=320, extra_tokens=("<mask>",))))
    run(["export", str(runs / "lora"), str(tmp_path / "peft")])
    run(["import", str(tmp_path / "peft"), str(tmp_path / "back"), "--base", str(tmp_path / "base")])
    assert saved_config(tmp_path / "back").tokenizer == TokenizerConfig(path=str(saved_tokenizer(tmp_path / "base")))


def test_rows_of_an_imported_prompt_leave_as_much_room_for_text(base, runs, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["data"]["sequence_length"] = 4
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    run(["export", str(runs / "prompt"), str(tmp_path / "peft")])
    run(["import", str(tmp_path / "peft"), str(tmp_path / "back"), "--base", str(tmp_path / "base")])
    assert saved_config(tmp_path / "back").data.sequence_length == 7


def test_a_merged_model_needs_no_base_and_is_exported_as_the_run_is(base, runs, tmp_path, capsys):
    for method in ("lora", "dora"):
        merged, out = tmp_path / f"merged {method}", tmp_path / method
        assert main(["adapter", "merge", str(runs / method), str(merged)]) == 0
        assert "parameters, float32, in" in capsys.readouterr().out
        close(whole(runs / method), whole(merged), atol=0)
        assert saved_config(merged).base is None
        assert saved_config(merged).tuning == TuningConfig()
        assert main(["export", str(runs / method), str(out)]) == 0
        assert main(["export", str(merged), str(tmp_path / f"again {method}")]) == 0
        one, other = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / f"again {method}"))
        close(one, other, atol=0)
    theirs = {
        path.name: path.read_bytes()
        for path in base.with_name("llama").iterdir()
        if path.suffix != ".safetensors" and path.is_file()
    }
    for name, content in theirs.items():
        if name != "config.json":
            assert (out / name).read_bytes() == content


def test_what_was_merged_is_taken_out_again(base, runs, tmp_path, capsys):
    merged, out = tmp_path / "merged", tmp_path / "out"
    run(["merge", str(runs / "lora"), str(merged)])
    assert main(["adapter", "unmerge", str(merged), str(runs / "lora"), str(out)]) == 0
    assert f"took the adapter of '{runs / 'lora'}' at step 7 out of '{merged}': " in capsys.readouterr().out
    close(whole(base), whole(out))
    assert (out / "chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()
    for name, field in (("dora", "lora.magnitudes = True"), ("also", r"also = \('norm/scale',\)")):
        with pytest.raises(UserError, match=rf"{name}' cannot be taken out of its base again \(tuning.{field}\)"):
            run(["unmerge", str(merged), str(runs / name), str(tmp_path / "none")])


def test_an_adapter_of_another_strength_is_another_model(runs, tmp_path):
    shutil.copytree(runs / "lora", tmp_path / "lora")
    own = saved_config(runs / "lora")
    assert open_model(str(tmp_path / "lora")).fingerprint == open_model(str(runs / "lora")).fingerprint
    save_config(tmp_path / "lora", replace(own, tuning=replace(LORA, lora=replace(LORA.lora, alpha=7))))
    assert open_model(str(tmp_path / "lora")).fingerprint != open_model(str(runs / "lora")).fingerprint


def test_a_merged_model_is_rounded_once(runs, tmp_path):
    run(["merge", str(runs / "lora"), str(tmp_path / "half"), "--dtype", "bfloat16"])
    wanted = {path: leaf.astype("bfloat16") for path, leaf in whole(runs / "lora").items()}
    for path, leaf in whole(tmp_path / "half").items():
        np.testing.assert_array_equal(leaf, wanted[path], err_msg=path)


def test_what_is_merged_into_a_base_in_bfloat16_or_exported_with_it_has_its_type(runs, base, tmp_path):
    half, tuned = tmp_path / "half", tmp_path / "tuned"
    assert main(["import", str(base.with_name("llama")), str(half), "--dtype", "bfloat16"]) == 0
    _, params, info = load_run_params(half)
    shutil.copytree(runs / "also", tuned)
    save_config(tuned, replace(saved_config(tuned), base=str(half)))
    write_origin(tuned, Origin(info.step, fingerprint(half, info.step, params)))
    assert {leaf.dtype.name for leaf in whole(tuned).values()} == {"bfloat16", "float32"}
    run(["merge", str(tuned), str(tmp_path / "merged")])
    assert {leaf.dtype.name for leaf in whole(tmp_path / "merged").values()} == {"bfloat16"}
    for name in ("tuned", "merged"):
        assert main(["export", str(tmp_path / name), str(tmp_path / f"{name}-hf")]) == 0
    one, other = (load_file(tmp_path / f"{name}-hf" / "model.safetensors") for name in ("tuned", "merged"))
    assert {name: x.dtype.name for name, x in one.items()} == dict.fromkeys(other, "bfloat16")
    for name, x in one.items():
        np.testing.assert_array_equal(x, other[name], err_msg=name)


def changes(folder, base):
    before = whole(base)
    return {path: leaf - before[path] for path, leaf in whole(folder).items()}


def test_the_change_of_combined_adapters_is_the_sum_of_their_changes(base, runs, tmp_path, capsys):
    lora, other, taken = (changes(runs / name, base) for name in ("lora", "other", "adalora"))
    words = [f"{runs / 'lora'}:0.5", f"{runs / 'other'}:-2", str(runs / "adalora")]
    assert main(["adapter", "combine", str(tmp_path / "sum"), *words]) == 0
    assert "ranks up to 8\n" in capsys.readouterr().out
    found = changes(tmp_path / "sum", base)
    close({path: 0.5 * lora[path] - 2 * other[path] + taken[path] for path in found}, found, atol=1e-6)
    assert read_origin(tmp_path / "sum") == read_origin(runs / "lora")

    run(["combine", str(tmp_path / "mean"), "--average", str(runs / "lora"), str(runs / "other")])
    found = changes(tmp_path / "mean", base)
    close({path: (lora[path] + other[path]) / 2 for path in found}, found, atol=1e-6)


def test_a_sum_of_a_lower_rank_tells_its_error(base, runs, tmp_path, capsys):
    words = [str(runs / "lora"), str(runs / "other")]
    run(["combine", str(tmp_path / "sum"), *words])
    run(["combine", str(tmp_path / "lower"), *words, "--rank", "2"])
    exact, lower = changes(tmp_path / "sum", base), changes(tmp_path / "lower", base)
    lost = np.sqrt(sum(np.sum(np.square(exact[path] - lower[path])) for path in exact))
    size = np.sqrt(sum(np.sum(np.square(x)) for x in exact.values()))
    assert f"ranks up to 2, with a relative error of {lost / size:.2%}\n" in capsys.readouterr().out
    assert 0.05 < lost / size < 1


def test_virtual_tokens_are_averaged_by_their_weights(runs, tmp_path):
    shutil.copytree(runs / "prompt", tmp_path / "other")
    run(["combine", str(tmp_path / "mean"), f"{runs / 'prompt'}:3", str(tmp_path / "other")])
    close(load_adapter(runs / "prompt").leaves, load_adapter(tmp_path / "mean").leaves)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("lora", ["lora", "step 7", "896, ", "512", "384", "layers/attention/value", "1.5"]),
        ("dora", ["lora, DoRA"]),
        ("adalora", ["Ranks left", "2 3", "5 of 6", "35 of 42"]),
        ("prefix", ["prefix", "virtual tokens", "3"]),
        ("hybrid", ["layers/mlp/down/lora_gate", "layers/attention/gate"]),
        ("also", ["also of the base", "norm/scale"]),
    ],
)
def test_an_adapter_is_shown(name, wanted, base, runs, capsys, monkeypatch):
    monkeypatch.setattr(adapter_show, "plain_console", lambda: plain_console(width=200))
    assert main(["adapter", "show", str(runs / name)]) == 0
    shown = capsys.readouterr().out
    for text in (*wanted, str(base), read_origin(runs / name).fingerprint):
        assert text in shown
    adapter = load_adapter(runs / name)
    assert f"{sum(leaf.size for leaf in adapter.leaves.values()):,}, " in shown
    assert f"{sum(leaf.nbytes for leaf in adapter.leaves.values()):,} bytes" in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("export RUNS/nothing OUT", r"^'.*nothing' is not a run folder"),
        ("export BASE OUT", r"^'.*base' has no adapter: it is a model, .*; `jaxllm export` writes it$"),
        ("show RUNS/norms", r"^'.*norms' has no adapter"),
        ("export RUNS/hybrid OUT", r"^tuning\.method = 'hybrid': PEFT has no form of it; it has of lora, adalora"),
        ("export RUNS/also OUT", r"^tuning\.also = \('norm/scale',\): the run has trained parameters of the base too"),
        ("merge RUNS/prompt OUT", r"^'.*prompt' has virtual tokens .*; `jaxllm adapter export` writes them for PEFT$"),
        ("merge RUNS/hybrid OUT", r"^'.*hybrid' has gated keys and values"),
        ("export RUNS/lora OUT --step 3", r"^there is no checkpoint of step 3"),
        ("export RUNS/lora RUNS/other", r"^'.*other' is there already: name another folder, or remove it$"),
        ("import RUNS/lora OUT --base BASE", r"^'.*lora' is no adapter of PEFT: it has no adapter_config\.json$"),
        ("combine OUT", "takes the folder to make, and then the runs"),
        ("combine OUT RUNS/lora RUNS/prompt", "are of two kinds, lora and prompt"),
        ("combine OUT RUNS/prompt RUNS/longer", "have 3 and 4 virtual tokens: both must have as many"),
        ("combine OUT RUNS/lora RUNS/dora", r"dora' has magnitudes \(DoRA\), which cannot be added"),
        ("combine OUT RUNS/hybrid", "hybrid' has trained gates, which cannot be added"),
        ("combine OUT RUNS/also", r"also' has trained parameters of the base \(tuning\.also"),
        ("combine OUT RUNS/lora:nan", "lora:nan': the weight must be a number, such as 0.5"),
        ("combine OUT RUNS/lora:half", "lora:half' is not a run folder"),
        ("combine OUT RUNS/lora --rank 0", "^--rank 0: expected 1 or more"),
        ("combine OUT RUNS/prompt --rank 2", "^--rank 2: virtual tokens have no rank"),
        ("combine OUT RUNS/prompt:1 RUNS/prompt:-1", "must not add up to 0"),
    ],
)
def test_what_cannot_be_done_is_told_and_leaves_nothing(words, complaint, base, runs, tmp_path):
    replaced = {"RUNS": str(runs), "OUT": str(tmp_path / "out"), "BASE": str(base)}
    argv = words.split()
    for name, text in replaced.items():
        argv = [word.replace(name, text) for word in argv]
    before = sorted(path.name for path in runs.rglob("*"))
    with pytest.raises(UserError, match=complaint):
        run(argv)
    assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in runs.rglob("*")) == before


def test_another_base_is_told(base, runs, tmp_path):
    """Of the same shape: only its fingerprint tells."""
    shutil.copytree(runs / "lora", tmp_path / "lora")
    write_origin(tmp_path / "lora", Origin(0, "0123456789abcdef"))
    with pytest.raises(UserError, match="is an adapter for another base than what lies in"):
        run(["merge", str(tmp_path / "lora"), str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"are adapters for different bases: .* with the fingerprint 0123456789abcdef"):
        run(["combine", str(tmp_path / "out"), str(tmp_path / "lora"), str(runs / "lora")])
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_virtual_tokens_are_no_base(base, runs, tmp_path):
    run(["export", str(runs / "lora"), str(tmp_path / "peft")])
    with pytest.raises(UserError, match="has virtual tokens or gates, which cannot be a part of a base"):
        run(["import", str(tmp_path / "peft"), str(tmp_path / "out"), "--base", str(runs / "prompt")])


@pytest.mark.parametrize("name", ["prompt", "hybrid"])
def test_export_refuses_what_cannot_be_a_part_of_a_model(name, runs, tmp_path, capsys):
    assert main(["export", str(runs / name), str(tmp_path / "out")]) == 2
    assert "cannot be a part of a model's own parameters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
