"""Write tests/fixtures/beams.json: the texts that transformers' beam search finds, and their scores.

    pip install -e .[bench] && PYTHONPATH=. python tools/make_beam_fixtures.py

The models are those of `tests/generation/families.py`. Every run writes the same file.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from jaxllm.common.trees import flatten
from jaxllm.interop.convert import choose_family, exported
from jaxllm.interop.huggingface import write_folder
from tests.generation.families import CONFIGS, ENDS, PROMPTS, drawn_params

FIXTURE = Path(__file__).parent.parent / "tests" / "fixtures" / "beams.json"
NEW_TOKENS = 10
PADDING = 1
BEAMS = 3
SETTINGS = (
    {"length_penalty": 1.0, "early_stopping": False},
    {"length_penalty": 1.0, "early_stopping": True},
    {"length_penalty": -1.0, "early_stopping": False},
    {"length_penalty": 0.0, "early_stopping": False},
    {"length_penalty": 2.0, "early_stopping": False},
    {"length_penalty": 2.0, "early_stopping": "never"},
)


def found(model: Any, settings: dict[str, Any]) -> list[list[tuple[list[int], float]]]:
    """Of each prompt all beams, best first, as `beam_tokens` gives them."""
    name, is_pair = model.config.model_type, model.config.is_encoder_decoder
    end, most = ENDS[name], max(map(len, PROMPTS))
    rows, masks = [], []
    for prompt in PROMPTS:
        free = most - len(prompt)
        rows.append(prompt + [PADDING] * free if is_pair else [PADDING] * free + prompt)
        masks.append([1] * len(prompt) + [0] * free if is_pair else [0] * free + [1] * len(prompt))
    model.generation_config = transformers.GenerationConfig(
        **settings,
        do_sample=False,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=end,
        pad_token_id=PADDING,
        decoder_start_token_id=CONFIGS[name].start_token,
        return_dict_in_generate=True,
        output_scores=True,
    )
    out = model.generate(input_ids=torch.tensor(rows), attention_mask=torch.tensor(masks))
    new = out.sequences[:, 1 if is_pair else most :].tolist()
    texts = [row[: row.index(end) + 1] if end in row else row[:NEW_TOKENS] for row in new]
    pairs = list(zip(texts, out.sequences_scores.tolist(), strict=True))
    return [pairs[i : i + BEAMS] for i in range(0, len(pairs), BEAMS)]


def main() -> None:
    """Writes the file."""
    cases = {}
    for name, config in CONFIGS.items():
        family = choose_family(config, name)
        kind = "AutoModelForCausalLM" if config.architecture == "decoder" else "AutoModelForSeq2SeqLM"
        with tempfile.TemporaryDirectory() as folder:
            tensors = exported(config, family, flatten(drawn_params(config)), "float32")
            write_folder(Path(folder), {**family.write(config), "model_type": name}, tensors, {})
            model = getattr(transformers, kind).from_pretrained(folder).eval()
        cases[name] = [{**settings, "found": found(model, settings)} for settings in SETTINGS]
    FIXTURE.write_text(json.dumps({"new_tokens": NEW_TOKENS, "beams": BEAMS, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
