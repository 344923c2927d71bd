"""The model that is evaluated: the folder of a run, or a model folder, with all that goes with it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jaxllm.common.paths import user_path
from jaxllm.common.trees import Tree
from jaxllm.config import RunConfig, UserError, to_dict
from jaxllm.data.cache import file_hashes, key_of
from jaxllm.data.chat_template import ChatTemplate, load_chat_template
from jaxllm.data.chat_tokens import end_of_turn
from jaxllm.data.tokenizer import Tokenizer, load_tokenizer
from jaxllm.evaluation.likelihood import Scorer
from jaxllm.generation.generate import Generator
from jaxllm.generation.recommended import recommended
from jaxllm.models.adapters import virtual_tokens
from jaxllm.models.transformer import dtype_for_use
from jaxllm.train.params import load_run_params
from jaxllm.train.run_folder import saved_config, saved_tokenizer

BESIDE = ("chat_template.jinja", "tokenizer_config.json", "generation_config.json", "base.json")
"""Files of a folder that change what a model is, what it reads or where it ends."""


@dataclass(frozen=True)
class Model:
    """Opened by `open_model`."""

    name: str
    """Of its folder."""
    fingerprint: str
    """A hash of all of which its answers follow."""
    config: RunConfig
    params: Tree
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """By which it is talked with; none where it reads plain text."""
    ends: frozenset[int]
    """Tokens that end a text."""
    dtype: str | None
    """Of weights and products; none means the platform's."""

    @property
    def begin(self) -> list[int]:
        """What comes before a plain text: the token that begins one, for a model that was trained so."""
        return [self.tokenizer.bos_id] if self.config.tokenizer.begins_prompts else []

    @property
    def reads(self) -> int:
        """Tokens of a text that it reads, and writes, at most: virtual ones have places too."""
        return self.config.model.max_positions - virtual_tokens(self.config.tuning)

    @cached_property
    def scorer(self) -> Scorer:
        """Made when it is asked for, with weights of its own.

        Raises:
            UserError: the model is no decoder.
        """
        return Scorer(self.config.model, self.params, self.dtype, virtual_tokens(self.config.tuning))

    @cached_property
    def generator(self) -> Generator:
        """Made when it is asked for, with weights of its own.

        Raises:
            UserError: the model is but an encoder.
        """
        options: Any = {"begin": self.config.tokenizer.begins_prompts, "virtual": virtual_tokens(self.config.tuning)}
        return Generator(self.config.model, self.params, self.tokenizer, ends=self.ends, dtype=self.dtype, **options)


def open_model(
    folder: str,
    step: int | Literal["best"] | None = None,
    *,
    ema: bool = True,
    chat: bool | None = None,
    dtype: str | None = None,
) -> Model:
    """Loads a model.

    Args:
        folder: of a run, or a model folder.
        step: which checkpoint; the one with the lowest held-out loss, or the latest when left out.
        ema: take the moving average of the parameters where the run keeps one.
        chat: talk with it through its chat template; none does so where it has one.
        dtype: of weights and products; none means the platform's.

    Raises:
        UserError: a folder, a file in it or a checkpoint that will not do, or a chat template is asked for and is not
            there.
    """
    path = user_path(folder)
    tokenizer, template = open_text(path, chat)
    pieces = saved_tokenizer(path)
    config, params, info = load_run_params(path, step, ema, dtype_for_use(dtype))
    info.check_tokenizer(tokenizer.fingerprint, pieces)
    end = None if template is None else end_of_turn(template, tokenizer)
    ends = recommended(path).ends or frozenset({tokenizer.eos_id})
    return Model(
        name=path.resolve().name,
        fingerprint=_fingerprint(path, info.step, config, [tokenizer.fingerprint, ema, template is None, dtype]),
        config=config,
        params=params,
        tokenizer=tokenizer,
        template=template,
        ends=ends if end is None else ends | {end},
        dtype=dtype,
    )


def open_text(folder: Path, chat: bool | None) -> tuple[Tokenizer, ChatTemplate | None]:
    """The tokenizer of a model, and what renders conversations. Args and Raises as for `open_model`."""
    saved_config(folder)  # what is no run folder at all is told first
    tokenizer = load_tokenizer(saved_tokenizer(folder))
    template = None if chat is False else load_chat_template(folder, tokenizer)
    if chat and template is None:
        raise UserError(
            f"--chat: '{folder}' has no chat template, neither chat_template.jinja nor one in its tokenizer's"
        )
    return tokenizer, template


def _fingerprint(folder: Path, step: int, config: RunConfig, rest: list[Any]) -> str:
    """Of what the files hold, not of where they lie. The hashes of a checkpoint stand for it, and `base.json` for the
    base of an adapter."""
    beside = [folder / name for name in BESIDE if (folder / name).is_file()]
    files = file_hashes([*beside, folder / "checkpoints" / str(step) / "hashes.json"])
    return key_of([to_dict(config.model), to_dict(config.tuning), config.tokenizer.begins_prompts, files, rest])
