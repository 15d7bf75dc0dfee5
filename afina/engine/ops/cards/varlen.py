"""Attention on the pack itself, without padding: torch's flash attention over rows of any lengths, on cards.

T tokens, packed; H heads of D, Hkv of them of keys and values; P tokens in the paths of all segments. Scores with a cap
have `attention.attend_rotated`'s other way.
"""

import inspect
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from afina.engine.ops.rotary import AttentionSpec
from afina.engine.ops.segments import Segments

_LEAST_CAPABILITY, _HOPPER = (8, 0), (9, 0)
_WIDEST, _STEP = 256, 8  # numbers of a head: up to, and a multiple of


def takes(q_THD: Tensor, spec: AttentionSpec) -> bool:
    """Whether `attend` can take these: by what is asked, then by device and by torch's version."""
    return not spec.cap and _is_flash(q_THD, spec) and library(q_THD.device) is not None


def wants_repeats(q_BHTD: Tensor, spec: AttentionSpec, masked: bool) -> bool:
    """Whether keys and values of groups should be repeated for `scaled_dot_product_attention`: of its kernels for cards
    flash attention alone knows groups, and takes no mask; what is left for groups writes all scores."""
    return q_BHTD.is_cuda and spec.heads != spec.kv_heads and (masked or not _is_flash(q_BHTD, spec))


def _is_flash(q: Tensor, spec: AttentionSpec) -> bool:
    return (
        q.is_cuda
        and q.dtype in (torch.float16, torch.bfloat16)
        and spec.head_dim <= _WIDEST
        and spec.head_dim % _STEP == 0
        and capability(q.device) >= _LEAST_CAPABILITY
    )


def attend(q_THD: Tensor, k_PHD: Tensor, v_PHD: Tensor, spec: AttentionSpec, segments: Segments) -> Tensor:
    """Causal attention of each segment to its path, with which it ends: of flash attention's masks, the causal one and
    that of a window, the last query sees the last key. (T, H·D)."""
    of, paths, device = library(q_THD.device), segments.paths, q_THD.device
    assert of is not None, "asked of `takes`"
    window = (spec.window - 1 if spec.window else -1, 0)  # keys before a query's own, and after
    out: Tensor = of.varlen_attn(
        q_THD, k_PHD, v_PHD, segments.on(device, "bounds_tensor"), paths.on(device, "bounds_tensor"), segments.longest,
        paths.longest, scale=spec.scale, window_size=window, enable_gqa=spec.heads != spec.kv_heads,
    )  # fmt: skip
    return out.flatten(1)


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """NVIDIA's compute capability; (0, 0) of AMD's cards, of which torch says another number by that name."""
    return (0, 0) if torch.version.hip else torch.cuda.get_device_capability(device)


@cache
def library(device: torch.device) -> Any:
    """torch's module of it, where this version has one that knows all that is asked of it here; FlashAttention 3 is
    made the one that computes, where it is installed and all cards are of the generation that it is for."""
    try:
        from torch.nn.attention import activate_flash_attention_impl, varlen
    except ImportError:  # an older torch
        return None
    found: Any = varlen
    if not {"scale", "window_size", "enable_gqa"} <= inspect.signature(found.varlen_attn).parameters.keys():
        return None
    cards = {capability(torch.device("cuda", i)) for i in range(torch.cuda.device_count())}
    if find_spec("flash_attn_interface") is not None and cards == {_HOPPER}:  # it is made so for all cards at once
        with suppress(Exception):  # of a build for another torch, or without a backward pass: torch has its own
            activate_flash_attention_impl("FA3")
    return found
