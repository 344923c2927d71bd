"""Write tests/fixtures/: what the reference implementation computes, so that parity tests need no torch.

    pip install -e .[bench] && python tools/make_fixtures.py

For tiny models of every family, with Hugging Face transformers, in float32: `config.json`, names and shapes of the
tensors of a saved model, padded rows of tokens with labels, and at some of their places the hidden states after the
first block and the logits, with the mean loss and the norm of its gradient; all for two draws of weights
(`tests/interop/reference.py`), which are not stored. Every run writes the same files.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

sys.path.append(str(Path(__file__).parents[1]))
from tests.interop.reference import FIXTURES, IGNORED, SEEDS, drawn

VOCABULARY, PADDING, FIRST = 61, 1, 3
"""Tokens are drawn from the first that has no meaning to any model."""
ROWS = (40, 27)
"""Real tokens in each row, padded on the right."""
LONG_ROWS = (150, 97)
"""More than one block of 128 queries, and less."""
WRITTEN = (24, 17)
"""Of the decoder of an encoder-decoder."""
PLACES = 24
"""Of all rows together, where hidden states and logits are kept."""

BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
    "attn_implementation": "eager",
    "pad_token_id": PADDING,
}
GROUPED = {**BASE, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
GEMMA = {**GROUPED, "head_dim": 12, "sliding_window": 7, "query_pre_attn_scalar": 20}
NEOX = {**BASE, "bos_token_id": None, "eos_token_id": None}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 10,
    "d_ff": 40,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
    "attn_implementation": "eager",
}


def rope(kind: str, **values: Any) -> dict[str, Any]:
    """Short wavelengths, so that the borders of a scaling lie among them."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, "factor": 4.0, **values}}


def models() -> dict[str, hf.PreTrainedModel]:
    """By the names of the fixtures."""
    no_drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    original = {"original_max_position_embeddings": 32}
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    sliding = {"rope_type": "default", "rope_theta": 30.0}
    return {
        "llama": hf.LlamaForCausalLM(
            hf.LlamaConfig(**GROUPED, head_dim=10, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
        ),
        "llama_llama3": hf.LlamaForCausalLM(
            hf.LlamaConfig(
                **GROUPED,
                **rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, **original),
                tie_word_embeddings=True,
            )
        ),
        "llama_yarn": hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, **rope("yarn", beta_fast=8.0, **original))),
        "llama_linear": hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, **rope("linear"))),
        "mistral": hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=7)),
        "qwen2": hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
        "qwen3": hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=12)),
        "gemma2": hf.Gemma2ForCausalLM(
            hf.Gemma2Config(**GEMMA, attn_logit_softcapping=4.0, final_logit_softcapping=5.0)
        ),
        "gemma3": hf.Gemma3ForCausalLM(
            hf.Gemma3TextConfig(
                **{**GEMMA, "num_hidden_layers": 7},  # the sixth has no window
                rope_parameters={"full_attention": rope("linear")["rope_parameters"], "sliding_attention": sliding},
            )
        ),
        "mixtral": hf.MixtralForCausalLM(
            hf.MixtralConfig(
                **GROUPED,
                num_local_experts=4,
                sliding_window=None,
                output_router_logits=True,  # adds the loss that balances experts
                router_aux_loss_coef=0.1,
            )
        ),
        "gpt2": hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_inner=96,
                n_positions=max(ROWS),
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=None,
                eos_token_id=None,
                attn_implementation="eager",
            )
        ),
        "neox": hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**NEOX)),
        "neox_sequential": hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**NEOX, use_parallel_residual=False)),
        "phi": hf.PhiForCausalLM(hf.PhiConfig(**NEOX)),
        "olmo2": hf.Olmo2ForCausalLM(hf.Olmo2Config(**GROUPED)),
        "bert": hf.BertModel(hf.BertConfig(**BASE, **no_drop)),
        "bert_masked": hf.BertForMaskedLM(hf.BertConfig(**BASE, **no_drop)),
        "bert_labels": hf.BertForSequenceClassification(hf.BertConfig(**BASE, **no_drop, num_labels=3)),
        "roberta_masked": hf.RobertaForMaskedLM(hf.RobertaConfig(**BASE, **no_drop)),
        "roberta_labels": hf.RobertaForSequenceClassification(hf.RobertaConfig(**BASE, **no_drop, num_labels=3)),
        "t5": hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
        "t5_gated": untied(hf.T5ForConditionalGeneration(hf.T5Config(**T5, **gated))),
        "bart": hf.BartForConditionalGeneration(
            hf.BartConfig(
                vocab_size=VOCABULARY,
                d_model=32,
                encoder_layers=3,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=40,
                decoder_ffn_dim=40,
                max_position_embeddings=64,
                dropout=0.0,
                attn_implementation="eager",
            )
        ),
    }


