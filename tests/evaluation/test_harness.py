"""The adapter to lm-eval, with requests as it makes them; and lm-eval itself where it is installed."""

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from jaxllm.config import UserError
from jaxllm.evaluation import harness
from jaxllm.evaluation.harness import Adapter, evaluate_tasks, rolling, settings_of
from jaxllm.evaluation.likelihood import Request
from jaxllm.generation.config import SamplingConfig


def asked(*args):
    return SimpleNamespace(args=args)


def silent(what, unit, total):
    return lambda done: None


@pytest.fixture
def adapter(plain, scorer):
    plain.__dict__["scorer"] = scorer  # whose programs are compiled
    return Adapter(plain, 2, silent)


def test_likelihoods_are_of_pairs_as_one_text(adapter, scorer, tokenizer):
    pairs = [("the quick ", "brown fox"), ("", "lazy dog"), ("the quick", " brown fox"), ("the " * 80, "lazy")]
    found = adapter.loglikelihood([asked(*pair) for pair in pairs])
    whole, quick, long = (tokenizer.encode(text) for text in ("the quick brown fox", "the quick", "the " * 80 + "lazy"))
    lazy = len(long) - len(tokenizer.encode(("the " * 80).rstrip()))
    expected = scorer.score(
        [
            Request(quick, whole[len(quick) :]),
            Request([tokenizer.bos_id], tokenizer.encode("lazy dog")),
            Request(long[-65:-lazy], long[-lazy:]),
        ]
    )
    assert found[0] == found[2]
    for pair, score in zip((found[0], found[1], found[3]), expected, strict=True):
        assert pair == (pytest.approx(score.log_prob, abs=1e-4), score.is_greedy)
    assert found[0][0] != found[1][0]


def test_a_text_that_begins_with_the_first_token_follows_itself(adapter, scorer, tokenizer):
    bos = tokenizer.token_name(tokenizer.bos_id)
    found = adapter.loglikelihood([asked("", f"{bos}fox")])
    ids = tokenizer.encode_with_specials(f"{bos}fox")
    assert ids[0] == tokenizer.bos_id
    assert found[0][0] == pytest.approx(scorer.score([Request(ids[:1], ids[1:])])[0].log_prob, abs=1e-4)


def test_every_token_of_a_whole_text_is_predicted_once(adapter, scorer, tokenizer):
    text = "the quick brown fox jumps over " * 20
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    windows = rolling(ids, 64)
    assert [token for window in windows for token in window.continuation] == ids[1:]
    assert all(len(window.context) + len(window.continuation) <= 65 for window in windows)
    assert [len(window.context) for window in windows[:-1]] == [1] * (len(windows) - 1)
    assert len(windows[-1].context) + len(windows[-1].continuation) == 65  # the last one reads all that it can
    found = adapter.loglikelihood_rolling([asked("fox"), asked(text)])
    assert found[1] == pytest.approx(sum(score.log_prob for score in scorer.score(windows)), abs=1e-3)
    assert found[0] == pytest.approx(adapter.loglikelihood([asked("", "fox")])[0][0], abs=1e-4)


def test_texts_are_written_by_their_settings_in_the_order_of_the_requests(adapter, plain, monkeypatch):
    calls = []

    def generate(prompts, new_tokens, sampling, *, stop, seeds):
        calls.append((prompts, new_tokens, sampling.temperature, stop))
        return [SimpleNamespace(text=f"{len(prompt)} {new_tokens}") for prompt in prompts]

    plain.__dict__["generator"] = SimpleNamespace(generate_from=generate)
    texts = ["fox", "the quick brown fox", "the quick", "dog " * 90, ""]
    settings = [{"until": ["\n"], "max_gen_toks": 8}] * 3 + [{"until": "\n", "temperature": 0.5}] * 2
    settings[3] = {"until": ["\n"], "max_gen_toks": 8}
    settings[4] = {"until": "a", "temperature": 0.5, "do_sample": True, "max_gen_toks": 9}
    found = adapter.generate_until([asked(*pair) for pair in zip(texts, settings, strict=True)])
    lengths = [min(len(plain.tokenizer.encode(text)), 56) for text in texts]
    assert found == [f"{n} 8" for n in lengths[:4]] + ["1 9"]
    assert [len(call[0]) for call in calls] == [2, 2, 1]
    assert calls[0][0][0] == plain.tokenizer.encode(texts[3])[-56:]
    assert [call[2:] for call in calls] == [(0.0, ("\n",))] * 2 + [(0.5, ("a",))]
    with pytest.raises(UserError, match="a task asks for 64 new tokens; the model reads 64"):
        adapter.generate_until([asked("fox", {"max_gen_toks": 64})])


