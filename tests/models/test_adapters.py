"""What is wrong with how a run is to be tuned."""

from dataclasses import replace

import pytest

from jaxllm.config import (
    AdaptiveConfig,
    DataConfig,
    LoraConfig,
    PromptConfig,
    RankConfig,
    RunConfig,
    TrainConfig,
    TransformerConfig,
    TuningConfig,
)
from jaxllm.models.adapters import tuning_mistakes, updates

MODEL = TransformerConfig(vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, max_positions=64)


def lora(**fields):
    return TuningConfig(method="lora", lora=LoraConfig(**fields))


def run(tuning, **fields):
    return RunConfig(base="base", model=MODEL, data=DataConfig(sequence_length=32), tuning=tuning, **fields)


def ranks(*others, **fields):
    return lora(ranks=tuple(RankConfig(**other) for other in others), **fields)


@pytest.mark.parametrize(
    ("config", "mistake"),
    [
        (
            run(lora(targets=("atention/quary",))),
            "targets.0 = 'atention/quary': matches nothing; the nearest are layers/",
        ),
        (
            run(lora(targets=("v_proj",))),
            "targets.0 = 'v_proj': matches nothing; the nearest are layers/attention/value, layers/",
        ),
        (run(lora(targets=("attention/(query",))), "targets.0 = 'attention/(query': is not a regex"),
        (run(lora(targets=())), "tuning.lora.targets is empty"),
        (
            run(lora(rank=17, targets=("attention/key",))),
            "tuning.lora.rank = 17: the update of layers/attention/key has rank 17, above its 32 inputs and 16 outputs",
        ),
        (
            run(lora(rank=40, targets=("attention/", "mlp/"))),  # above all of them, and told of the narrowest
            "tuning.lora.rank = 40: the update of layers/attention/key has rank 40, above its 32 inputs and 16 outputs",
        ),
        (
            run(TuningConfig(method="adalora", lora=LoraConfig(rank=11, targets=("attention/key",)))),
            "tuning.lora.rank = 11: the update of layers/attention/key has rank 17 at first, above its 32 inputs and "
            "16 outputs; at most 10 would do",
        ),
        (
            run(ranks({"targets": "query", "rank": 40}, targets=("query_value",))),
            "tuning.lora.ranks.0.rank = 40: the update of layers/attention/query has rank 40",
        ),
        (
            run(ranks({"targets": "mlp/", "rank": 4}, {"targets": "mlp/down", "rank": 2})),
            "tuning.lora.ranks.1.targets = 'mlp/down': tuning.lora.ranks.0 matches all of it, and the first counts",
        ),
        (
            run(
                TuningConfig(
                    method="adalora",
                    lora=LoraConfig(rank=1, targets=("attention/key",)),
                    adaptive=AdaptiveConfig(start=20.0),
                )
            ),
            "has rank 20 at first, above its 32 inputs and 16 outputs; at most 16 for tuning.adaptive.start would do",
        ),
        (run(ranks({"targets": "key", "rank": 0})), "tuning.lora.ranks.0: rank = 0 and alpha = None must be above 0"),
        (run(ranks({"rank": 4})), "tuning.lora.ranks.0.targets is empty"),
        (
            run(ranks({"targets": "mlp/down"}, targets=("query_value",))),
            "tuning.lora.ranks.0.targets = 'mlp/down': matches nothing; the nearest are layers/attention/",
        ),
        (replace(run(lora()), base=None), "base = None: tuning.method = 'lora' needs the folder of a model"),
        (run(TuningConfig(also=("norm/scle",))), "tuning.also.0 = 'norm/scle': matches nothing"),
        (
            run(TuningConfig(base_dtype="nf4")),
            "tuning.base_dtype = 'nf4': tuning.method = 'full' trains all parameters",
        ),
        (
            replace(run(replace(lora(), base_dtype="nf4")), model=replace(MODEL, ffn=47)),
            "tuning.base_dtype = 'nf4': two numbers are a byte, and the last axis of layers/mlp/gate/kernel is odd",
        ),
        (
            run(TuningConfig(method="prompt", lora=LoraConfig(dropout=0.1))),
            "tuning.lora.dropout = 0.1: tuning.method = 'prompt' does not read it; 0.0 would do, or tuning.method = "
            "'lora' or 'adalora' or 'hybrid'",
        ),
        (
            run(TuningConfig(lora=LoraConfig(rank=64))),
            "tuning.lora.rank = 64: tuning.method = 'full' does not read it; 8 would do",
        ),
        (
            run(TuningConfig(method="lora", adaptive=AdaptiveConfig(start=2.0))),
            "tuning.adaptive.start = 2.0: tuning.method = 'lora' does not read it; 1.5 would do, or tuning.method = "
            "'adalora'",
        ),
        (
            run(TuningConfig(method="prompt", prompt=PromptConfig(length=2, start="labels", labels=("a", "b", "c")))),
            "tuning.prompt.labels has 3 texts, above tuning.prompt.length = 2; a length of 3 would do",
        ),
        (
            run(TuningConfig(method="prompt", prompt=PromptConfig(labels=("a",)))),
            "tuning.prompt.labels = ('a',): is read",
        ),
        (run(TuningConfig(method="prompt", prompt=PromptConfig(start="labels"))), "tuning.prompt.labels is empty"),
        (
            run(TuningConfig(method="prompt", prompt=PromptConfig(length=31))),
            "tuning.prompt.length = 31: leaves no place",
        ),
        (
            run(TuningConfig(method="hybrid", lora=LoraConfig(magnitudes=True))),
            "tuning.lora.magnitudes = True: what DoRA does to norms has no gate",
        ),
        (
            run(TuningConfig(method="adalora", adaptive=AdaptiveConfig(warmup=0.5, settled=0.5))),
            "tuning.adaptive.warmup = 0.5, settled = 0.5: together they must be below 1",
        ),
        (
            run(TuningConfig(method="adalora"), train=TrainConfig(ema_decay=0.9)),
            "train.ema_decay = 0.9: the average of",
        ),
        (
            run(
                TuningConfig(method="adalora", adaptive=AdaptiveConfig(settled=0.0)),
                train=TrainConfig(skip_nonfinite=True),
            ),
            "tuning.adaptive.settled = 0.0: after a step that train.skip_nonfinite skips, ranks would be left",
        ),
    ],
)
def test_what_is_wrong_is_told(config, mistake):
    told = list(tuning_mistakes(config))
    assert len(told) == 1
    assert mistake in told[0]


def test_ranks_and_alphas_of_their_own_are_of_the_first_exception_that_matches():
    others = ({"targets": "mlp/down", "rank": 2}, {"targets": "mlp/", "rank": 4, "alpha": 2.0})
    config = run(ranks(*others, targets=("attention/query$", "mlp"), rank=8))
    assert list(tuning_mistakes(config)) == []
    found = {update.module: (update.rank, update.scale) for update in updates(MODEL, config.tuning)}
    of_mlp = {"layers/mlp/gate": (4, 0.5), "layers/mlp/up": (4, 0.5), "layers/mlp/down": (2, 8.0)}
    assert found == {"layers/attention/query": (8, 2.0), **of_mlp}
