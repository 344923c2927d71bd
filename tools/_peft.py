"""What the tools that hold adapters against PEFT have in common: its models, and its logits."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

sys.path.append(str(Path(__file__).parents[1]))
from jaxllm.interop.verify import Inputs
from tests.interop import adapters, tiny
from tests.interop.adapters import Case


def quiet() -> None:
    """One thread, and no word but ours."""
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def base_of(name: str, folder: Path) -> Path:
    """Makes a Hugging Face folder of the model of a fixture, without a tokenizer."""
    model = tiny.published(name)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(model.config)))
    save_file({tensor: model.read(tensor) for tensor in model.tensors}, folder / "model.safetensors", {"format": "pt"})
    return folder


def opened(folder: Path) -> hf.PreTrainedModel:
    """The model in a folder, by the class that its `config.json` names."""
    [name] = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(hf, name).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def adapter_of(case: Case, base: Path, folder: Path) -> Path:
    """Has PEFT write an adapter for a base, with tensors that are drawn."""
    model = opened(base)
    task = None if model.config.model_type in ("bert", "roberta") else "CAUSAL_LM"
    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else task
    config = getattr(peft, case.kind)(task_type=task, **case.settings)
    made = peft.get_peft_model(model, config)
    if case.kind == "AdaLoraConfig":
        names = [name for name, _ in made.base_model.model.named_parameters() if ".lora_E." in name]
        kept = np.random.RandomState(0).random((len(names), config.init_r)) < 0.5
        kept[0] = False  # a layer without any rank left
        config.rank_pattern = {name: row.tolist() for name, row in zip(names, kept, strict=True)}
    made.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    tensors = {name: adapters.drawn(name, array.shape) for name, array in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    return folder


def logits(base: Path, adapter: Path, given: Inputs) -> np.ndarray:
    """Of the real tokens, those of PEFT for an adapter in a folder; hidden states of an encoder without a head."""
    model = peft.PeftModel.from_pretrained(opened(base), adapter).eval()
    named = {"input_ids": given.tokens_BT, "attention_mask": given.real_BT}
    if model.config.is_encoder_decoder:
        named["decoder_input_ids"] = given.written_BT
    with torch.no_grad():
        out = model(**{name: torch.from_numpy(array).long() for name, array in named.items()})
    found = (out.logits if hasattr(out, "logits") else out.last_hidden_state).float().numpy()
    return found[:, -given.tokens_BT.shape[1] :]
