import contextlib
import math
from collections.abc import Callable
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxllm.common.trees import Tree, flatten
from jaxllm.config import MeshConfig, UserError
from jaxllm.interop.convert import Conversion, choose_family, exported, load, plan_import
from jaxllm.interop.families import FAMILIES
from jaxllm.interop.published import Published
from jaxllm.models import presets
from jaxllm.sharding.mesh import make_mesh
from tests.interop.tiny import NAMES, of_arrays, published

ONE = make_mesh(MeshConfig(), jax.devices()[:1])


def loaded(model: Published, dtype: str = "float32") -> Tree:
    return flatten(load(model, plan_import(model), ONE, dtype))


def changed(name: str, change: Callable[[dict[str, np.ndarray]], object], **config: object) -> Published:
    """The model of a fixture, with other tensors."""
    model = published(name)
    arrays = {name: model.read(name) for name in model.tensors}
    return of_arrays({**model.config, **config}, change(arrays) or arrays)


def assert_equal(one: Tree, other: Tree) -> None:
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


def test_tensors_that_are_missing_too_many_or_of_another_shape_are_named():
    def spoil(arrays):
        del arrays["model.norm.weight"]
        arrays["model.layers.9.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
        arrays["lm_head.weight"] = arrays["lm_head.weight"].T

    with pytest.raises(UserError) as error:
        plan_import(changed("llama", spoil))
    assert str(error.value).splitlines() == [
        "the tensors of 'model' are not those of its config.json (llama):",
        "  1 missing: model.norm.weight",
        "  1 too many: model.layers.9.mlp.up_proj.weight",
        "  1 of another shape: lm_head.weight is [32, 61] and should be [61, 32]",
    ]


def test_a_long_list_of_tensors_is_cut():
    few = ("model.embed_tokens.weight", "model.norm.weight")
    with pytest.raises(UserError, match=r"33 missing: (\S+, ){20}\.\.\.$"):
        plan_import(changed("llama", lambda arrays: {name: arrays[name] for name in few}))


@pytest.mark.parametrize(
    ("name", "values", "complaint"),
    [
        ("llama", {"vocab_size": "many"}, "vocab_size = 'many': must be a whole number from 1 to 2147483647"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads = 0: must be a whole number from 1 to 2147483647"),
        ("llama", {"num_key_value_heads": 3}, "model.kv_heads = 3: must divide model.heads = 4"),
        ("llama", {"num_hidden_layers": 10**9}, "model.layers = 1000000000: there are but 35 tensors"),
        ("mixtral", {"num_local_experts": 10**9}, "model.experts = 1000000000: there are but 41 tensors"),
        ("llama", {"rope_theta": "abc"}, "rope_theta = 'abc': must be a number"),
        ("llama", {"rope_scaling": "dynamic"}, "rope_scaling = 'dynamic': must be an object of names and values"),
        ("llama", {"attention_bias": "yes"}, "attention_bias = 'yes': must be true or false"),
        ("mistral", {"sliding_window": "wide"}, "sliding_window = 'wide': expected a whole number"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0: must be a number above 0"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_a_value_that_makes_no_model_is_refused(name, values, complaint):
    with pytest.raises(UserError, match=f"model.* {complaint}"):
        plan_import(published(name, **values))


STRANGE = (None, True, 0, -1, 3, 10**9, 10**18 + 9, 10**400, 0.5, math.inf, math.nan, "x", [], [0], {}, {"factor": "x"})
"""Values that some key may not have."""


@pytest.mark.parametrize("name", NAMES)
def test_no_value_in_config_json_ends_in_another_error(name):
    model = published(name)
    for key, kept in model.config.items():
        inner = [{**kept, k: value} for k in kept for value in STRANGE] if isinstance(kept, dict) else []
        for value in (*STRANGE, *inner):
            with contextlib.suppress(UserError):
                plan_import(replace(model, config={**model.config, key: value}))


PREFIXES = {"bert_masked": "bert.", "gpt2": "transformer.", "llama_llama3": "model.", "bart": "model."}


@pytest.mark.parametrize("name", PREFIXES)
def test_files_of_models_without_a_head_leave_out_a_prefix(name):
    heads = ("cls.", "lm_head.", "final_logits_bias")

    def without(arrays):
        return {n.removeprefix(PREFIXES[name]): x for n, x in arrays.items() if not n.startswith(heads)}

    bare = loaded(changed(name, without))
    assert_equal(bare, {path: leaf for path, leaf in loaded(published(name)).items() if path in bare})


def test_norms_of_old_files_have_other_names():
    def older(arrays):
        ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        return {n.replace(new, old): x for n, x in arrays.items() for new, old in ends.items() if n.endswith(new)} | {
            n: x for n, x in arrays.items() if "LayerNorm" not in n
        }

    assert_equal(loaded(changed("bert_masked", older)), loaded(published("bert_masked")))


COPIES = {
    "gpt2": ["lm_head.weight", "transformer.h.0.attn.bias"],
    "llama_llama3": ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"],
    "gemma2": ["lm_head.weight"],
    "bert_masked": ["cls.predictions.decoder.weight", "bert.embeddings.position_ids"],
    "roberta_masked": ["lm_head.decoder.weight", "roberta.embeddings.position_ids"],
    "t5": ["lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
    "bart": ["lm_head.weight", "model.encoder.embed_tokens.weight"],
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_tied_tensors_and_buffers_are_ignored(name):
    model = changed(name, lambda arrays: arrays | {extra: np.zeros((3, 3), np.float32) for extra in COPIES[name]})
    assert plan_import(model).tensors == plan_import(published(name)).tensors
    assert plan_import(model).left_out == ()


def test_the_head_of_next_sentence_prediction_is_left_out():
    head = "cls.seq_relationship.weight"
    model = changed("bert_masked", lambda arrays: arrays | {head: np.zeros((2, 32), np.float32)})
    assert plan_import(model).tensors == plan_import(published("bert_masked")).tensors
    assert plan_import(model).left_out == (head,)


@pytest.mark.parametrize(("name", "head"), [("gemma2", "lm_head.weight"), ("t5", "lm_head.weight")])
def test_a_head_that_config_denies_is_refused_unless_it_is_the_embedding(name, head):
    def with_head(change):
        def add(arrays):
            table = next(x for n, x in arrays.items() if n.endswith(("embed_tokens.weight", "shared.weight")))
            return arrays | {head: table + change}

        return loaded(changed(name, add))

    assert_equal(with_head(0), loaded(published(name)))
    with pytest.raises(UserError, match=f"'model': '{head}' differs from .* set tie_word_embeddings to false there"):
        with_head(np.float32(1))


def test_the_type_is_that_of_all_tensors_or_float32():
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}

    def typed(*types):
        def change(arrays):
            return {n: x.astype(types[i % len(types)]) for i, (n, x) in enumerate(arrays.items())}

        return plan_import(changed("llama", change)).dtype

    assert typed(ml_dtypes.bfloat16) == "bfloat16"
    assert typed(np.float16) == "float16"
    assert typed(np.float32, ml_dtypes.bfloat16) == "float32"
    half = changed("llama", lambda arrays: {n: x.astype(np.float16) for n, x in arrays.items()} | buffer)
    assert plan_import(half).dtype == "float16"


def test_parameters_have_the_wanted_type_and_are_counted():
    model, told = published("mixtral"), []
    conversion = plan_import(model)
    params = load(model, conversion, ONE, "bfloat16", told.append)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("bfloat16")}
    assert told == sorted(told)
    assert told[-1] == conversion.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def wide(name: str) -> Published:
    """Of a vocabulary that 8 divides."""

    def widen(arrays):
        return {n: np.pad(x, ((0, 3), (0, 0))) if x.shape[0] == 61 else x for n, x in arrays.items()}

    return changed(name, widen, vocab_size=64)


@pytest.mark.parametrize("name", ["qwen2", "mixtral", "t5"])
def test_parameters_on_a_mesh_equal_those_on_one_device(name):
    model = wide(name)
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    cut = flatten(load(model, plan_import(model), mesh, "float32"))
    assert_equal(cut, loaded(model))
    pieces = {path: leaf.sharding.shard_shape(leaf.shape) for path, leaf in cut.items()}
    shapes = {path: leaf.shape for path, leaf in cut.items()}
    divided = [path for path in cut if path.endswith("kernel") and "router" not in path and "relative" not in path]
    assert divided
    for path in divided:
        assert 8 * np.prod(pieces[path]) == np.prod(shapes[path]), path


def back(conversion: Conversion, params: Tree, dtype: str) -> dict[str, np.ndarray]:
    return {name: make() for name, _, make in exported(conversion.config, conversion.family, params, dtype)}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_imported_is_exported_byte_for_byte(name):
    model = published(name)
    arrays = back(plan_import(model), loaded(model), "float32")
    assert arrays.keys() == model.tensors.keys()
    for tensor, array in arrays.items():
        np.testing.assert_array_equal(array, model.read(tensor), err_msg=tensor)


@pytest.mark.parametrize("name", ["mixtral", "gpt2", "bert"])
def test_bfloat16_stays_as_it_is(name):
    model = changed(name, lambda arrays: {n: x.astype(ml_dtypes.bfloat16) for n, x in arrays.items()})
    arrays = back(plan_import(model), loaded(model, "bfloat16"), "bfloat16")
    for tensor, array in arrays.items():
        assert array.tobytes() == model.read(tensor).tobytes(), tensor


def test_the_first_family_that_can_express_a_configuration_is_chosen():
    first = {name: choose_family(getattr(presets, name), None).model_type for name in ("LLAMA3_8B", "GEMMA3_1B")}
    assert first == {"LLAMA3_8B": "llama", "GEMMA3_1B": "gemma3_text"}
    assert choose_family(replace(presets.LLAMA3_8B, sliding_window=8), None).model_type == "mistral"
    assert choose_family(presets.LLAMA3_8B, "mistral").model_type == "mistral"
    assert choose_family(replace(presets.BART_BASE, encoder_layers=None), None).model_type == "bart"


def test_it_is_explained_why_no_family_can():
    with pytest.raises(UserError, match=r"no family can .* nearest, llama, has no way to say logit_softcap = 3\.0$"):
        choose_family(replace(presets.LLAMA3_8B, logit_softcap=3.0), None)
    with pytest.raises(UserError, match=r"^llama cannot express this model: it has no way to say sliding_window = 8$"):
        choose_family(replace(presets.LLAMA3_8B, sliding_window=8), "llama")
    with pytest.raises(UserError, match=f"--family opt: is not known; there are {', '.join(FAMILIES)}"):
        choose_family(presets.LLAMA3_8B, "opt")
