"""A run: its optimizer, devices, and how long."""

from dataclasses import dataclass
from typing import Literal

from jaxllm.config.data import DataConfig, ObjectiveConfig, TokenizerConfig
from jaxllm.config.model import TransformerConfig
from jaxllm.config.tuning import TuningConfig

AXES = ("data", "fsdp", "sequence", "tensor")
"""Of the mesh, outermost first; fields of `MeshConfig`."""


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
    parameter_scaling: bool = True
    """Adafactor's steps are relative to the root mean square of the parameter; other kinds do not read it."""
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
    """Tokens in one periodic evaluation: places of rows, some of which virtual tokens take."""
    last_tokens: int | None = None
    """Tokens in the last one, but those of a periodic one at least; none reads the whole held-out set."""
    tasks: bool = True
    """Where there are several tasks, measure each before training and after it (`tasks.jsonl`, `tasks.png`)."""
    task_rows: int = 8
    """Held-out rows of each task that this reads, at most, and no more than `max_tokens` in all; but one of each."""
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
    model: TransformerConfig = TransformerConfig()
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    tuning: TuningConfig = TuningConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
