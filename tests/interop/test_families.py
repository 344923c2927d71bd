from dataclasses import replace
from typing import Any

import pytest

from jaxllm.config import TransformerConfig, UserError
from jaxllm.interop.convert import choose_family
from jaxllm.interop.families import FAMILIES, family_of
from jaxllm.interop.rules import misfits, named
from jaxllm.interop.settings import Settings
from jaxllm.models import presets
from jaxllm.models.table import parameter_table
from tests.interop.configurations import CONFIGS

ALL = [(name, config) for name, configs in CONFIGS.items() for config in configs]
each = pytest.mark.parametrize(("name", "config"), ALL, ids=[f"{name}-{i}" for i, (name, _) in enumerate(ALL)])


def settings_of(name: str, config: TransformerConfig, **changes: Any) -> Settings:
    """What the family writes, beside its tensors."""
    family = FAMILIES[name]
    tensors = [tensor.name for tensor in named(family.rules(config), parameter_table(config))]
    return Settings({**family.write(config), "model_type": name, **changes}, "config.json", frozenset(tensors))


def test_every_family_and_every_preset_is_held_against_what_it_writes():
    assert CONFIGS.keys() == FAMILIES.keys()
    known = [config for _, config in ALL]
    shapes = {name: value for name, value in vars(presets).items() if isinstance(value, TransformerConfig)}
    assert {name for name, value in shapes.items() if value not in known} == {
        *("SMOLLM2_135M", "LLAMA3_8B", "LLAMA3_1_8B")
    }


@each
def test_a_configuration_that_is_written_is_read_again(name, config):
    assert FAMILIES[name].read(settings_of(name, config)) == config


@each
def test_rules_name_every_parameter_once_and_with_its_axes(name, config):
    rules, table = FAMILIES[name].rules(config), parameter_table(config)
    assert misfits(rules, table) == set()
    paths = [path for rule in rules for path in rule.paths]
    assert len(paths) == len(set(paths)) == len(table)
    tensors = [tensor.name for tensor in named(rules, table)]
    assert len(tensors) == len(set(tensors))


@each
def test_a_family_is_found_for_every_configuration(name, config):
    assert choose_family(config, name).model_type == name
    found = choose_family(config, None)
    assert list(FAMILIES).index(found.model_type) <= list(FAMILIES).index(name)


