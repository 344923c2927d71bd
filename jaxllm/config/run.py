"""A run: its data, optimizer, devices, and how long."""

from dataclasses import dataclass
from typing import Literal

from jaxllm.config.model import TransformerConfig
from jaxllm.config.tuning import TuningConfig

AXES = ("data", "fsdp", "sequence", "tensor")
"""Of the mesh, outermost first; fields of `MeshConfig`."""


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


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of documents."""

    kind: Literal["stdlib", "tfds", "text", "jsonl", "parquet", "code"] = "stdlib"
    """The embedded corpus (this Python's standard library), a TFDS data set, or local files."""
    path: str | None = None
    """A file, a folder or a glob (`**` works); for tfds the data set's `name` or `name/config`."""
    split: str = "train"
    """The split of a TFDS data set."""
    field: str = "text"
    """The field that holds the text (jsonl, parquet, tfds)."""
    target_field: str | None = None
    """The field of what is to be written after the text in `field`: each record is a pair (`seq2seq`, `prefix`)."""
    weight: float = 1.0
    """This source's share of the training rows, relative to the other sources."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """From documents to batches."""

    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    """Mixed by weight."""
    sequence_length: int = 512
    """T, tokens in a row."""
    packing: Literal["documents", "concatenate"] = "documents"
    """Whole pieces with segment ids, so that attention stays in its document; or one plain stream."""
    validation_fraction: float = 0.05
    """Share of documents held out, chosen by a hash of the document's name, or of its text where the document is a
    line, a row or a part of a file; 0 holds none out and evaluates nothing."""
    cache_dir: str | None = None
    """Where tokenised corpora are kept; none means `~/.cache/jaxllm/data` ($JAXLLM_CACHE moves it)."""
    workers: int = 0
    """Threads that tokenise; 0 means one for each core."""


OBJECTIVES_OF = {
    "decoder": ("causal", "prefix"),
    "encoder": ("masked",),
    "encoder_decoder": ("span_corruption", "infilling", "seq2seq"),
}
"""The objectives that each architecture can be trained by."""

PUBLISHED_NOISE = {"masked": 0.15, "span_corruption": 0.15, "infilling": 0.3}
"""Of the objectives that hide tokens: BERT's (1810.04805), T5's (1910.10683) and BART's (1910.13461)."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the model learns to tell from what."""

    kind: Literal["causal", "prefix", "masked", "span_corruption", "infilling", "seq2seq"] = "causal"
    """The next token; the same after a part that is seen whole; BERT's masked tokens; T5's spans; all of the text, from
    BART's; or the second text of a pair from the first."""
    noise: float | None = None
    """Share of the tokens that is hidden; none is the published one: 0.15, for infilling 0.3."""
    mean_span: float = 3.0
    """Tokens in a hidden span on average (`span_corruption`, `infilling`)."""
    whole_words: bool = False
    """Hide all tokens of a word together (`masked`)."""
    target_length: int | None = None
    """Places in a row of the decoder, where `sequence_length` has those of the encoder. None is as many for `seq2seq`,
    else what the targets of one full row of the encoder take, rounded up to a multiple that devices like."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps: linear warm-up, then one of four shapes."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """WSD is warm-up, stable, then a linear decay over the last `decay_fraction` of the steps."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 0."""
    final_fraction: float = 0.1
    """The last rate as a share of the peak (not for `constant`)."""
    decay_fraction: float = 0.2
    """Share of the steps that decay (`wsd` only)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule. Norms, biases and embeddings are not decayed; under Muon the head is not either."""

    kind: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    """Muon moves the matrices of the blocks; embeddings, head, norms and biases follow AdamW."""
    learning_rate: float = 3e-4
    """Peak rate."""
    adam_learning_rate: float | None = None
    """Peak rate of what Muon leaves to AdamW; none means `learning_rate`. Other kinds do not read it."""
    b1: float = 0.9
    """Decay of the first moment (Muon: its momentum). Adafactor has none."""
    b2: float = 0.95
    """Decay of the second moment (Lion: of the momentum). Adafactor's follows from the step."""
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the first moment. (The second stays float32: of a slow average bfloat16 loses each small change.)"""
    eps: float = 1e-8
    """Added to the root of the second moment; Adafactor and Lion do not read it."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices, multiplied by the rate."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; none does not clip."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The rate over time."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis, of which -1 fills one with what is left; and what is cut along them."""

    data: int = -1
    """Replicas: each holds all parameters and its share of the batch."""
    fsdp: int = 1
    """The batch is cut along this axis, and as `zero_stage` says optimizer state, gradients and parameters."""
    tensor: int = 1
    """Heads, FFN and vocabulary are cut along this axis."""
    sequence: int = 1
    """Each row of the batch is cut along this axis, for rows too long for one device (ring attention)."""
    zero_stage: Literal[0, 1, 2, 3] = 3
    """Cut along `fsdp`: nothing (0, DDP), optimizer state (1), also gradients (2), also parameters (3, FSDP)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how much at once, and in which types."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 8
    """Rows in one optimizer step, over all devices and accumulation steps."""
    accumulate: int = 1
    """Microbatches in one optimizer step; divides `batch_size`."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Activations and products; auto is bfloat16 on accelerators and float32 on CPU."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which gradients travel between devices; each device makes and keeps its own in float32."""
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    """What computes attention: auto is splash attention on TPU, cuDNN's flash attention on GPU, and XLA elsewhere."""
    remat: Literal["none", "dots", "attention", "full", "offload", "offload_inputs"] = "dots"
    """Recompute in the backward pass: nothing; norms and activations; also the MLP's wide products; all. With what is
    saved in the host's memory: `offload` as `dots`, `offload_inputs` as `full`."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in the host's memory between updates."""
    loss_chunk: int = 512
    """Tokens on one device whose logits exist at once, at least one of each row; accelerators want some thousands."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps logits from drifting."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the parameters, used for evaluation; none keeps none."""
    skip_nonfinite: bool = False
    """Skip and count steps whose loss or gradient is not finite, in place of stopping; 100 in a row stop."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Held-out evaluation and samples."""

    every: int = 250
    """Steps between evaluations, which also come before each checkpoint that is due; 0 evaluates at the end only."""
    max_tokens: int = 200_000
    """Tokens in one periodic evaluation; the last one always reads the whole held-out set."""
    prompts: tuple[str, ...] = ("def ", "import ", "class ")
    """Continued and printed at the end of the run."""
    sample_tokens: int = 64
    """Tokens of each continuation."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept, and how often it is written."""

    every: int = 250
    """Steps between checkpoints; 0 writes at the end and on interruption only."""
    keep: int = 3
    """Latest checkpoints kept, beside the best by held-out loss. One that a signal asked for has no loss, and with
    eval.every = 0 only the last one has."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. The run folder holds its resolved form as `config.json`."""

    name: str = "run"
    """Names the run folder, `runs/<name>`, unless `--output` gives another."""
    seed: int = 0
    """Initialisation, order of the data and dropout all follow from it."""
    output: str | None = None
    """The run folder; none means `runs/<name>`."""
    log_every: int = 10
    """Steps between lines of metrics."""
    profile_steps: int = 0
    """Steps recorded by the profiler, after the first ten of a long run, into `<run folder>/profile`."""
    base: str | None = None
    """The folder of a run or of an imported model, whose parameters, tokenizer and chat template the run begins with;
    given here, it brings its `model` with it. None begins with random numbers."""
    model: TransformerConfig = TransformerConfig()  # noqa: RUF009  frozen
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    tuning: TuningConfig = TuningConfig()  # noqa: RUF009  frozen
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
