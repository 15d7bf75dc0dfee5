"""Machines that are not here, by their published figures: the one table of them.

Operations are those of dense products of 16-bit numbers, summed in fp32; where makers print twice as many, that is of
sparse matrices. Sources, with what was measured of each: docs/published.md, 4a.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PublishedMachine:
    """A machine by its published figures: bytes that are free for a training, floating-point operations per second,
    bytes per second from memory. `products` is the share of the operations that large matrix products reach, measured
    by others where that is known. `dtype` is the format that it computes in: without units for bf16, fp16. `kernels`:
    whether ours run there (Triton's).
    """

    title: str
    free: float
    operations: float
    bandwidth: float
    products: float = 0.8
    dtype: torch.dtype = torch.bfloat16
    kernels: bool = True


CARDS = {
    "b200": PublishedMachine("B200, 180 GB", 178e9, 2250e12, 8000e9),
    "h200": PublishedMachine("H200, 141 GB", 139e9, 989e12, 4800e9),
    "h100": PublishedMachine("H100 SXM, 80 GB", 79e9, 989e12, 3350e9, 0.803),
    "h100-pcie": PublishedMachine("H100 PCIe, 80 GB", 79e9, 756e12, 2000e9),
    "a100": PublishedMachine("A100 SXM, 80 GB", 79e9, 312e12, 2039e9, 0.869),
    "a100-40": PublishedMachine("A100, 40 GB", 39e9, 312e12, 1555e9, 0.811),
    "l40s": PublishedMachine("L40S, 48 GB", 46.5e9, 362e12, 864e9),
    "l4": PublishedMachine("L4, 24 GB", 23e9, 121e12, 300e9),
    "v100": PublishedMachine("V100 SXM, 32 GB", 31.5e9, 125e12, 900e9, 0.76, torch.float16, kernels=False),
    "t4": PublishedMachine("T4, 16 GB", 15e9, 65e12, 320e9, dtype=torch.float16),
    "rtx5090": PublishedMachine("RTX 5090, 32 GB", 31.5e9, 209.5e12, 1792e9),
    "rtx4090": PublishedMachine("RTX 4090, 24 GB", 23.5e9, 165.2e12, 1008e9, 0.97),
    "rtx3090": PublishedMachine("RTX 3090, 24 GB", 23.5e9, 71e12, 936e9, 0.97),
}
# What `afina fit` shows beside this machine where none is named.
MACHINES = {
    "24gb": CARDS["rtx4090"],
    "80gb": CARDS["a100"],
    "laptop": PublishedMachine("a laptop of 16 GB (Apple M4)", 12e9, 2.9e12, 120e9, 1.0, kernels=False),
}
PROCESSOR = PublishedMachine("a processor", 0, 8e11, 2e10, 1.0)  # assumed where nothing was measured
