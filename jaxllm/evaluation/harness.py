"""EleutherAI's lm-evaluation-harness over our models, in one process: its tasks, our likelihoods and texts.

`Adapter` is what `lm_eval.api.model.LM` asks for, and reads prompts as its `HFLM` does, so that both give the same
figures. The package `lm-eval` (tested: 0.4.13) is imported by `evaluate_tasks` alone.
"""

import difflib
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from traceback import walk_tb
from typing import Any, NamedTuple

from jaxllm.config import UserError
from jaxllm.evaluation.likelihood import Request, Score, encode_pair
from jaxllm.evaluation.metrics import Mean
from jaxllm.evaluation.model import Model
from jaxllm.evaluation.results import Tasks
from jaxllm.generation.config import SamplingConfig

NEW_TOKENS = 256
"""Of a text, where its task does not say how many."""

NEW_TOKEN_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call them; the first counts."""

ToldProgress = Callable[[str, str, int], Callable[[int], None]]
"""Is told what is begun, its unit and how many there are; gives what is told how many are done."""


class Adapter:
    """A model as lm-eval sees it. Its requests are objects whose `args` are a tuple."""

    def __init__(self, model: Model, batch: int, progress: ToldProgress):
        """
        Args:
            model: of any kind; only a decoder has likelihoods.
            batch: texts that are written at once.
            progress: what shows it.
        """
        self._model, self._batch, self._progress = model, batch, progress
        self._most = model.reads

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each (context, continuation): its log-probability, and whether the greedy choice would have written it."""
        scores = self._scored([self._request(*request.args) for request in requests])
        return [(score.log_prob, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Of each whole text, in windows, every token of it predicted once."""
        texts = [rolling([self._prefix, *self.encode(*request.args)], self._most) for request in requests]
        scores = iter(self._scored([window for text in texts for window in text]))
        return [math.fsum(next(scores).log_prob for _ in text) for text in texts]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What each (context, settings) is continued with, up to the first of the strings `until`."""
        told = self._progress("writing", "texts", len(requests))
        made, found = 0, [""] * len(requests)
        alike: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[repr(sorted(request.args[1].items()))].append(number)
        for numbers in alike.values():
            settings = settings_of(requests[numbers[0]].args[1])
            room = self._most - settings.new_tokens
            if room < 1:
                raise UserError(f"a task asks for {settings.new_tokens} new tokens; the model reads {self._most}")
            prompts = {number: self.encode(requests[number].args[0])[-room:] for number in numbers}
            numbers.sort(key=lambda number: -len(prompts[number]))
            for start in range(0, len(numbers), self._batch):
                part = numbers[start : start + self._batch]
                full = part + part[-1:] * (self._batch - len(part)) if start else part  # which reuses the programs
                texts = self._model.generator.generate_from(
                    [prompts[number] or [self._prefix] for number in full],
                    settings.new_tokens,
                    settings.sampling,
                    stop=settings.stop,
                    seeds=full,
                )
                for number, text in zip(part, texts, strict=False):
                    found[number] = text.text
                told(made := made + len(part))
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without a generation prompt its last message is gone on with."""
        ends = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return self._template.render(chat_history, **ends)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """What is noted of the template in the results: its name."""
        return self._template.name if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's caches of requests are told apart by."""
        return self._model.fingerprint

    @property
    def _template(self) -> Any:
        if self._model.template is None:
            raise UserError("--chat: the model has no chat template")
        return self._model.template

    @property
    def _prefix(self) -> int:
        """What a text without a context follows."""
        return self._model.tokenizer.bos_id

    def encode(self, text: str) -> list[int]:
        """Special tokens that the text spells are these tokens, as in `transformers`; it begins as prompts do."""
        ids, begin = self._model.tokenizer.encode_with_specials(text), self._model.begin
        return ids if ids[: len(begin)] == begin else [*begin, *ids]

    def _request(self, context: str, continuation: str) -> Request:
        if context:
            before, ids = encode_pair(self.encode, context, continuation)
        else:
            ids = self._model.tokenizer.encode_with_specials(continuation)
            before, ids = ([self._prefix], ids) if ids[0] != self._prefix else (ids[:1], ids[1:])
        return Request(before[-max(1, self._most + 1 - len(ids)) :] or [self._prefix], ids)

    def _scored(self, requests: Sequence[Request]) -> list[Score]:
        tokens = sum(len(request.continuation) for request in requests)
        return self._model.scorer.score(requests, self._progress("scoring", "tokens", tokens))


def rolling(ids: Sequence[int], most: int) -> list[Request]:
    """Windows over a text that begins with a token that stands for nothing: `most` tokens are predicted at once, and
    the last ones after as many as the model reads besides (lm-eval's `get_rolling_token_windows`)."""
    requests = []
    for start in range(1, len(ids), most):
        end = min(start + most, len(ids))
        requests.append(Request(ids[max(0, end - most - 1) : start], ids[start:end]))
    return requests


class _Settings(NamedTuple):
    new_tokens: int
    sampling: SamplingConfig
    stop: tuple[str, ...]


def settings_of(asked: Mapping[str, Any]) -> _Settings:
    """How a task asks for text to be generated; the likeliest tokens, where it does not ask for samples."""
    until = asked.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    new_tokens = next((asked[name] for name in NEW_TOKEN_NAMES if asked.get(name) is not None), NEW_TOKENS)
    temperature = float(asked.get("temperature") or 0.0)
    draws = asked.get("do_sample", temperature > 0)
    given = {name: asked[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty") if name in asked}
    if not draws:
        given = {name: value for name, value in given.items() if name == "repetition_penalty"}
    sampling = SamplingConfig(temperature=(temperature or 1.0) if draws else 0.0, **given)
    return _Settings(int(new_tokens), sampling, tuple(text for text in stop if text))


def evaluate_tasks(
    model: Model,
    tasks: Sequence[str],
    path: str | None = None,
    *,
    limit: int | None = None,
    few_shot: int | None = None,
    system: str | None = None,
    batch: int = 16,
    seed: int = 0,
    progress: ToldProgress,
) -> tuple[Tasks, Tasks]:
    """The metrics of lm-eval's tasks, and those of its groups of tasks.

    Args:
        model: reads prompts through its chat template if it was opened with one.
        tasks: their names.
        path: a folder of YAML files that define more of them.
        limit: rows of each task; none means all.
        few_shot: examples before a question; none means as many as the task says.
        system: what the model is told before all else.
        batch: texts that are written at once.
        seed: of the examples.
        progress: what shows it.

    Raises:
        UserError: lm-eval is not installed, a task is not known, its data cannot be had or its metric fails, or the
            model is not for it.
    """
    try:
        from lm_eval.api.model import LM
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"--harness needs lm-eval ({error}): pip install 'jaxllm[eval]'") from None
    manager = TaskManager(include_path=path)
    for task in tasks:
        if task not in manager.task_index:
            near = difflib.get_close_matches(task, manager.task_index, n=3, cutoff=0.4)
            raise UserError(f"--harness {task}: lm-eval has no such task; near to it: {', '.join(near) or 'none'}")
    try:
        manager.load([*tasks])
    except Exception as error:  # whatever a task's file or the library for its data raises
        raise UserError(f"--harness {','.join(tasks)}: {type(error).__name__}: {error}") from None

    class Ours(Adapter, LM):
        def __init__(self) -> None:
            LM.__init__(self)
            Adapter.__init__(self, model, batch, progress)

    os.environ["DISABLE_MULTIPROC"] = "1"  # it would fork, for errors by bootstrap, a process that has threads
    try:
        found = simple_evaluate(
            model=Ours(),
            tasks=[*tasks],
            task_manager=manager,
            num_fewshot=few_shot,
            limit=limit,
            system_instruction=system,
            apply_chat_template=model.template is not None,
            fewshot_as_multiturn=model.template is not None,
            log_samples=False,
            torch_random_seed=None,
            fewshot_random_seed=seed,
        )
    except Exception as error:
        if isinstance(error, UserError) or _is_ours(error):
            raise
        raise UserError(f"--harness {','.join(tasks)}: {type(error).__name__}: {error}") from None
    assert found is not None  # which it is in other processes than the first
    return _split(found)


def _is_ours(error: Exception) -> bool:
    """Whether what lm-eval has called here raised it, and no task's own code."""
    assert error.__traceback__ is not None
    return any(frame.f_code.co_filename == __file__ for frame, _ in walk_tb(error.__traceback__.tb_next))


def _split(found: Mapping[str, Any]) -> tuple[Tasks, Tasks]:
    """Tasks and groups, of lm-eval's results. A group has the rows of its tasks, through all groups in it."""
    members = {group: names for group, names in found.get("group_subtasks", {}).items() if names}

    def rows(name: str) -> int:
        if name in members:
            return sum(map(rows, members[name]))
        return int(found["n-samples"][name]["effective"]) if name in found["n-samples"] else 0

    means = {name: _means(values, rows(name)) for name, values in found["results"].items()}
    tasks = {name: own for name, own in means.items() if name not in members}
    return tasks, {name: own for name, own in means.items() if name in members and own}


def _means(values: Mapping[str, Any], rows: int) -> dict[str, Mean]:
    """Of keys such as `acc,none` and `acc_stderr,none`: a metric and the filter of the answers, where there is one."""
    means = {}
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{metric}_stderr,{chosen}")
            name = metric if chosen == "none" else f"{metric} ({chosen})"
            means[name] = Mean(float(value), float(error) if isinstance(error, int | float) else None, rows)
    return means
