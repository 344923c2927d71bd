"""The training loop: batches in, metrics one step late, evaluation, checkpoints, and a clean stop."""

import contextlib
import shlex
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxllm.common.processes import ALONE, Processes
from jaxllm.common.trees import Tree
from jaxllm.config import RunConfig, UserError
from jaxllm.data.chat_tokens import encode_chat
from jaxllm.data.corpus import Corpus
from jaxllm.data.loader import Loader
from jaxllm.models.adapters import virtual_ids, virtual_tokens
from jaxllm.peft.merge import effective
from jaxllm.sharding.mesh import make_mesh
from jaxllm.sharding.placement import own_rows, place
from jaxllm.sharding.rules import BATCH
from jaxllm.train.begin import begin, load_frozen
from jaxllm.train.checkpoint import Checkpoints, Info
from jaxllm.train.evaluate import Evaluator, HeldOut
from jaxllm.train.interrupt import Interrupt, Stop
from jaxllm.train.metrics import Journal, Meter, read_metrics
from jaxllm.train.params import read_origin, write_origin
from jaxllm.train.plot import plot_loss
from jaxllm.train.report import Report
from jaxllm.train.run_folder import save_config, writing_in
from jaxllm.train.state import abstract_state
from jaxllm.train.step import Metrics, make_step
from jaxllm.train.tasks import Forgetting

PROFILE_AFTER = 10
"""Steps before the profiler starts, since the first ones are not like the rest; fewer where the run is short."""

MOST_SKIPPED = 100
"""Steps in a row that may be skipped; a run that is not finite for longer will not be again."""

