"""What is known in public of each accelerator: the figures that a prediction is made from."""

from dataclasses import dataclass
from typing import Literal

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator chip; figures of one chip, also where it is two devices."""

    platform: Literal["tpu", "gpu", "cpu"]
    """The jax platform that programs are made for."""
    peak_flops: float
    """bfloat16 operations a second, dense; 0 is unknown, and then no time is predicted."""
    memory_bytes: float
    """Of the main memory (HBM)."""
    memory_bandwidth: float
    """Of the main memory, bytes a second."""
    links: int
    """To other chips, each with its own bandwidth."""
    link_bandwidth: float
    """Bytes a second that one link sends, one way."""
    slow_bandwidth: float
    """Bytes a second that a chip sends over the network between slices (DCN) or hosts."""
    fast: str
    """Name of the links within a slice or host."""
    slow: str
    """Name of the network between slices or hosts."""
    devices: int = 1
    """jax devices of one chip."""
    clock: float = 0.0
    """Cycles a second, to read the TPU compiler's own estimates; 0 has none."""
    product_share: float = 0.8
    """Share of the peak that one large bfloat16 product reaches."""
    usable: float = 1.0
    """Share of the memory that programs are given. jax takes 75 % of a GPU's where XLA_PYTHON_CLIENT_MEM_FRACTION is
    not set; the TPU compiler refuses what is too much by itself."""
    ring: int = 1
    """Length of a side of a slice from which its ends are joined, which doubles what it carries; 1 is always."""


def _tpu(**figures: float) -> Chip:
    return Chip(platform="tpu", fast="ICI", slow="DCN", **figures)  # type: ignore[arg-type]


CHIPS: dict[str, Chip] = {
    "v4": _tpu(
        peak_flops=275e12,
        memory_bytes=32 * GIB,
        memory_bandwidth=1.2e12,
        links=6,
        link_bandwidth=4.5e10,
        slow_bandwidth=6.25e9,
        clock=1.05e9,
        product_share=0.93,
        ring=4,
    ),
    "v5e": _tpu(
        peak_flops=197e12,
        memory_bytes=16 * GIB,
        memory_bandwidth=8.1e11,
        links=4,
        link_bandwidth=4.5e10,
        slow_bandwidth=3.125e9,
        clock=1.5e9,
        product_share=0.88,
        ring=16,
    ),
    "v5p": _tpu(
        peak_flops=459e12,
        memory_bytes=95 * GIB,
        memory_bandwidth=2.765e12,
        links=6,
        link_bandwidth=9e10,
        slow_bandwidth=6.25e9,
        clock=1.75e9,
        product_share=0.90,
        ring=4,
    ),
    "v6e": _tpu(
        peak_flops=918e12,
        memory_bytes=32 * GIB,
        memory_bandwidth=1.6e12,
        links=4,
        link_bandwidth=9e10,
        slow_bandwidth=1.25e10,
        clock=1.75e9,
        product_share=0.70,
        ring=16,
    ),
    "tpu7x": _tpu(
        peak_flops=2307e12,
        memory_bytes=192 * GIB,
        memory_bandwidth=7.38e12,
        links=6,
        link_bandwidth=1e11,
        slow_bandwidth=1.25e10,
        devices=2,
        clock=2.2e9,
        product_share=0.80,
        ring=4,
    ),
    "h100": Chip(
        platform="gpu",
        peak_flops=989.4e12,
        memory_bytes=84_942_979_072,
        memory_bandwidth=3.35e12,
        links=1,
        link_bandwidth=4.5e11,
        slow_bandwidth=5e10,
        fast="NVLink",
        slow="network",
        product_share=0.75,
        usable=0.75,
    ),
    "cpu": Chip(
        platform="cpu",
        peak_flops=0.0,
        memory_bytes=0.0,
        memory_bandwidth=0.0,
        links=0,
        link_bandwidth=0.0,
        slow_bandwidth=0.0,
        fast="memory",
        slow="network",
    ),
}
"""By the name that a topology begins with.

TPU peaks, memories and bandwidths: cloud.google.com/tpu/docs/ v4, v5e, v5p, v6e and tpu7x. Links, one way:
jax-ml.github.io/scaling-book/tpus (v4 to v6e); tpu7x has 1,200 GB/s both ways over 6 links (its page). DCN: the
network cards of a host, shared by its chips (the same pages; v4 and v5p 2.5e10 bytes/s a host of 4, scaling-book).
Sides that are joined into rings: 16 for v5e and v6e, cubes of 4 x 4 x 4 for the others (scaling-book). Clocks follow
from the peak and the number of multipliers: 2 x 128 x 128 x 4 a core for v4, v5e and v5p, 2 x 256 x 256 x 4 for v6e and
tpu7x. H100 SXM: NVIDIA's data sheet; NVLink 450 GB/s and one card of 400 Gbit/s for each GPU. Its memory is what
the driver has for programs, 79.1 GiB (`xla/backends/gpu/target_config/specs/`); nvidia-smi tells of 0.5 GiB more, which
the driver keeps.

`product_share` on TPU is the compiler's own estimate (libtpu 0.0.52, `estimated_cycles` at the clock above) for a
product of 8192 x 8192 x 8192 against the peak. For H100, which was not measured, it is a round figure.
"""
