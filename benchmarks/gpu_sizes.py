"""How large the cases of `python -m benchmarks gpu` are, on a GPU and in miniature."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from benchmarks import micro_attention, micro_lambda
from benchmarks.micro_lambda import Shape


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        equality: what `gpu_equality.cores` is given.
        gemm: side of the square matrices whose product is timed, a power of two.
        copy: float32 elements that are copied.
        chains: two numbers of products of small matrices that wait for each other.
        lambdas: shapes of lambda cores that are timed.
        attention: names of cores of all-pairs attention, and sides of their maps.
        chunks: queries at a time.
        networks: names and options.
        image: (side, channels) of the networks' images.
        classes: of the networks.
        batch: the first that is tried.
        memory: bytes that count as the device's; None: what it says itself.
        threads: of the host's pipeline; empty: the pipeline is left out.
    """

    equality: tuple[tuple[Shape, ...], tuple[tuple[int, ...], ...], tuple[tuple[str, int], ...]]
    gemm: int
    copy: int
    chains: tuple[int, int]
    lambdas: tuple[Shape, ...]
    attention: tuple[tuple[str, int], ...]
    chunks: tuple[int, ...]
    networks: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    image: tuple[int, int]
    classes: int
    batch: int
    memory: int | None
    threads: tuple[int, ...]


_NETWORKS = (
    "resnet50",
    "lambda_resnet50",
    "swin_tiny",
    "slide_swin_tiny",
    "lavit_tiny",
    "pvt_v2_b1",
)
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
FULL = Sizes(
    equality=(
        (Shape(2, 14, 64, 4, 9), Shape(2, 20, 32, 2, 23), Shape(2, 9, 32, 2, 7, 2)),
        ((2, 14, 3, 3), (2, 14, 3, 5)),
        tuple((name, 24) for name in micro_attention.CORES),
    ),
    gemm=8192,
    copy=2**28,
    chains=(64, 512),
    lambdas=micro_lambda.SHAPES,
    attention=tuple(
        (name, side) for name in micro_attention.CORES for side in micro_attention.SIDES
    ),
    chunks=(128, 512),
    networks=tuple((name, ()) for name in _NETWORKS),
    image=(224, 3),
    classes=1000,
    batch=64,
    memory=None,
    threads=(0, *(2**i for i in range(1, 6) if 2**i <= 2 * _CORES)),
)
TINY = Sizes(
    equality=((Shape(1, 5, 8, 2, 3),), ((1, 5, 1, 3),), (("mhsa", 4), ("bottleneck", 4))),
    gemm=128,
    copy=2**16,
    chains=(4, 12),
    lambdas=(Shape(1, 4, 8, 2, 3),),
    attention=(("mhsa", 4),),
    chunks=(8,),
    networks=(("resnet18", (("blocks", (1,)), ("widths", (4,)))),),
    image=(16, 3),
    classes=4,
    batch=2,
    memory=2**18,
    threads=(),
)