NAMED = 20
"""Documents of a batch that a message names; the log names all where there are more."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int
    """Optimizer steps done in all."""
    params: Tree
    """The parameters, or their moving average where the run keeps one."""
    signal: int | None
    """The signal that stopped the run before its end (SIGPIPE for a closed standard output), or none."""


def open_loader(config: RunConfig, corpus: Corpus) -> Loader:
    """The batches of a run.

    Raises:
        UserError: the model's vocabulary does not hold the tokenizer's, a prompt of the evaluation is longer than its
            positions, or a source that is asked for is empty.
    """
    pieces = corpus.tokenizer.vocab_size
    if pieces > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size}: the tokenizer '{corpus.tokenizer_path}' has {pieces} "
            f"pieces; --model.vocab-size {pieces} would do"
        )
    for i, prompt in enumerate(config.eval.prompts):
        tokens = 1 + len(corpus.tokenizer.encode(prompt))
        if corpus.template is not None:
            asked = [{"role": "user", "content": prompt}]
            tokens = len(encode_chat(corpus.template, corpus.tokenizer, asked, add_generation_prompt=True))
        tokens += virtual_tokens(config.tuning)
        if tokens > config.model.max_positions:
            raise UserError(
                f"eval.prompts.{i} = {prompt!r:.60}: has {tokens} tokens with its beginning; at most "
                f"model.max_positions = {config.model.max_positions} would do"
            )
    start, virtual = config.model.start_token, virtual_ids(config)
    return Loader(corpus, config.data, config.train.batch_size, config.seed, config.objective, start, virtual)


def train(
    config: RunConfig,
    folder: Path,
    loader: Loader,
    report: Report,
    *,
    step: int | None = None,
    allow_change: bool = False,
    processes: Processes = ALONE,
) -> Outcome:
    """Trains to `config.train.steps`, from the latest checkpoint in `folder` if there is one.

    Ctrl-C, SIGTERM, SIGHUP and a standard output that is closed end the run after the step in flight, with a
    checkpoint and a picture.

    Args:
        config: the run, valid on these devices.
        folder: its folder, made by `run_folder.create`.
        loader: from `open_loader`.
        report: is told how it goes.
        step: go on from this checkpoint in place of the latest; later ones are deleted.
        allow_change: go on although the text is not what it was.
        processes: that train it together, all of which call this.

    Raises:
        UserError: a checkpoint that is damaged or does not fit; a folder that cannot be written; a loss that is not
            finite.
    """
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        checkpoints = stack.enter_context(Checkpoints(folder, config.checkpoint.keep, processes))
        stop = Stop(processes, lambda: interrupt.signal or (signal.SIGPIPE if report.unread else None))
        loop = _Loop(config, folder, loader, report, checkpoints, stop, processes)
        stack.enter_context(jax.set_mesh(loop.mesh))
        loop.start(step, allow_change)
        if loop.journal is not None:
            stack.enter_context(loop.journal)
        stack.enter_context(loop.profile)
        stack.enter_context(report.live(config.train.steps))
        if loop.info.step < config.train.steps:
            loop.run()
        loop.finish()
        return Outcome(loop.info.step, loop.params, stop.last())


class _Loop:
    """Where a run stands (`state`, `info`), and the parts that it needs to go on."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        loader: Loader,
        report: Report,
        checkpoints: Checkpoints,
        stopping: Stop,
        processes: Processes,
    ):
        self.config, self.folder, self.loader = config, folder, loader
        self.report, self.checkpoints, self.stopping, self.processes = report, checkpoints, stopping, processes
        self.mesh = make_mesh(config.mesh)
        self.rows = own_rows(self.mesh, config.train.batch_size)
        self.evaluator = Evaluator(config, loader, self.mesh, self.stopping, self.report.say)
        names = [task.name for task in loader.corpus.tasks]
        self.forgetting = Forgetting(config, folder, names, self.evaluator, report)
        self.profile = contextlib.ExitStack()
        self.unread: tuple[int, Metrics] | None = None
        self.skipped_in_a_row = 0

    @property
    def params(self) -> Tree:
        """What is evaluated and sampled, with what is not trained."""
        return effective(self.config, self.state.params if self.state.ema is None else self.state.ema, self.frozen)

    def start(self, step: int | None, allow_change: bool) -> None:
        """Restores the wanted checkpoint, or makes the first state, and forgets what is later."""
        steps, origin = self.checkpoints.agreed_steps(), None
        if step is None and not steps:
            self.info = Info(0, 0, self.loader.corpus.key, self.loader.corpus.tokenizer.fingerprint)
            self.state, self.frozen, origin = begin(self.config, self.mesh, self.loader)
        else:
            self.frozen = load_frozen(self.config, self.mesh, read_origin(self.folder))
            abstract = abstract_state(self.config, self.mesh)
            self.state, info = self.checkpoints.restore(abstract, steps[-1] if step is None else step)
            self.info = _checked_text(info, self.loader.corpus, allow_change)
            self.report.say(f"going on from step {info.step} of {self.config.train.steps} in '{self.folder}'")
        self.journal = None
        if self.processes.is_first:
            with writing_in(self.folder):
                save_config(self.folder, self.config)
                if origin is not None:
                    write_origin(self.folder, origin)
                self.checkpoints.forget_after(self.info.step)
                self.journal = Journal(self.folder, self.info.step)

    def run(self) -> None:
        """Steps until the last, or until a signal comes."""
        if self.info.step == 0:
            self.forgetting.measure(self.params, "before", self.processes.is_first)
        step_program = self.compile()
        first, last = self.info.step + 1, self.config.train.steps
        if self.evaluates(first - 1) and not self.is_written("held_out_loss"):
            self.evaluate()  # it was left out for a signal
        self.meter = Meter(self.config, self.loader, steps=last - first + 1)
        with contextlib.closing(self.loader.iterate(first - 1, self.rows)) as batches:
            for step in range(first, last + 1):
                if self.stopping():
                    break
                self.checkpoints.check()
                self.trace(step - first, last - first + 1)
                batch = place(next(batches), self.mesh, self.config.train.batch_size)
                self.state, metrics = step_program(self.state, batch, self.frozen)
                self.read()  # the step before this one, which the device now works on
                self.unread = step, metrics
                if step < last:
                    self.visit(step)
        self.read()
        self.profile.close()

    def is_written(self, name: str) -> bool:
        """Whether the metrics of this step have that name."""
        lines = read_metrics(self.folder) if self.processes.is_first else ()
        return self.processes.agree("written", any(line["step"] == self.info.step and name in line for line in lines))

    def write(self, values: Mapping[str, float | None]) -> None:
        """Writes metrics of this step down, in the first process."""
        if self.journal is not None:
            self.journal.write(self.info.step, values)

    def compile(self) -> Any:
        """The training step as a program for exactly this state and batch."""
        began = time.perf_counter()
        sharding = NamedSharding(self.mesh, BATCH)
        batch = {
            name: jax.ShapeDtypeStruct((self.config.train.batch_size, *x.shape[1:]), x.dtype, sharding=sharding)
            for name, x in self.loader.batch(self.info.step, rows=()).items()
        }
        step: Any = make_step(self.config, self.mesh)
        program = step.lower(abstract_state(self.config, self.mesh), batch, self.frozen).compile()
        self.report.say(f"compiled the training step in {time.perf_counter() - began:.1f} s")
        return program

    def read(self) -> None:
        """Waits for the step that was not read yet, and writes down what came of it.

        Raises:
            UserError: its loss or gradient is not finite, and the run does not skip such steps, or has skipped too many
                in a row.
        """
        if self.unread is None:
            return
        (step, on_device), self.unread = self.unread, None
        metrics = {name: value.item() for name, value in jax.device_get(on_device).items()}
        if not metrics["finite"] and not self.config.train.skip_nonfinite:
            what = f"the loss is {metrics['loss']}, its gradient's norm {metrics['grad_norm']}"
            raise self.not_finite(step, what)
        if metrics["finite"] and not metrics["tokens"]:
            raise self.ended(step, "no token of its batch is trained, all have weight 0", "Take such documents out")
        self.skipped_in_a_row = 0 if metrics["finite"] else self.skipped_in_a_row + 1
        if self.skipped_in_a_row == MOST_SKIPPED:
            raise self.not_finite(step, f"this step and the {MOST_SKIPPED - 1} before it were not finite and skipped")
        learned = round(metrics["tokens"]) if metrics["finite"] else 0
        self.info = replace(self.info, step=step, tokens=self.info.tokens + learned)
        self.meter.step(metrics["tokens"])
        if step == 1 or step % self.config.log_every == 0 or step == self.config.train.steps:
            line = self.meter.line(metrics, self.info.tokens)
            self.write(line)
            self.report.progress(step, line, self.meter.seconds_left())

    def evaluates(self, step: int) -> bool:
        """Whether it is time to evaluate: also before each checkpoint that is due, for the loss says which is best."""
        every, saves = self.config.eval.every, self.config.checkpoint.every
        return _is_due(every, step) or (every > 0 and _is_due(saves, step))

    def visit(self, step: int) -> None:
        """Evaluates and saves, if it is time for either."""
        evaluates, saves = self.evaluates(step), _is_due(self.config.checkpoint.every, step)
        if evaluates or saves:
            self.read()
            held_out = self.evaluate() if evaluates else None
            if saves:
                self.save(held_out)
            self.meter.restart()

    def evaluate(self) -> HeldOut | None:
        """Writes down and returns the loss on the capped part of the held-out text."""
        result = self.evaluator(self.params)
        self.tell("held_out", "held out", result)
        return result

    def tell(self, prefix: str, name: str, result: HeldOut | None) -> None:
        """Writes down and says what an evaluation has given, unless it was stopped."""
        if result is None:
            return
        self.write(result.metrics(prefix))
        bits = result.bits_per_byte
        self.report.say(
            f"step {self.info.step}  {name}: {'' if bits is None else f'{bits:.4f} bits/byte  '}"
            f"loss {result.loss:.4f}  perplexity {result.perplexity:.2f}"
        )

    def save(self, held_out: HeldOut | None) -> None:
        """Starts to write a checkpoint of the state, which must be finite: a polluted one would be the last."""
        if not _all_finite(self.state):
            raise self.not_finite(self.info.step, "the state after it is not finite, though its loss is")
        self.checkpoints.save(self.state, replace(self.info, held_out_loss=held_out and held_out.loss))

    def finish(self) -> None:
        """The last checkpoint, evaluations and the picture; after a signal all but the evaluations."""
        step, held_out = self.info.step, None
        is_measured = self.is_written("final_loss")
        if self.stopping():
            self.report.say(f"stopping: writing a checkpoint of step {step}")
        elif is_measured:
            self.report.say(f"this run has already reached its last step, {step}; --name starts another")
        elif self.is_written("held_out_loss"):  # the run was ended after this checkpoint
            held_out = self.evaluator(self.params)
        else:
            held_out = self.evaluate()
        self.checkpoints.wait()
        if step not in self.checkpoints.agreed_steps():
            self.save(held_out)
            self.checkpoints.wait()
        if not is_measured and not self.stopping():
            self.forgetting.measure(self.params, "after", self.processes.is_first)
            if held_out is not None:  # what is written here says that all is done
                name = "held out, all of it" if self.evaluator.reads_all else "held out, at last"
                self.tell("final", name, self.evaluator.last(self.params, held_out))
        if self.processes.is_first:
            with writing_in(self.folder):
                plot_loss(read_metrics(self.folder), self.folder / "loss.png", self.config.name)
        best = self.checkpoints.best()
        if best is not None and best != step:
            self.report.say(
                f"the checkpoint with the lowest held-out loss is of step {best} (--step best generates with it)"
            )
        if self.stopping():
            self.report.say(f"stopped after step {step}; to go on: jaxllm train {shlex.quote(str(self.folder))}")
        else:
            self.report.say(f"wrote '{self.folder / 'loss.png'}', the loss over the steps")

    def trace(self, done: int, steps: int) -> None:
        """Opens and closes the profiler, `done` steps into the `steps` of this process."""
        if self.config.profile_steps == 0 or not self.processes.is_first:
            return
        start = max(0, min(PROFILE_AFTER, steps - self.config.profile_steps))
        if done == start:
            self.profile.enter_context(jax.profiler.trace(str(self.folder / "profile")))
        elif done == start + self.config.profile_steps:
            jax.block_until_ready(self.state)
            self.profile.close()

    def not_finite(self, step: int, what: str) -> UserError:
        """The error that ends a run whose numbers are none."""
        remedy = "a lower --optimizer.learning-rate (which needs --allow-change)"
        if not self.config.train.skip_nonfinite:
            remedy = "a lower --optimizer.learning-rate or with --train.skip-nonfinite (either needs --allow-change)"
        return self.ended(step, what, f"Go on with {remedy}")

    def ended(self, step: int, what: str, remedy: str) -> UserError:
        """The error that ends a run at `step`, when everything that was good is saved."""
        self.checkpoints.wait()
        names = self.loader.documents(step - 1)
        more = ""
        if len(names) > NAMED:
            more = f" and {len(names) - NAMED} more, all of them named in '{self.folder / 'log.txt'}'"
            self.report.log(f"the batch of step {step} holds {', '.join(names)}")
        saved = self.checkpoints.steps()
        last = "there is no checkpoint yet"
        if saved:
            last = f"the last good checkpoint is '{self.checkpoints.folder / str(saved[-1])}'"
        return UserError(
            f"step {step}: {what}; {last}. The step's batch holds {', '.join(names[:NAMED])}{more}. {remedy}"
        )


def _is_due(every: int, step: int) -> bool:
    return step > 0 and every > 0 and step % every == 0


@jax.jit
def _all_finite(tree: Tree) -> jax.Array:
    on_device = jax.device_put(jax.tree.leaves(tree), jax.memory.Space.Device)
    return jnp.stack([jnp.isfinite(x).all() for x in on_device]).all()


def _checked_text(info: Info, corpus: Corpus, allow_change: bool) -> Info:
    """`info`, with the corpus that the run goes on with.

    Raises:
        UserError: the tokenizer is another one; or the text is, and no change is allowed.
    """
    info.check_tokenizer(corpus.tokenizer.fingerprint, corpus.tokenizer_path)
    if info.corpus != corpus.key and not allow_change:
        raise UserError(
            "the text is not what this run was trained on so far (a file, Python's own library, or the way in which "
            "this version cuts and splits them has changed); "
            "put it back, or go on with the new text by --allow-change"
        )
    return replace(info, corpus=corpus.key)