@pytest.mark.parametrize(
    ("given", "tokens", "sampling", "stop"),
    [
        ({}, 256, SamplingConfig(temperature=0), ()),
        ({"until": "a", "max_new_tokens": 3, "temperature": 0.0}, 3, SamplingConfig(temperature=0), ("a",)),
        ({"until": ["a", ""], "do_sample": False, "temperature": 0.7, "top_p": 0.5}, 256, SamplingConfig(temperature=0),
         ("a",)),
        ({"do_sample": True, "top_p": 0.5, "top_k": 3}, 256, SamplingConfig(top_p=0.5, top_k=3), ()),
        ({"temperature": 0.7, "max_gen_toks": 5, "max_tokens": 6}, 5, SamplingConfig(temperature=0.7), ()),
    ],
)  # fmt: skip
def test_settings_are_as_lm_eval_reads_them(given, tokens, sampling, stop):
    assert settings_of(given) == (tokens, sampling, stop)


def test_conversations_are_rendered_by_the_models_template(talking, plain):
    said = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "dog"}]
    adapter = Adapter(talking, 2, silent)
    assert adapter.apply_chat_template(said[:1]) == "<|user|>fox<|end|><|assistant|>"
    assert adapter.apply_chat_template(said, add_generation_prompt=False) == "<|user|>fox<|end|><|assistant|>dog"
    assert adapter.chat_template(True) == "chat template"
    assert adapter.chat_template(False) is None
    assert adapter.tokenizer_name == "its hash"
    with pytest.raises(UserError, match="--chat: the model has no chat template"):
        Adapter(plain, 2, silent).apply_chat_template(said)


def test_results_keep_their_filters_and_errors():
    values = {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1, "em_stderr,strict": "N/A"}
    assert harness._means(values, 7) == {"acc": (0.5, 0.1, 7), "em (strict)": (1.0, None, 7)}


def test_groups_are_no_tasks_and_have_the_rows_of_their_tasks():
    found = {
        "results": {name: {"alias": name, "acc,none": 0.5} for name in ("all", "part", "a", "b", "c")} | {"tag": {}},
        "group_subtasks": {"all": ["part", "c"], "part": ["a", "b"], "a": [], "tag": ["c"]},
        "n-samples": {name: {"original": 9, "effective": rows} for name, rows in (("a", 1), ("b", 2), ("c", 4))},
    }
    tasks, groups = harness._split(found)
    assert {name: own["acc"].rows for name, own in tasks.items()} == {"a": 1, "b": 2, "c": 4}
    assert {name: own["acc"].rows for name, own in groups.items()} == {"all": 7, "part": 3}


INSTALLED = importlib.util.find_spec("lm_eval") is not None


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_lm_eval_the_install_line_is_told(plain):
    with pytest.raises(UserError, match=r"--harness needs lm-eval \(.*\): pip install 'jaxllm\[eval\]'"):
        evaluate_tasks(plain, ["t"], progress=silent)


@pytest.mark.skipif(not INSTALLED, reason="needs lm-eval: pip install 'jaxllm[eval]'")
@pytest.mark.filterwarnings("default")  # its own
def test_tasks_of_lm_eval_run(plain, scorer, tmp_path):
    model = replace(plain)
    model.__dict__["scorer"] = scorer
    rows = [{"q": "the quick brown", "choices": ["fox", "dog"], "gold": n % 2} for n in range(6)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "own.yaml").write_text(
        f"task: own_choices\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.json'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: gold\nmetric_list: [{metric: acc}]\n"
    )
    (tmp_path / "group.yaml").write_text(
        "group: own_group\ntask: [own_choices]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    (tmp_path / "failing.yaml").write_text(
        (tmp_path / "own.yaml").read_text().replace("own_choices", "failing").replace("acc", "brier_score")
    )
    tasks, groups = evaluate_tasks(model, ["own_group"], str(tmp_path), limit=4, progress=silent)
    assert (tasks.keys(), groups.keys()) == ({"own_choices"}, {"own_group"})
    for found in (tasks["own_choices"]["acc"], groups["own_group"]["acc"]):
        assert (found.mean, found.rows) == (0.5, 4)
    several = [{"q": "the", "choices": ["fox", "dog", "cat"][: 2 + n % 2], "gold": 0} for n in range(6)]
    (tmp_path / "rows.json").write_text(json.dumps(several))
    with pytest.raises(UserError, match=r"^--harness failing: ValueError: "):
        evaluate_tasks(model, ["failing"], str(tmp_path), progress=silent)
    with pytest.raises(UserError, match="--harness own_choice: lm-eval has no such task; near to it: own_choices"):
        evaluate_tasks(model, ["own_choice"], str(tmp_path), progress=silent)
    (tmp_path / "rows.json").unlink()
    (tmp_path / "lost.yaml").write_text((tmp_path / "own.yaml").read_text().replace("own_choices", "lost"))
    with pytest.raises(UserError, match=r"--harness lost: .*rows\.json"):
        evaluate_tasks(model, ["lost"], str(tmp_path), progress=silent)