def untied(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    """T5 v1.1 has a head of its own, which its class in transformers 5 has only when a file holds one."""
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model


LONG = ("mistral", "t5")


def padded(random: np.random.Generator, rows: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and where they are real."""
    mask = np.arange(max(rows)) < np.array(rows)[:, None]
    return np.where(mask, random.integers(FIRST, VOCABULARY, mask.shape), PADDING), mask


def inputs(name: str, model: hf.PreTrainedModel, random: np.random.Generator) -> dict[str, np.ndarray]:
    """By the names of the reference's arguments, and `mask` of the places that have logits."""
    tokens, mask = padded(random, LONG_ROWS if name in LONG else ROWS)
    given = {"input_ids": tokens, "attention_mask": mask.astype(np.int64), "mask": mask}
    if model.config.is_encoder_decoder:
        targets, written = padded(random, WRITTEN)
        begun = np.roll(targets, 1, axis=1)
        begun[:, 0] = model.config.decoder_start_token_id
        return {**given, "decoder_input_ids": begun, "labels": np.where(written, targets, IGNORED), "mask": written}
    if name == "bert":
        return {**given, "token_type_ids": np.arange(mask.shape[1]) // 9 % 2 * mask}
    if name.endswith("labels"):
        return {**given, "labels": random.integers(3, size=len(ROWS))}
    if name.endswith("masked"):
        return {**given, "labels": np.where(mask & (random.random(mask.shape) < 0.3), tokens, IGNORED)}
    return {**given, "labels": np.where(mask & (np.arange(mask.shape[1]) >= 5), tokens, IGNORED)}  # after a prompt


def results(model: hf.PreTrainedModel, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Everything that is compared."""
    mask = given["mask"]
    arguments = {key: torch.from_numpy(value) for key, value in given.items() if key != "mask"}
    out = model(**arguments, output_hidden_states=True)
    loss = out.loss if "loss" in out else out.pooler_output.square().mean()
    loss.backward()
    squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
    places = np.flatnonzero(mask)
    places = places[np.linspace(0, len(places) - 1, PLACES).astype(int)]
    hidden = out.decoder_hidden_states if model.config.is_encoder_decoder else out.hidden_states
    logits = out.logits if "logits" in out else out.pooler_output
    made = {
        "places": places,
        "hidden_1": hidden[1].flatten(0, 1)[places],
        "logits": logits.flatten(0, 1)[places] if logits.ndim == 3 else logits,
        "loss": loss,
        "gradient_norm": torch.stack(squares).sum().sqrt().float(),
    }
    if model.config.is_encoder_decoder:
        read = np.flatnonzero(given["attention_mask"])
        read = read[np.linspace(0, len(read) - 1, PLACES).astype(int)]
        made |= {"read_places": read, "encoded": out.encoder_last_hidden_state.flatten(0, 1)[read]}
    return {key: np.asarray(value.detach() if torch.is_tensor(value) else value) for key, value in made.items()}


def fixture(name: str, model: hf.PreTrainedModel) -> dict[str, np.ndarray]:
    """What a file holds; arrays lead with the seeds."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        # As it is saved, the names are those that the publishers use.
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        config = {key: value for key, value in config.items() if key not in ("transformers_version", "dtype")}
        weights = Path(folder) / "model.safetensors"
        shapes = {tensor: list(array.shape) for tensor, array in sorted(load_file(weights).items())}
        for seed in SEEDS:
            random = np.random.default_rng(seed)
            drawings = {tensor: drawn(config, tensor, shape, seed) for tensor, shape in shapes.items()}
            save_file(drawings, weights, metadata={"format": "pt"})
            loaded = type(model).from_pretrained(folder, dtype="float32").eval()
            given = inputs(name, loaded, random)
            found.append({**given, **results(loaded, given)})
    stacked = {key: np.stack([each[key] for each in found]) for key in found[0]}
    texts = {"config": json.dumps(config, indent=1, sort_keys=True), "shapes": json.dumps(shapes)}
    arrays = {key: array.astype(np.int16) if array.dtype == np.int64 else array for key, array in stacked.items()}
    return {**{key: np.array(text) for key, text in texts.items()}, **arrays}


def main() -> None:
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    FIXTURES.mkdir(exist_ok=True)
    for name, model in models().items():
        path = FIXTURES / f"{name}.npz"
        np.savez_compressed(path, **fixture(name, model))
        print(f"{path}: {path.stat().st_size / 1000:.1f} kB")


if __name__ == "__main__":
    main()
