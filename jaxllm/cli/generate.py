"""`jaxllm generate`: continues prompts, or answers them, with the model of a run."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from jaxllm.common.paths import user_path
from jaxllm.config import RunConfig, UserError
from jaxllm.generation.config import BeamConfig, SamplingConfig
from jaxllm.generation.recommended import SEARCH, Recommended, recommended

if TYPE_CHECKING:
    from jaxllm.common.trees import Tree
    from jaxllm.generation.generate import Generation, Generator

T = TypeVar("T")

Choose = Callable[[Sequence[int]], "Generator"]

SAMPLING = SamplingConfig(temperature=0.8, top_p=0.95)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Continue prompts with the model of a run, or answer them with one that has an encoder. One text streams; several
    are printed one after another."""

    run: tyro.conf.Positional[str]
    """The folder of a run."""
    prompts: tyro.conf.Positional[tuple[str, ...]] = ("",)
    """Beginnings of documents; `-` is read from the standard input, and none begins with nothing."""
    max_new_tokens: int = 256
    """Tokens of each continuation, at most; it also ends where the model's positions do."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = SAMPLING
    """Where the folder has a generation_config.json, what that says comes before these defaults."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text ends before this string."""
    beams: int = 0
    """Search for the likeliest text with so many unfinished ones at once; 0 draws it."""
    length_penalty: float = 1.0
    """A text's log-probability is divided by its tokens to this power, before the best is taken (`beams`)."""
    early_stopping: bool | Literal["never"] = False
    """When the search ends that has found as many texts as beams: at once, when the best beam is worse than all of
    them, or when it would be at any length."""
    samples: int = 1
    """Continuations of each prompt; with `beams` the best ones."""
    seed: int = 0
    """Of each prompt's first continuation; the next ones take the seeds that follow."""
    batch: int = 8
    """Texts that are generated at once. In float32, what they are does not depend on it."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The folder of a run that has trained an adapter of this model: one for all prompts, or one for each of them
    (`none` for a prompt without)."""
    step: int | Literal["best"] | None = None
    """The checkpoint, or the one with the lowest held-out loss; none means the latest."""
    ema: bool = True
    """Take the moving average of the parameters where the run keeps one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and products; auto is float32 on CPU and bfloat16 elsewhere. On a CPU bfloat16 takes half the memory;
    with jax 0.12, where it is multiplied in hardware, it is faster too, and with jax 0.10 far slower."""


def run(argv: list[str]) -> int:
    """Prints continuations on the standard output, and how long they took on the standard error.

    Raises:
        UserError: a folder, prompt or setting that will not do.
    """
    command, said = with_recommended(Command, argv, "jaxllm generate")
    command.sampling.check()
    for name, least in {"max_new_tokens": 1, "samples": 1, "batch": 1, "beams": 0}.items():
        if getattr(command, name) < least:
            raise UserError(f"--{name.replace('_', '-')}: expected {least} or more, got {getattr(command, name)}")
    search = _search(command, said.sampling or SAMPLING)
    if not 0 <= command.seed <= 2**32 - command.samples:
        raise UserError(f"--seed: expected 0 to {2**32 - command.samples}, got {command.seed}")
    prompts = [_text(prompt, i) for i, prompt in enumerate(command.prompts or ("",), 1)]
    if (given := len(command.adapter)) not in (0, 1, len(prompts)):
        raise UserError(f"--adapter: expected one, or one for each of {len(prompts)} prompts; got {given}")
    if command.adapter and search:
        raise UserError("--adapter: --beams searches with one model; `jaxllm adapter merge` makes one")

    from jaxllm.data.tokenizer import load_tokenizer
    from jaxllm.generation.generate import Generator
    from jaxllm.models.adapters import virtual_tokens
    from jaxllm.models.transformer import dtype_for_use
    from jaxllm.train.params import load_run_params
    from jaxllm.train.run_folder import saved_tokenizer

    folder = user_path(command.run)
    dtype = dtype_for_use(None if command.dtype == "auto" else command.dtype)
    config, params, info = load_run_params(folder, command.step, command.ema, dtype)
    tokenizer = load_tokenizer(path := saved_tokenizer(folder))
    info.check_tokenizer(tokenizer.fingerprint, path)
    tell_unfollowed(folder, said, followed=SEARCH if search else ())
    generator = Generator(
        config.model,
        params,
        tokenizer,
        ends=said.ends,
        begin=config.tokenizer.begins_prompts,
        virtual=virtual_tokens(config.tuning),
        dtype=dtype,
    )
    choose = _chooser(generator, config, params, command, info.step)
    del params
    _check_prompts(choose, prompts, command)
    if search is not None:
        _print_best(generator, prompts, command, search)
    elif len(prompts) * command.samples == 1:
        _stream(choose([0]), prompts[0], command)
    else:
        _list(choose, prompts, command)
    return 0


def _check_prompts(choose: Choose, prompts: Sequence[str], command: Command) -> None:
    """Those of each adapter together, for which its leaves are looked up once.

    Raises:
        UserError: as `Generator.check` does.
    """
    names = command.adapter or ("none",)
    for name in dict.fromkeys(names):
        own = [n for n in range(len(prompts)) if names[n % len(names)] == name]
        checked = [prompts[n] for n in own]
        choose(own[:1]).check(checked, command.max_new_tokens, command.stop, [n + 1 for n in own])


