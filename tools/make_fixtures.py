"""Write tests/fixtures/: what the reference implementation computes, so that parity tests need no torch.

    pip install -e .[bench] && python tools/make_fixtures.py

For a Llama-like and a GPT-2-like configuration of Hugging Face transformers and two seeds each: random
weights under the reference's names (`weights/...`), padded token rows with their mask and labels, and the
reference's hidden states after the first block, logits, mean loss and global gradient norm, in float32.
Every run writes the same files.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

FIXTURES = Path(__file__).parent.parent / "tests" / "fixtures"
ROWS = (150, 97)
"""Real tokens in each row: more than one block of 128 queries, and less, padded on the right."""
VOCABULARY = 61
IGNORED = -100
"""The reference's label of a token without a loss."""


def llama() -> transformers.PreTrainedModel:
    """Grouped queries, RoPE, SwiGLU, an untied head, and heads that are together wider than the stream."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=10,
            intermediate_size=40,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )


def gpt2() -> transformers.PreTrainedModel:
    """LayerNorm, learned positions, biases, tanh GELU, a tied head."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
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
    )


def fixture(model: transformers.PreTrainedModel, seed: int) -> dict[str, np.ndarray]:
    """Random weights, inputs and everything that is compared."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Far from the usual start, so that attention is sharp and norms, biases and tied weights matter.
            centre = float(weight.ndim == 1 and name.endswith("weight"))  # of the norms
            weight.copy_(centre + 0.2 * torch.randn(weight.shape, generator=random))
    tokens = torch.randint(VOCABULARY, (len(ROWS), max(ROWS)), generator=random)
    mask = torch.arange(max(ROWS)) < torch.tensor(ROWS)[:, None]
    prompt = torch.arange(max(ROWS)) < 5
    labels = torch.where(mask & ~prompt, tokens, IGNORED)
    out = model(input_ids=tokens, attention_mask=mask.long(), labels=labels, output_hidden_states=True)
    out.loss.backward()
    gradients = [weight.grad.double().square().sum() for weight in model.parameters()]
    arrays = {f"weights/{name}": weight for name, weight in model.named_parameters()}
    arrays |= {"tokens": tokens, "mask": mask, "labels": labels, "hidden_1": out.hidden_states[1]}
    arrays |= {"logits": out.logits, "loss": out.loss, "gradient_norm": torch.stack(gradients).sum().sqrt()}
    return {name: array.detach().numpy() for name, array in arrays.items()}


def main() -> None:
    torch.set_num_threads(1)
    FIXTURES.mkdir(exist_ok=True)
    for make in (llama, gpt2):
        for seed in (0, 1):
            path = FIXTURES / f"{make.__name__}_{seed}.npz"
            np.savez_compressed(path, **fixture(make(), seed))
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
