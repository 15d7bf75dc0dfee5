"""Number formats: which is fast on a device, and what else decides what its products round to."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch

from afina.core.device.cards import device_name
from afina.core.device.host import processor
from afina.core.errors import OutputError
from afina.core.files import write_json

Precision = Literal["bf16", "fp16", "fp32"]
PRECISIONS: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_NATIVE = (8, 0)  # the compute capability of NVIDIA's cards from which on they multiply bf16 themselves


def precision_of(dtype: torch.dtype) -> Precision:
    """The name of a compute dtype."""
    return next((name for name, known in PRECISIONS.items() if known == dtype), "fp32")


def pick_dtype(precision: str, device: torch.device, cache: Path) -> tuple[torch.dtype, str]:
    """The compute dtype for `precision` (bf16, fp16, fp32 or auto) on `device`, and the reason in words.

    `auto` takes on a card what it was made for: bf16, or fp16 where bf16 is emulated or missing. On the processor it
    takes bf16 where a matrix product of a training step's shape is at least 1.3 times as fast in it as in fp32; that
    measurement takes under a second and is kept in `cache` by processor, torch and threads. (Of a card it would say
    little: such a product takes no longer there than it takes to start and to wait for.) fp16 on the processor is for
    comparing with a card: our kernels know no fp16, and torch's products are slow in it.
    """
    for name, dtype in PRECISIONS.items():
        if precision == name:
            return dtype, "as asked"
    if device.type != "cpu":
        return native_format(device)
    ratio = _bf16_speedup(device, cache)
    if ratio >= 1.3:
        return torch.bfloat16, f"bf16 products are {ratio:.1f} times as fast as fp32 here (measured)"
    return torch.float32, f"bf16 products are only {ratio:.1f} times as fast as fp32 here (measured)"


def native_format(device: torch.device) -> tuple[torch.dtype, str]:
    """The 16-bit format that a card computes in by itself, and how that is known."""
    name = device_name(device)
    if device.type == "cuda" and torch.version.hip:
        known = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16 if known else torch.float16), f"{name} (ROCm) has {'' if known else 'no '}bf16"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        version = ".".join(map(str, capability))
        if capability >= _NATIVE:
            return torch.bfloat16, f"{name} has compute capability {version}, and bf16 from 8.0 on"
        return torch.float16, f"{name} has compute capability {version}: before 8.0 bf16 is emulated"
    if _multiplies(torch.bfloat16, device):
        return torch.bfloat16, f"torch multiplies bf16 on {name}"
    return torch.float16, f"torch multiplies no bf16 on {name}"


def _multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    try:
        x = torch.ones(8, 8, dtype=dtype, device=device)
        return bool((x @ x)[0, 0].item() == 8)
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def _bf16_speedup(device: torch.device, cache: Path) -> float:
    key = f"{device.type} {processor()} {torch.get_num_threads()} torch {torch.__version__}"
    path = cache / "bf16_speedup.json"
    known: dict[str, float] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = dict(json.loads(path.read_text()))
        return float(known[key])
    ratio = _product_seconds(torch.float32) / _product_seconds(torch.bfloat16)
    with suppress(OutputError):  # a cache that cannot be written costs a second a run, no more
        write_json(path, known | {key: round(ratio, 2)})
    return ratio


def _product_seconds(dtype: torch.dtype) -> float:
    x = torch.randn(512, 1024).to(dtype)
    weight = torch.randn(1024, 1024).to(dtype)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        y = x @ weight.T
        y.sum().item()
        times.append(time.perf_counter() - start)
    return min(times)  # what else runs on the machine only ever adds


def set_arithmetic(device: torch.device, tf32: bool, deterministic: bool) -> None:
    """How products on `device` are computed from now on, in this process: whether those of fp32 may round their
    factors to TF32 (10 bits, several times as fast), and whether all sums are added in one order, run after run.

    To be called before the first product there: the matrix library reads its workspace's form once. The processor
    has no TF32, and adds in one order always: for it both are unset, for a run on a card before may have set them.
    """
    on_card = device.type != "cpu"
    tf32, deterministic = tf32 and on_card, deterministic and on_card
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # to set it imports a compiler, in seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cuda.enable_mem_efficient_sdp(not deterministic)  # adds gradients as they come, flash attention not
    if deterministic:
        flags: Any = torch.utils.deterministic
        flags.fill_uninitialized_memory = False  # which is for finding bugs, and costs time
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def in_any_order(device: torch.device) -> Iterator[None]:
    """Inside, sums on `device` may be added as they come, whatever was set: ordered ones leave some cards no attention
    that long rows fit into."""
    ordered, tf32 = device.type != "cpu" and is_deterministic(device), torch.get_float32_matmul_precision() == "high"
    if ordered:
        set_arithmetic(device, tf32, False)
    try:
        yield
    finally:
        if ordered:
            set_arithmetic(device, tf32, True)


def is_deterministic(device: torch.device) -> bool:
    """Whether what is computed again on `device` has the same bits."""
    return device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