def test_a_family_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(UserError, match="'lama': is not supported; the nearest is llama; there are llama, mistral"):
        family_of(Settings({"model_type": "lama"}, "config.json"))
    with pytest.raises(UserError, match="model_type = '': is not supported; there are"):
        family_of(Settings({}, "config.json"))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp = 2: only 1"),
        ("llama", {"num_attention_heads": None}, "'num_attention_heads' is missing"),
        ("mistral", {"layer_types": ["sliding_attention", "full_attention"] * 16}, "layer_types"),
        ("mixtral", {"layer_types": ["sliding_attention"] * 32}, "layer_types"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}, "max_window_layers = 3"),
        ("qwen3", {"layer_types": ["sliding_attention"] + ["full_attention"] * 27}, "layer_types"),
        ("gemma2", {"layer_types": ["full_attention"] * 26}, "layer_types"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("roberta", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj = 'gated-mish': one of"),
        ("bart", {"encoder_ffn_dim": 8}, "encoder_ffn_dim = 8: only 3072"),
        ("bart", {"normalize_before": True}, "normalize_before"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else x,
)
def test_what_cannot_be_expressed_is_refused_by_its_key(name, changes, message):
    with pytest.raises(UserError, match=message):
        FAMILIES[name].read(settings_of(name, CONFIGS[name][0], **changes))


def test_layers_as_transformers_lists_them_are_read():
    for name in ("mistral", "qwen2", "gemma2", "gemma3_text"):
        for config in CONFIGS[name]:
            has = [config.sliding_window and (i + 1) % (config.global_every or 99) for i in range(config.layers)]
            types = ["sliding_attention" if window else "full_attention" for window in has]
            assert FAMILIES[name].read(settings_of(name, config, layer_types=types)) == config


def test_a_window_over_the_last_layers_only_is_none_where_there_are_no_such_layers():
    """Qwen 2.5 publishes `max_window_layers` without using a window."""
    config = presets.QWEN2_5_0_5B
    for changes in ({"use_sliding_window": False}, {"use_sliding_window": True, "sliding_window": 8}):
        settings = settings_of("qwen2", config, max_window_layers=config.layers, **changes)
        assert FAMILIES["qwen2"].read(settings) == config


def test_a_window_that_is_left_out_is_that_of_the_library_and_a_null_is_none():
    used = {"use_sliding_window": True, "max_window_layers": 0}
    cases = ("mistral", {}, 4096), ("mixtral", {}, None), ("qwen2", used, 4096), ("qwen3", {}, None)
    for name, changes, left_out in cases:
        settings = settings_of(name, CONFIGS[name][0], **changes)
        bare = {key: value for key, value in settings.values.items() if key not in ("sliding_window", "layer_types")}
        for values, window in ((bare, left_out), ({**bare, "sliding_window": None}, None)):
            assert FAMILIES[name].read(replace(settings, values=values)).sliding_window == window, name


def test_heads_are_those_that_there_are_tensors_of():
    def read(name: str, tensors: set[str], **values: Any) -> TransformerConfig:
        settings = settings_of(name, CONFIGS[name][0], **values)
        return FAMILIES[name].read(replace(settings, tensors=tensors))

    assert not read("bert", {"pooler.dense.weight"}).head_transform
    assert read("bert", {"pooler.dense.weight"}).pooler
    assert not read("bert", {"cls.predictions.bias"}).pooler
    labelled = {"bert.pooler.dense.weight", "classifier.weight"}
    assert read("bert", labelled, id2label={"0": "a", "1": "b", "2": "c"}).labels == 3
    assert read("bert", labelled).labels == 2
    assert read("roberta", {"classifier.dense.weight"}).pooler
    assert not read("bart", {"shared.weight"}).head_bias


@pytest.mark.parametrize(
    ("said", "has_head", "tied"),
    [
        ({}, False, True),
        ({"tie_word_embeddings": True}, True, True),
        ({"tie_word_embeddings": False}, True, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False, True),
    ],
)
def test_t5_has_a_head_of_its_own_where_any_version_of_transformers_says_so(said, has_head, tied):
    """Version 5 always writes that weights are tied; they are when the file has no second tensor."""
    written = settings_of("t5", presets.T5_SMALL)
    values = {k: v for k, v in written.values.items() if k not in ("tie_word_embeddings", "scale_decoder_outputs")}
    tensors = {"shared.weight", *(("lm_head.weight",) if has_head else ())}
    config = FAMILIES["t5"].read(Settings({**values, **said}, "config.json", tensors))
    assert config.tied_embeddings == tied
    scaled = said.get("scale_decoder_outputs", said.get("tie_word_embeddings", True))
    assert config.logit_scale == (512**-0.5 if scaled else 1.0)


# What transformers would compute otherwise, or not at all


@pytest.mark.parametrize(
    "config",
    [
        replace(presets.MISTRAL_7B, attention_bias="all"),
        replace(presets.MISTRAL_7B, mlp_bias=True),
        replace(presets.QWEN2_5_0_5B, mlp_bias=True),
        replace(presets.QWEN3_0_6B, mlp_bias=True),
        replace(presets.MIXTRAL_8X7B, attention_bias="all"),
        replace(presets.GEMMA2_2B, mlp_bias=True),
        replace(presets.OLMO2_7B, mlp_bias=True),
        replace(presets.MINILM_L6, pooler=False, labels=3),
        replace(presets.BART_BASE, tied_embeddings=False),
    ],
)
def test_a_model_that_transformers_would_not_compute_alike_is_not_exported(config):
    with pytest.raises(UserError, match=r"no family can express this model; the nearest, .* has no way to say \S"):
        choose_family(config, None)


def test_an_mlp_that_no_family_has_is_named():
    with pytest.raises(UserError, match="t5 cannot express this model: it has no way to say mlp = 'relu2'"):
        choose_family(replace(presets.T5_SMALL, mlp="relu2"), "t5")


def test_keys_that_published_files_leave_out_have_the_defaults_of_the_library():
    for name, config, keys in (
        ("t5", presets.T5_SMALL, ("feed_forward_proj", "relative_attention_max_distance", "tie_word_embeddings")),
        ("gemma2", presets.GEMMA2_2B, ("attn_logit_softcapping", "final_logit_softcapping", "layer_types")),
        ("roberta", presets.ROBERTA_BASE, ("pad_token_id",)),
    ):
        found = settings_of(name, config)
        values = {key: value for key, value in found.values.items() if key not in keys}
        assert FAMILIES[name].read(replace(found, values=values)) == config


@pytest.mark.parametrize(
    ("name", "config", "changes", "complaint"),
    [
        ("bert", presets.MINILM_L6, {"architectures": ["BertForTokenClassification"]}, "heads over the whole text"),
        ("bert", presets.BERT_BASE, {"tie_word_embeddings": False}, "tie_word_embeddings = False: only True"),
        ("roberta", presets.ROBERTA_BASE, {"pad_token_id": 3}, "pad_token_id = 3: only 1 is supported"),
        ("bart", presets.BART_BASE, {"tie_word_embeddings": False}, "tie_word_embeddings = False: only True"),
        ("llama", presets.LLAMA2_7B, {"hidden_act": ["silu"]}, r"hidden_act = \['silu'\]: one of silu"),
    ],
)
def test_a_setting_that_would_be_computed_otherwise_is_refused(name, config, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        FAMILIES[name].read(settings_of(name, config, **changes))
