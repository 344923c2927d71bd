"""`jaxllm train`: trains a recipe, or goes on with a run."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jaxllm.config import RunConfig, UserError

if TYPE_CHECKING:
    from jaxllm.train.loop import Outcome


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a start of a run takes beside its configuration."""

    step: int | None = None
    """Go on from this checkpoint of the run, and delete the later ones; none means the latest."""
    allow_change: bool = False
    """Go on although fields that change the result, or the text, are not what they were."""


def run(argv: list[str]) -> int:
    """Trains a recipe, or goes on with the run that its folder holds; prints samples at the end.

    Returns:
        0; or 128 plus the number of the signal that stopped the run, after a checkpoint: 130 for Ctrl-C, 143 for
        SIGTERM and 129 for a closed terminal; 141 where the reader of the standard output went away.

    Raises:
        UserError: what the user can mend, from an unknown option to a full disk.
    """
    from jaxllm.cli.recipe import load_run_with

    outcome = pretrain(*load_run_with(argv, "jaxllm train", Options(), devices=_device_count))
    return 0 if outcome.signal is None else 128 + outcome.signal


def _device_count() -> int:
    import jax

    return jax.device_count()


def pretrain(config: RunConfig, options: Options = Options()) -> "Outcome":
    """Starts the run of `config`, or goes on with it where its folder has a checkpoint.

    Args:
        config: one in which `validation.problems` finds nothing on these devices.
        options: of this start.

    Raises:
        UserError: as `run` does.
    """
    from jaxllm.data.corpus import prepare_corpus
    from jaxllm.generation.config import SamplingConfig
    from jaxllm.generation.generate import Generator
    from jaxllm.sharding.mesh import make_mesh
    from jaxllm.sharding.preflight import replicated
    from jaxllm.train.fit import check_attention, check_fits
    from jaxllm.train.loop import open_loader, train
    from jaxllm.train.report import Report
    from jaxllm.train.run_folder import alone, create, enter, has_checkpoint, is_run_folder, run_folder
    from jaxllm.train.step import compute_dtype

    # Of this platform, so that the saved configuration says it and another platform's is a change.
    config = replace(config, train=replace(config.train, compute_dtype=compute_dtype(config).name))
    mesh = make_mesh(config.mesh)
    check_fits(config, mesh)
    check_attention(config, mesh)
    folder = run_folder(config)
    if options.step is not None and not has_checkpoint(folder):
        raise UserError(f"--step {options.step}: there is no checkpoint in '{folder}' yet; leave it out")
    corpus = prepare_corpus(config.data, enter(folder, config, options.allow_change), progress=True)
    loader = open_loader(config, corpus)
    anew = is_run_folder(folder) and not has_checkpoint(folder)
    if not has_checkpoint(folder):
        create(folder, config, corpus.tokenizer_path)
    with alone(folder), Report(folder) as report:
        enter(folder, config, options.allow_change)  # another process may have trained here in the meantime
        if warning := replicated(config, mesh.shape):
            report.say(f"warning: {warning}")
        if anew:
            report.say(f"the run in '{folder}' has no checkpoint yet and begins anew")
        outcome = train(config, folder, loader, report, step=options.step, allow_change=options.allow_change)
        prompts, length = config.eval.prompts, config.eval.sample_tokens
        if outcome.signal is None and prompts and length:
            generator = Generator(config.model, outcome.params, corpus.tokenizer)
            samples = generator.generate(prompts, length, SamplingConfig(temperature=0.8, top_p=0.95))
            for prompt, sample in zip(prompts, samples, strict=True):
                report.say(f"\nsample of {prompt!r}:\n{prompt}{sample.text}")
    return outcome
