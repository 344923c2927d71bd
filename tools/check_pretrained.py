"""Hold SmolLM2-135M-Instruct and all-MiniLM-L6-v2, as imported, against transformers.

    pip install -e .[bench] && tools/fetch_pretrained && python tools/check_pretrained.py

SmolLM2: perplexity on the first 50,000 characters of `pydoc_data.topics` of Python 3.11 (sorted, joined by blank
lines; windows of 512 tokens without overlap, no begin of document), the greatest difference of logits on the first
windows, and greedy continuations of five prompts. transformers reads the weights that `jaxllm export` writes, of the
same dequantised numbers. (transformers 5.24 itself reads the GGUF file's tokenizer without the rule that digits are
tokens of their own, which llama.cpp follows and so do we; the figure that it gives, 14.2555, is the second line's.)
MiniLM: cosines of embeddings of 100 sentences to the mean of transformers' hidden states. All in float32.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

WINDOW, WINDOWS_COMPARED, NEW = 512, 4, 128
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a small village by the sea,",
    "Water boils at 100 degrees Celsius because",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
)


def reference_text() -> str:
    """The text of which the published perplexity is."""
    import pydoc_data.topics

    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))[:50_000]


def sentences() -> list[str]:
    """One hundred, from the prose of the same manual."""
    lines = (line.strip() for line in reference_text().splitlines())
    return [line for line in lines if len(line) > 40][:100]


def without_digit_rule(folder: Path) -> Any:
    """The tokenizer of a model folder without the first of its rules for splitting text."""
    import tokenizers

    content = json.loads((folder / "tokenizer.json").read_bytes())
    del content["pre_tokenizer"]["pretokenizers"][0]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def opened(folder: Path) -> tuple[Any, Any, Any]:
    """Configuration, parameters and tokenizer of a model folder."""
    from jaxllm.data.tokenizer import load_tokenizer
    from jaxllm.train.params import load_run_params
    from jaxllm.train.run_folder import saved_tokenizer

    config, params, _ = load_run_params(folder)
    return config.model, params, load_tokenizer(saved_tokenizer(folder))


def perplexity(model: Any, params: Any, ids: list[int]) -> float:
    """Of windows without overlap, by the loss that trains."""
    import jax
    import jax.numpy as jnp

    from jaxllm.models.transformer import Transformer
    from jaxllm.objectives.token_loss import token_loss

    @jax.jit
    def nll(params: Any, tokens: Any, real: Any) -> Any:
        batch = {
            "tokens": tokens,
            "targets": jnp.roll(tokens, -1, axis=1),
            "weights": jnp.roll(real, -1, axis=1).at[:, -1].set(0.0),
            "segments": real.astype(jnp.int32),
            "positions": jnp.broadcast_to(jnp.arange(WINDOW), tokens.shape),
        }
        return token_loss(Transformer(model), params, batch, None, chunk=WINDOW)[:2]

    total = count = 0.0
    for start in range(0, len(ids), WINDOW):
        own = ids[start : start + WINDOW]
        padded = np.zeros((2, 1, WINDOW))
        padded[0, 0, : len(own)], padded[1, 0, : len(own)] = own, 1
        loss, weight = nll(params, padded[0].astype(np.int32), padded[1].astype(np.float32))
        total, count = total + float(loss), count + float(weight)
    return float(np.exp(total / count))


def check_smollm2(folder: Path) -> None:
    """Prints the four comparisons."""
    import jax
    import jax.numpy as jnp
    import torch
    import transformers

    from jaxllm.generation.config import SamplingConfig
    from jaxllm.generation.generate import Generator
    from jaxllm.models.heads import head_logits
    from jaxllm.models.transformer import Transformer, decode

    model, params, tokenizer = opened(folder)
    ids = tokenizer.encode(reference_text())
    print(f"perplexity of {len(ids):,} tokens: {perplexity(model, params, ids):.4f}")
    joined = without_digit_rule(folder).encode(reference_text(), add_special_tokens=False).ids
    print(f"perplexity of {len(joined):,} tokens, digits joined: {perplexity(model, params, joined):.4f}")
    with tempfile.TemporaryDirectory() as exported:
        subprocess.run([Path(sys.executable).with_name("jaxllm"), "export", folder, f"{exported}/hf"], check=True)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(f"{exported}/hf", dtype=torch.float32).eval()
        coder = transformers.AutoTokenizer.from_pretrained(f"{exported}/hf")
    windows = np.array(ids[: WINDOW * WINDOWS_COMPARED]).reshape(-1, WINDOW)
    run = jax.jit(lambda p, tokens: head_logits(p, decode(Transformer(model), p, tokens).hidden, model))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(windows)).logits.numpy()
    print(f"logits: differ by at most {np.abs(run(params, jnp.asarray(windows, jnp.int32)) - expected).max():.2e}")
    generator = Generator(model, params, tokenizer)
    same = 0
    for prompt in PROMPTS:
        row = coder(prompt)["input_ids"]
        steps = generator.tokens([row], NEW, SamplingConfig(temperature=0))
        own = [int(tokens[0]) for tokens in steps]
        with torch.no_grad():
            all_of_it = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
            made = theirs.generate(**all_of_it, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        same += own == made[0, len(row) :].tolist()
    print(f"greedy continuations of {NEW} tokens that are identical: {same} of {len(PROMPTS)}")


def check_minilm(folder: Path, published: Path) -> None:
    """Prints the least cosine."""
    import torch
    import transformers

    from jaxllm.generation.embedding import Embedder, published_pooling

    model, params, tokenizer = opened(folder)
    texts = sentences()
    own = Embedder(model, params, tokenizer, published_pooling(folder)).embed(texts)
    theirs = transformers.AutoModel.from_pretrained(published, dtype=torch.float32).eval()
    given = transformers.AutoTokenizer.from_pretrained(published)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    print(f"least cosine of {len(texts)} sentences: {(own * means).sum(-1).min():.7f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="where tools/fetch_pretrained put them")
    models = parser.parse_args().models
    check_smollm2(models / "smollm2-135m-instruct")
    with tempfile.TemporaryDirectory() as exported:
        minilm = models / "all-minilm-l6-v2"
        subprocess.run([Path(sys.executable).with_name("jaxllm"), "export", minilm, f"{exported}/hf"], check=True)
        check_minilm(minilm, Path(exported, "hf"))


if __name__ == "__main__":
    main()
