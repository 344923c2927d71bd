"""What a run reads, and what it learns to tell of it."""

from dataclasses import dataclass
from typing import Literal

BUILT_IN_TEMPLATES = ("chatml", "plain")
"""Chat templates that need no file."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text becomes tokens: an existing file, or a SentencePiece model trained on the run's own text."""

    path: str | None = None
    """A SentencePiece `.model` or a Hugging Face `tokenizer.json`; none trains one."""
    vocab_size: int = 4096
    """Pieces of the tokenizer that is trained when `path` is none."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """The algorithm of the trained tokenizer."""
    train_megabytes: float = 8.0
    """Text that the trained tokenizer is shown, sampled from the training documents."""
    extra_tokens: tuple[str, ...] = ()
    """Tokens that the trained tokenizer has and no text makes, such as `<mask>` or `<extra_id_0>`, `<extra_id_1>`."""
    begins_prompts: bool = True
    """A prompt begins with the begin-of-document token, as documents do in training. `jaxllm import` sets what the
    tokenizer's own rule is: a model that has never read that token does not expect it."""
    chat_template: str | None = None
    """How conversations become text (`sft`): the folder of a model, a `.jinja` file, or one that is built in: `chatml`,
    whose turns need the tokens <|im_start|> and <|im_end|>, or `plain`, headings for a base model, which need none.
    None is the one beside `path`."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of documents or of conversations."""

    kind: Literal["stdlib", "tfds", "text", "jsonl", "parquet", "code", "stdlib_functions"] = "stdlib"
    """The embedded corpus (this Python's standard library), a TFDS data set, or local files; or the functions of the
    standard library, each as an instruction (its signature and docstring) with an answer (its code)."""
    path: str | None = None
    """A file, a folder or a glob (`**` works); for tfds the data set's `name` or `name/config`."""
    split: str = "train"
    """The split of a TFDS data set."""
    field: str = "text"
    """The field that holds the text (jsonl, parquet, tfds)."""
    target_field: str | None = None
    """The field of what is to be written after the text in `field`: each record is a pair (`seq2seq`, `prefix`)."""
    format: Literal["text", "auto", "messages", "prompt_completion", "alpaca", "sharegpt"] = "text"
    """What a record is: a text, or a conversation (`sft`). Those have the fields `messages` (OpenAI's), `prompt` and
    `completion`, `instruction`, `input` and `output`, or `conversations`; `auto` tells by the fields of each record."""
    prompt: str | None = None
    """For `prompt_completion`, a Jinja template over the fields of a record, such as `{{ question }}`; none takes the
    field of this name, a text or a list of messages. (What TFDS keeps as an object of lists is a list of objects here:
    `{{ answers[0].text }}`.)"""
    completion: str | None = None
    """The same of the answer, such as `{{ answer.split('#### ')[1] }}`."""
    system: str | None = None
    """The system's message, put before conversations that have none."""
    task: str | None = None
    """What its documents are called in the mixture and in evaluation; none is the name of the file, or the kind."""
    task_field: str | None = None
    """The field that holds the task of each record: every task then has a part of its own in the mixture."""
    tasks: tuple[str, ...] = ()
    """Tasks of `task_field` whose records are read; none reads those of all."""
    held_out_tasks: tuple[str, ...] = ()
    """Tasks of `task_field` that are never trained on: all their records are held out."""
    group_field: str | None = None
    """The field that tells which records belong together, such as a question that several of them, of this source or
    another, are made from: those of one value are all trained on or all held out."""
    weight: float = 1.0
    """This source's share of the training rows, relative to the other sources; see also `mixture`."""
    loss_weight: float = 1.0
    """Multiplies the loss of every token of this source in training, not in evaluation."""


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """How often each task is trained on."""

    kind: Literal["weights", "proportional", "temperature"] = "weights"
    """Rows of sources by their `weight`, of whose tasks each record then comes equally often; or examples of each task
    in proportion to min(its examples, `cap`) (1910.10683), with `temperature` to the power of 1 / T; times `weight`. Of
    a text, rows are the examples."""
    cap: int | None = None
    """Examples at which a task counts as no larger (`proportional`, `temperature`); none has no limit."""
    temperature: float = 1.0
    """T: 1 is in proportion, larger ones come nearer to equal shares (`temperature`)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """From documents to batches."""

    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    """Mixed by weight."""
    mixture: MixtureConfig = MixtureConfig()
    sequence_length: int = 512
    """T, tokens in a row."""
    packing: Literal["documents", "concatenate"] = "documents"
    """Whole pieces with segment ids, so that attention stays in its document; or one plain stream."""
    truncation: Literal["end", "start", "leave_out"] = "end"
    """Of a conversation longer than a row: cut its end off, but where no answer would be left, and then its start; or
    always cut its start off; or leave it out."""
    skip_bad: bool = False
    """Leave out records that cannot be read, and count them, in place of stopping (`--skip-bad` for short)."""
    validation_fraction: float = 0.05
    """Share of documents held out, chosen by a hash of the document's name, or of its text where the document is a
    line, a row or a part of a file; of each task that documents name about this share. 0 holds none out and evaluates
    nothing."""
    passage_words: int | None = None
    """Documents that share a passage of that many words are all trained on or all held out, such as rows that several
    templates made of one record; what more than 30 of them share is the wording of a template, and does not count. None
    looks for no passages; to look for them takes some 50 bytes of memory a word."""
    cache_dir: str | None = None
    """Where tokenised corpora are kept; none means `~/.cache/jaxllm/data` ($JAXLLM_CACHE moves it)."""
    workers: int = 0
    """Threads that tokenise; 0 means one for each core."""


OBJECTIVES_OF = {
    "decoder": ("causal", "prefix", "sft"),
    "encoder": ("masked",),
    "encoder_decoder": ("span_corruption", "infilling", "seq2seq"),
}
"""The objectives that each architecture can be trained by."""

PUBLISHED_NOISE = {"masked": 0.15, "span_corruption": 0.15, "infilling": 0.3}
"""Of the objectives that hide tokens: BERT's (1810.04805), T5's (1910.10683) and BART's (1910.13461)."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the model learns to tell from what."""

    kind: Literal["causal", "prefix", "sft", "masked", "span_corruption", "infilling", "seq2seq"] = "causal"
    """The next token; the same after a part that is seen whole; or of what the assistant says in a conversation; BERT's
    masked tokens; T5's spans; all of the text, from BART's; or the second text of a pair from the first."""
    weigh: Literal["tokens", "conversations"] = "tokens"
    """What counts as much as another in the training loss (`sft`): each trained token; or each conversation, with the
    mean over its trained tokens, so that tasks of equal shares have their `loss_weight`, however long answers are."""
    noise: float | None = None
    """Share of the tokens that is hidden; none is the published one: 0.15, for infilling 0.3."""
    mean_span: float = 3.0
    """Tokens in a hidden span on average (`span_corruption`, `infilling`)."""
    whole_words: bool = False
    """Hide all tokens of a word together (`masked`)."""
    target_length: int | None = None
    """Places in a row of the decoder, where `sequence_length` has those of the encoder. None is as many for `seq2seq`,
    else what the targets of one full row of the encoder take, rounded up to a multiple that devices like."""
