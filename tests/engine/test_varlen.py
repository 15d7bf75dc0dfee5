"""Attention on the pack itself: when it is chosen, what torch's function is asked for, and that it is our attention."""

import inspect
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from afina.engine.ops import TORCH, AttentionSpec, Segments, attention
from afina.engine.ops.cards import varlen

SPEC = AttentionSpec(4, 2, 16, 16, 0.3)
ROOTS, FOREST = Segments((0, 5, 6, 13)), Segments((0, 5, 6, 13), (-1, 0, 0))


def varlen_attn(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """What torch's function is said to compute, row by row; called as its signature allows."""
    real = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    given = inspect.signature(real).bind(q_THD, k_THD, v_THD, *arguments, **options).arguments
    assert given["cu_seq_q"].dtype == torch.int32
    assert given["max_q"] == given["max_k"] == 7
    (before, after), rows = given["window_size"], []
    assert after == 0
    bounds = given["cu_seq_q"].tolist()
    for start, end in pairwise(bounds):
        at = torch.arange(end - start)
        seen = (at[:, None] >= at) & ((at[:, None] - at <= before) | (before == -1))
        q, k, v = (x[start:end].transpose(0, 1) for x in (q_THD, k_THD, v_THD))
        out = F.scaled_dot_product_attention(q, k, v, seen, scale=given["scale"], enable_gqa=given["enable_gqa"])
        rows.append(out.transpose(0, 1))
    return torch.cat(rows)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Queries as they would be on an A100, and torch's library for it."""
    monkeypatch.setattr(varlen, "capability", lambda device: (8, 0))
    monkeypatch.setattr(varlen, "library", lambda device: SimpleNamespace(varlen_attn=varlen_attn))
    return SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device="cuda:0")


@pytest.mark.parametrize("window", [0, 1, 3, 50])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_it_is_our_attention(window: int, kv_heads: int, card: SimpleNamespace, monkeypatch) -> None:
    torch.manual_seed(0)
    spec = AttentionSpec(4, kv_heads, 16, 16, 0.3, window=window)
    qkv = torch.randn(13, spec.qk_size + spec.kv_size)
    expected = TORCH.attend(qkv, spec, None, ROOTS)
    monkeypatch.setattr(varlen, "takes", lambda q_THD, spec, segments: True)
    assert (TORCH.attend(qkv, spec, None, ROOTS) - expected).abs().max() < 1e-5


def test_it_is_chosen_where_it_knows_all_that_is_asked(card: SimpleNamespace, monkeypatch) -> None:
    def takes(spec: AttentionSpec = SPEC, segments: Segments = ROOTS, **changes: Any) -> bool:
        return varlen.takes(SimpleNamespace(**{**vars(card), **changes}), spec, segments)

    assert takes()
    assert takes(dtype=torch.float16)
    assert not takes(is_cuda=False)
    assert not takes(dtype=torch.float32)
    assert not takes(segments=FOREST)
    assert not takes(AttentionSpec(4, 2, 16, 16, 0.3, cap=50.0))
    assert not takes(AttentionSpec(4, 2, 12, 12, 0.3))
    assert not takes(AttentionSpec(1, 1, 512, 2, 0.3))
    monkeypatch.setattr(varlen, "library", lambda device: None)  # an older torch
    assert not takes()
    monkeypatch.setattr(varlen, "capability", lambda device: (7, 5))
    assert not takes()


@pytest.mark.parametrize(("capability", "installed", "active"), [
    ((9, 0), True, ["FA3"]), ((9, 0), False, []), ((10, 0), True, []), ((8, 0), True, []),
])  # fmt: skip
def test_flash_attention_3_is_taken_on_its_cards(capability, installed: bool, active: list[str], monkeypatch) -> None:
    pytest.importorskip("torch.nn.attention.varlen")
    activated: list[str] = []
    monkeypatch.setattr(varlen, "capability", lambda device: capability)
    monkeypatch.setattr(varlen, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activated.append)
    assert varlen.library.__wrapped__(torch.device("cuda:0")).varlen_attn
    assert activated == active


def test_torchs_own_takes_views_of_the_joined_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shapes, dtypes and gradients, without numbers: on torch's device that has none."""
    own = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "takes", lambda q_THD, spec, segments: True)
    monkeypatch.setattr(varlen, "library", lambda device: own)
    qkv = torch.empty(13, 144, dtype=torch.bfloat16, device="meta")[:, :128].requires_grad_()
    out = TORCH.attend(qkv, SPEC, None, ROOTS)
    assert (out.shape, out.dtype) == ((13, 64), torch.bfloat16)
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


def test_on_the_processor_it_is_not_asked_for() -> None:
    q_THD = torch.randn(13, 4, 16, dtype=torch.bfloat16)
    assert not varlen.takes(q_THD, SPEC, ROOTS)
    assert attention.attend_rotated(q_THD, q_THD[:, :2], q_THD[:, :2], SPEC, ROOTS).shape == (13, 64)