def _chooser(generator: "Generator", config: RunConfig, params: "Tree", command: Command, step: int) -> Choose:
    """Gives the generator for rows that continue the prompts of these numbers, by parameters of that step.

    Raises:
        UserError: a folder that holds no adapter of this model.
    """
    folders = command.adapter
    if not folders:
        return lambda numbers: generator
    from jaxllm.generation.adapters import Adapters
    from jaxllm.train.params import fingerprint, load_adapter

    own = fingerprint(user_path(command.run), step, params, command.ema)
    given = {folder: load_adapter(user_path(folder), own) for folder in dict.fromkeys(folders) if folder != "none"}
    adapters = Adapters(config.model, params, given)
    names = [None if folder == "none" else folder for folder in folders]
    return lambda numbers: generator.with_adapters(adapters, [names[n % len(names)] for n in numbers])


def with_recommended(kind: type[T], argv: list[str], prog: str) -> tuple[T, Recommended]:
    """A command of options, whose defaults of sampling are what its model's publishers say; and all that they say."""
    command: Any = tyro.cli(kind, args=argv, prog=prog)
    said = recommended(command.run)
    if said.sampling:
        given: Any = kind
        command = tyro.cli(kind, args=argv, prog=prog, default=given(run=command.run, sampling=said.sampling))
    return command, said


def tell_unfollowed(folder: Path, said: Recommended, followed: Sequence[str] = ()) -> None:
    """Says on the standard error what the publishers of a model say in vain."""
    vain = {name: value for name, value in said.unfollowed.items() if name not in followed}
    if vain:
        listed = ", ".join(f"{name} = {value!r:.40}" for name, value in vain.items())
        hint = "; jaxllm generate --beams searches" if "num_beams" in vain else ""
        print(f"[not followed of '{folder / 'generation_config.json'}': {listed}{hint}]", file=sys.stderr)


def _search(command: Command, sampling: SamplingConfig) -> BeamConfig | None:
    """None draws; `sampling` is what is not asked for.

    Raises:
        UserError: an option that has no meaning beside the others.
    """
    if command.beams == 0:
        if (command.length_penalty, command.early_stopping) != (Command.length_penalty, Command.early_stopping):
            raise UserError("--length-penalty, --early-stopping: are of a search, which --beams turns on")
        return None
    if command.sampling != sampling or command.stop or command.seed:
        raise UserError("--beams: the likeliest text is not drawn; --seed, --stop and options of sampling are for that")
    if command.samples > command.beams:
        raise UserError(f"--samples: expected 1 to {command.beams} (--beams), got {command.samples}")
    search = BeamConfig(
        beams=command.beams,
        length_penalty=command.length_penalty,
        early_stopping=command.early_stopping,
        best=command.samples,
    )
    search.check()
    return search


def _text(prompt: str, number: int) -> str:
    """A prompt as it was given, or from the standard input."""
    try:
        prompt = sys.stdin.read() if prompt == "-" else prompt
        prompt.encode()
    except UnicodeError as error:
        raise UserError(f"prompt {number} is not UTF-8 text: {error}") from None
    return prompt


def _before(generator: "Generator", prompt: str) -> str:
    """What a text is printed after."""
    return prompt if generator.continues else ""


def _stream(generator: "Generator", prompt: str, command: Command) -> None:
    print(_before(generator, prompt), end="", flush=True)
    try:
        made = generator.generate(
            [prompt],
            command.max_new_tokens,
            command.sampling,
            stop=command.stop,
            seeds=[command.seed],
            on_text=lambda _, piece: print(piece, end="", flush=True),
        )
    finally:  # Ctrl-C ends the line too
        print(flush=True)
    _report(made)


def _list(choose: Choose, prompts: Sequence[str], command: Command) -> None:
    rows = [(number, sample) for number in range(len(prompts)) for sample in range(command.samples)]
    for start in range(0, len(rows), command.batch):
        batch = rows[start : start + command.batch]
        full = batch + batch[-1:] * (command.batch - len(batch)) if start else batch  # which reuses the programs
        generator = choose([number for number, _ in full])
        made = generator.generate(
            [prompts[number] for number, _ in full],
            command.max_new_tokens,
            command.sampling,
            stop=command.stop,
            seeds=[command.seed + sample for _, sample in full],
        )[: len(batch)]
        for (number, sample), generation in zip(batch, made, strict=True):
            print(f"=== prompt {number + 1} of {len(prompts)}, sample {sample + 1} of {command.samples}")
            print(_before(generator, prompts[number]) + generation.text, flush=True)
        _report(made)


def _print_best(generator: "Generator", prompts: Sequence[str], command: Command, search: BeamConfig) -> None:
    from jaxllm.generation.beam import beam_search

    for start in range(0, len(prompts), command.batch):
        batch = [*prompts[start : start + command.batch]]
        full = batch + batch[-1:] * (command.batch - len(batch)) if start else batch  # as in `_list`
        found = beam_search(generator, full, command.max_new_tokens, search)[: len(batch)]
        for number, (prompt, best) in enumerate(zip(batch, found, strict=True), start + 1):
            for place, generation in enumerate(best, 1):
                if len(prompts) * command.samples > 1:
                    of = f"=== prompt {number} of {len(prompts)}, best {place} of {len(best)}"
                    print(f"{of}, score {generation.score:.4f}")
                print(_before(generator, prompt) + generation.text, flush=True)
        _report([generation for best in found for generation in best])


def _report(made: Sequence["Generation"]) -> None:
    timing = made[0].timing
    ends = ", ".join(generation.finish for generation in made)
    print(
        f"[{sum(len(generation.tokens) for generation in made)} tokens, ended by {ends}; compiled in "
        f"{timing.compile_seconds:.1f} s, prefill {timing.prefill_rate:.0f} tokens/s, decode "
        f"{timing.decode_rate:.0f} tokens/s]",
        file=sys.stderr,
    )
