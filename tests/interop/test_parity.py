"""Against Hugging Face transformers, by the fixtures that `tools/make_fixtures.py` wrote."""

import functools
import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.common.trees import Tree, flatten, map_with_path
from jaxllm.config import MeshConfig, TransformerConfig
from jaxllm.interop.convert import load, plan_import
from jaxllm.models.block import normalise
from jaxllm.models.heads import head_logits, label_logits, pooled
from jaxllm.models.transformer import Output, Transformer, decode, encode
from jaxllm.objectives.token_loss import token_loss
from jaxllm.sharding.mesh import make_mesh
from tests.interop.reference import FIXTURES, IGNORED, SEEDS
from tests.interop.tiny import NAMES, published

MESH = make_mesh(MeshConfig(), jax.devices()[:1])
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


class Case(NamedTuple):
    """One fixture with one draw of weights."""

    config: TransformerConfig
    params: Tree
    arrays: dict[str, np.ndarray]


@pytest.fixture(params=NAMES, scope="module")
def cases(request: pytest.FixtureRequest) -> list[Case]:
    with np.load(FIXTURES / f"{request.param}.npz") as file:
        arrays = {name: file[name] for name in file if name not in ("config", "shapes")}
    cases = []
    for seed in SEEDS:
        model = published(request.param, seed)
        conversion = plan_import(model)
        params = jax.tree.map(np.asarray, load(model, conversion, MESH, "float32"))
        cases.append(Case(conversion.config, params, {name: array[seed] for name, array in arrays.items()}))
    return cases


def batch_of(case: Case) -> dict[str, np.ndarray]:
    """What `token_loss` takes. Padding is a segment of its own, so that no token sees it."""
    arrays, is_pair = case.arrays, case.config.architecture == "encoder_decoder"
    tokens = arrays["decoder_input_ids" if is_pair else "input_ids"].astype(np.int32)
    targets = arrays.get("labels", tokens)
    if case.config.architecture == "decoder":
        # The reference shifts inside: the label of the next column is this token's target.
        targets = np.pad(targets[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORED)
    batch = {"tokens": tokens, "segments": arrays["mask"].astype(np.int32), "positions": places(tokens)}
    if is_pair:
        read = arrays["input_ids"].astype(np.int32)
        batch |= {"encoder_tokens": read, "encoder_segments": arrays["attention_mask"].astype(np.int32)}
        batch["encoder_positions"] = places(read)
    elif case.config.labels or case.config.pooler:
        types = arrays.get("token_type_ids", np.zeros_like(tokens))
        return {**batch, "types": types.astype(np.int32), "labels": targets.astype(np.int32)}
    weights = (targets != IGNORED).astype(np.float32)
    return {**batch, "targets": np.maximum(targets, 0).astype(np.int32), "weights": weights}


def places(tokens: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)


def token_loss_with_states(model: Transformer, params: Tree, batch: Tree) -> tuple[jax.Array, list[jax.Array]]:
    """The mean, and what the stacks give it, the encoder's first: so that nothing is computed, or compiled, twice."""
    states = []

    def kept(run: Callable[..., Output]) -> Callable[..., Output]:
        def call(*args: Any, **named: Any) -> Output:
            out = run(*args, **named)
            states.append(out.hidden)
            return out

        return call

    with mock.patch.multiple("jaxllm.objectives.token_loss", encode=kept(encode), decode=kept(decode)):
        total, weight, _ = token_loss(model, params, batch, None, chunk=64)
    return total / weight, states


def pooled_loss_with_states(model: Transformer, params: Tree, batch: Tree) -> tuple[jax.Array, list[jax.Array]]:
    """The classification's, or of a pooler alone the mean square."""
    hidden = encode(model, params, batch["tokens"], None, batch["segments"], types_BT=batch["types"]).hidden
    if not model.config.labels:
        return jnp.mean(jnp.square(pooled(params, hidden[:, 0]))), [hidden]
    logits = jax.nn.log_softmax(label_logits(params, hidden, model.config))
    return -jnp.mean(jnp.take_along_axis(logits, batch["labels"][:, None], axis=-1)), [hidden]


@functools.partial(jax.jit, static_argnums=0)
def outcome(config: TransformerConfig, params: Tree, batch: Tree) -> dict[str, Any]:
    """In one program."""
    loss_with_states = token_loss_with_states if "targets" in batch else pooled_loss_with_states
    mean = functools.partial(loss_with_states, Transformer(config), batch=batch)
    (loss, states), gradients = jax.value_and_grad(mean, has_aux=True)(params)
    if config.labels or config.pooler:
        logits = label_logits(params, states[-1], config) if config.labels else pooled(params, states[-1][:, 0])
    else:
        logits = head_logits(params, states[-1], config)
    return {"loss": loss, "gradients": gradients, "logits": logits, "states": states}


def silenced(params: Tree) -> Tree:
    """Layers after the first write nothing into the stream."""
    writes = re.compile(r"^layers/.*(output|down)/")
    return map_with_path(lambda path, x: np.concatenate([x[:1], 0 * x[1:]]) if writes.search(path) else x, params)


def normed(case: Case, hidden: np.ndarray) -> jax.Array:
    """What silent layers and the last norm leave of the reference's hidden states after the first layer."""
    config, params = case.config, case.params
    if config.norm_place != "post":
        return normalise(config, params["final_norm"], jnp.asarray(hidden))
    for i in range(1, config.layers):
        for name in ("attention_norm", "cross_attention_norm", "mlp_norm"):
            if name in params["layers"]:
                hidden = normalise(config, jax.tree.map(operator.itemgetter(i), params["layers"][name]), hidden)
    return hidden


def at(places: np.ndarray, x_BTX: jax.Array) -> jax.Array:
    """Of all rows together."""
    return x_BTX.reshape(-1, x_BTX.shape[-1])[places]


def test_hidden_states_logits_loss_and_gradients_match(cases):
    for case in cases:
        config, arrays, batch = case.config, case.arrays, batch_of(case)
        found = outcome(config, case.params, batch)
        if "encoded" in arrays:
            np.testing.assert_allclose(at(arrays["read_places"], found["states"][0]), arrays["encoded"], **CLOSE)
        first = outcome(config, silenced(case.params), batch)["states"][-1]
        np.testing.assert_allclose(at(arrays["places"], first), normed(case, arrays["hidden_1"]), **CLOSE)
        logits = found["logits"]
        logits = at(arrays["places"], logits) if logits.ndim == 3 else logits
        np.testing.assert_allclose(logits, arrays["logits"], **CLOSE)
        np.testing.assert_allclose(found["loss"], arrays["loss"], **CLOSE)
        gradients = flatten(found["gradients"])
        if config.architecture == "encoder_decoder":
            gradients.pop("head/bias", None)  # a constant of BART's
        norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients.values()))
        np.testing.assert_allclose(norm, arrays["gradient_norm"], **CLOSE)
