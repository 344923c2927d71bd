"""What each ZeRO stage holds and sends, counted in the compiled training step on 8 devices: `tools/zero_table.py`.

Prints a Markdown table. P is the number of parameters, all figures are for one device: bytes held between microbatches
(state and gradients) for each of P; bytes of collectives of each kind for each of P, and what a ring sends for them,
against that of stage 0. Everything is float32 on CPU: an all-gather of bfloat16 is half as large on an accelerator.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from collections import Counter

from jaxllm.config import DataConfig, MeshConfig, RunConfig, TrainConfig, TransformerConfig
from jaxllm.models.summary import count_parameters
from jaxllm.planning.compilation import Compiled, compile_step
from jaxllm.planning.memory import memory_of
from jaxllm.planning.program import collectives
from jaxllm.planning.topology import target

MODEL = TransformerConfig(
    vocab_size=512, width=256, layers=12, heads=8, kv_heads=8, head_dim=32, ffn=768, tied_embeddings=False
)
KINDS = ("all-gather", "reduce-scatter", "all-reduce")


def row(mesh: MeshConfig, parts: int) -> tuple[list[str], float]:
    """The cells of one step, and the bytes that a device sends in it for each parameter."""
    config = RunConfig(
        model=MODEL,
        data=DataConfig(sequence_length=64),
        train=TrainConfig(batch_size=8 * parts, accumulate=parts),
        mesh=mesh,
    )
    compiled = compile_step(config, target("cpu:8"))
    assert isinstance(compiled, Compiled)
    parameters, held = count_parameters(MODEL), memory_of(compiled)
    found: Counter[str] = Counter()
    sent = 0.0
    for collective in collectives(compiled.program):
        found[collective.kind] += collective.count * collective.bytes
        sent += collective.traffic / parameters
    assert found.keys() <= set(KINDS)
    return [f"{(held.state + held.gradients) / parameters:.2f}", *(f"{found[k] / parameters:.2f}" for k in KINDS)], sent


def main() -> None:
    """Prints the table."""
    print("| mesh | stage | parts | bytes held | all-gather | reduce-scatter | all-reduce | sent |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for sizes, parts in (((1, 8), 1), ((2, 4), 1), ((1, 8), 4)):
        base = None
        for stage in range(4):
            mesh = MeshConfig(data=sizes[0], fsdp=sizes[1], zero_stage=stage)
            cells, sent = row(mesh, parts)
            base = base or sent
            name = f"data {sizes[0]} x fsdp {sizes[1]}"
            print(f"| {name} | {stage} | {parts} | {' | '.join(cells)} | {sent / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
