"""`jaxllm train`: trains a recipe, or goes on with a run."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllm.common.processes import ALONE, Processes, joined, waits
from jaxllm.config import RunConfig, TokenizerConfig, UserError, differences, from_dict, to_dict

if TYPE_CHECKING:
    from jaxllm.common.trees import Tree
    from jaxllm.data.corpus import Corpus
    from jaxllm.data.loader import Loader
    from jaxllm.train.loop import Outcome
    from jaxllm.train.report import Report


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a start of a run takes beside its configuration."""

    step: int | None = None
    """Go on from this checkpoint of the run, and delete the later ones; none means the latest."""
    allow_change: bool = False
    """Go on although fields that change the result, or the text, are not what they were."""
    processes: int | None = None
    """How many processes train together; 1 waits for nobody. None means $JAXLLM_PROCESSES, or what Slurm, Open MPI,
    Kubernetes or a TPU pod has started."""
    process_id: int | None = None
    """Which of them this is, from 0; none means $JAXLLM_PROCESS_ID."""
    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all; none means $JAXLLM_COORDINATOR."""

    @property
    def others(self) -> tuple[int | None, int | None, str | None]:
        """How the other processes are found, as `joined` takes it."""
        return self.processes, self.process_id, self.coordinator


def run(argv: list[str]) -> int:
    """Trains a recipe, or goes on with the run that its folder holds; prints samples at the end.

    Returns:
        0; or 128 plus the number of the signal that stopped the run, after a checkpoint: 130 for Ctrl-C, 143 for
        SIGTERM and 129 for a closed terminal; 141 where the reader of the standard output went away. Of several
        processes all return what the one does that was stopped.

    Raises:
        UserError: what the user can mend, from an unknown option to a full disk.
    """
    from jaxllm.cli.recipe import load_run_with

    with contextlib.ExitStack() as stack:
        processes = ALONE

        def devices(options: Options) -> int:
            nonlocal processes
            processes = stack.enter_context(joined(*options.others))
            import jax

            return jax.device_count()

        config, options = load_run_with(
            argv, "jaxllm train", Options(), devices, lambda options: waits(*options.others)
        )
        outcome = train_run(config, options, processes)
    return 0 if outcome.signal is None else 128 + outcome.signal


def train_run(config: RunConfig, options: Options = Options(), processes: Processes = ALONE) -> "Outcome":
    """Starts the run of `config`, or goes on with it where its folder has a checkpoint.

    Args:
        config: one in which `validation.problems` finds nothing on these devices.
        options: of this start.
        processes: that train it together, all of which call this.

    Raises:
        UserError: as `run` does.
    """
    import jax

    from jaxllm.sharding.mesh import make_mesh
    from jaxllm.sharding.preflight import replicated
    from jaxllm.train.fit import check_attention, check_fits
    from jaxllm.train.loop import train
    from jaxllm.train.params import with_base_tokenizer
    from jaxllm.train.report import Report
    from jaxllm.train.run_folder import (
        alone,
        create,
        enter,
        has_checkpoint,
        has_template,
        is_run_folder,
        removed_unless_begun,
        run_folder,
        writing_in,
    )
    from jaxllm.train.step import compute_dtype

    # Of this platform, so that the saved configuration says it and another platform's is a change.
    config = replace(config, train=replace(config.train, compute_dtype=compute_dtype(config).name))
    config = with_base_tokenizer(config)
    _check_equal(config, options, processes)
    mesh = make_mesh(config.mesh)
    check_fits(config, mesh)
    check_attention(config, mesh)
    folder = run_folder(config)
    begun = processes.agree("begun", has_checkpoint(folder))
    if begun:
        _check_shared(folder, processes)
    elif options.step is not None:
        raise UserError(f"--step {options.step}: there is no checkpoint in '{folder}' yet; leave it out")
    loader = _open_data(config, enter(folder, config, options.allow_change), processes)
    anew = is_run_folder(folder) and not begun
    with contextlib.ExitStack() as stack:
        if processes.is_first:
            if not begun:
                create(folder, config, loader.corpus.tokenizer_path, loader.corpus.template)
                if not anew:
                    stack.enter_context(removed_unless_begun(folder))
            stack.enter_context(alone(folder))
            enter(folder, config, options.allow_change)  # another run may have trained here in the meantime
            if loader.corpus.template is not None and not has_template(folder):
                with writing_in(folder):
                    loader.corpus.template.save(folder)
        _check_shared(folder, processes)
        report = stack.enter_context(Report(folder, speaks=processes.is_first))
        if processes.count > 1:
            report.say(f"{processes.count} processes with {jax.device_count()} devices")
        if warning := replicated(config, mesh.shape, jax.default_backend()):
            report.say(f"warning: {warning}")
        if anew:
            report.say(f"the run in '{folder}' has no checkpoint yet and begins anew")
        for lost in loader.losses():
            report.say(lost)
        outcome = train(
            config, folder, loader, report, step=options.step, allow_change=options.allow_change, processes=processes
        )
        if outcome.signal is None:
            _sample(config, outcome.params, loader.corpus, report, processes)
    return outcome


def _open_data(config: RunConfig, tokenizer: TokenizerConfig, processes: Processes) -> "Loader":
    """The loader, of a corpus and of plans that one process on each file system has made."""
    from jaxllm.data.corpus import shared_corpus
    from jaxllm.train.loop import open_loader

    corpus, prepared = shared_corpus(config.data, tokenizer, processes)
    if prepared:
        loader = open_loader(config, corpus)
        processes.exchange("plans", None)
    else:
        processes.exchange("plans", None)
        loader = open_loader(config, corpus)
    return loader


def _sample(config: RunConfig, params: "Tree", corpus: "Corpus", report: "Report", processes: Processes) -> None:
    """Continues the prompts of the run, or has them answered, in the first process, if its first device has room."""
    import jax

    from jaxllm.quantization.blocks import plain
    from jaxllm.sharding.placement import fetched
    from jaxllm.train.step import compute_dtype

    if not config.eval.prompts or not config.eval.sample_tokens or config.model.architecture == "encoder":
        return
    try:
        whole = fetched(plain(params, compute_dtype(config)), keep=processes.is_first)
        if whole is not None:
            _show_samples(config, whole, corpus, report)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        report.say("no samples of eval.prompts: one device has no room for the whole model; all else is done")


def _show_samples(config: RunConfig, params: "Tree", corpus: "Corpus", report: "Report") -> None:
    from jaxllm.data.chat_tokens import end_of_turn
    from jaxllm.generation.chat import Conversation
    from jaxllm.generation.config import SamplingConfig
    from jaxllm.generation.generate import Generator
    from jaxllm.models.adapters import virtual_tokens

    prompts, length, tokenizer = config.eval.prompts, config.eval.sample_tokens, corpus.tokenizer
    begin, virtual, sampling = (
        config.tokenizer.begins_prompts,
        virtual_tokens(config.tuning),
        SamplingConfig(temperature=0.8, top_p=0.95),
    )
    end = None if corpus.template is None else end_of_turn(corpus.template, tokenizer)
    ends = None if end is None else {tokenizer.eos_id, end}
    generator = Generator(config.model, params, tokenizer, ends=ends, begin=begin, virtual=virtual)
    if corpus.template is not None:
        for prompt in prompts:
            chat = Conversation(generator, corpus.template, max_new_tokens=length, sampling=sampling)
            report.say(f"\nanswer to {prompt!r}:\n{chat.ask(prompt).text}")
        return
    samples = generator.generate(prompts, length, sampling)
    for prompt, sample in zip(prompts, samples, strict=True):
        report.say(f"\nsample of {prompt!r}:\n{prompt if generator.continues else ''}{sample.text}")


def _check_equal(config: RunConfig, options: Options, processes: Processes) -> None:
    """
    Raises:
        UserError: a process was started with another configuration or other options than the first.
    """
    own = {"config": to_dict(config), "step": options.step, "allow_change": options.allow_change}
    given = processes.exchange("configuration", own)
    for index, other in enumerate(given):
        if other == given[0]:
            continue
        first, second = (from_dict(RunConfig, one["config"]) for one in (given[0], other))
        changed = differences(first, second)
        changed += [f"{n}: {given[0][n]} -> {other[n]}" for n in ("step", "allow_change") if given[0][n] != other[n]]
        raise UserError(
            f"{processes.name(index)} was started otherwise than {processes.name(0)}: {', '.join(changed)}; "
            "give all the same recipe and options"
        )


def _check_shared(folder: Path, processes: Processes) -> None:
    """
    Raises:
        UserError: a process does not see the run folder of the first, which has just been made.
    """
    from jaxllm.train.run_folder import writing_in

    with writing_in(folder):
        first = processes.first_that_sees(folder)
    for index, seen in enumerate(processes.exchange("folder", first)):
        if seen != 0:
            raise UserError(
                f"{processes.name(index)} does not see the run folder '{folder.absolute()}' of {processes.name(0)}: "
                "put it, with --output, on a file system that all hosts share"
            )
