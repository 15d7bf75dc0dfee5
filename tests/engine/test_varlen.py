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
CAPABILITY = varlen.capability.__wrapped__  # which asks anew each time
DEEP = Segments((0, 3, 7, 8, 8, 10, 14, 15, 18), (-1, 0, 1, 1, 0, -1, 5, 5))


def varlen_attn(q_THD: Tensor, k_PHD: Tensor, v_PHD: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """What torch's function is said to compute, row by row; called as its signature allows. Masks are aligned to the
    end, where a row has more keys than queries."""
    real = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    given = inspect.signature(real).bind(q_THD, k_PHD, v_PHD, *arguments, **options).arguments
    assert given["cu_seq_q"].dtype == given["cu_seq_k"].dtype == torch.int32
    (before, after), rows = given["window_size"], []
    assert after == 0
    bounds = [list(pairwise(given[f"cu_seq_{name}"].tolist())) for name in "qk"]
    assert [given[f"max_{name}"] for name in "qk"] == [max(end - start for start, end in each) for each in bounds]
    assert [each[-1][1] for each in bounds] == [len(q_THD), len(k_PHD)]
    for queries, keys in zip(*bounds, strict=True):
        q, k, v = (x[slice(*of)].transpose(0, 1) for x, of in ((q_THD, queries), (k_PHD, keys), (v_PHD, keys)))
        at = torch.arange(k.shape[1])
        own = at[k.shape[1] - q.shape[1] :, None]
        seen = (own >= at) & ((own - at <= before) | (before == -1))
        out = F.scaled_dot_product_attention(q, k, v, seen, scale=given["scale"], enable_gqa=given["enable_gqa"])
        rows.append(out.transpose(0, 1))
    return torch.cat(rows)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Queries as they would be on an A100, and torch's library for it."""
    monkeypatch.setattr(varlen, "capability", lambda device: (8, 0))
    monkeypatch.setattr(varlen, "library", lambda device: SimpleNamespace(varlen_attn=varlen_attn))
    return SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device="cuda:0")


@pytest.mark.parametrize("window", [0, 1, 3, 6, 50])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("segments", [ROOTS, FOREST, DEEP], ids=["roots", "forest", "deep"])
def test_it_is_our_attention(
    window: int, kv_heads: int, segments: Segments, card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    spec = AttentionSpec(4, kv_heads, 16, 16, 0.3, window=window)
    qkv = torch.randn(segments.bounds[-1], spec.qk_size + spec.kv_size, requires_grad=True)
    seed = torch.randn(segments.bounds[-1], spec.q_size)

    def attended() -> tuple[Tensor, Tensor]:
        out = TORCH.attend(qkv, spec, None, segments)
        return out.detach(), torch.autograd.grad(out, qkv, seed)[0]

    expected = attended()
    monkeypatch.setattr(varlen, "takes", lambda q_THD, spec: True)
    monkeypatch.setattr(attention, "attend_padded", lambda *_: pytest.fail("padded"))
    for found, other in zip(attended(), expected, strict=True):
        assert (found - other).abs().max() < 1e-5


def test_gradients_of_what_many_rows_share_are_summed_in_fp32() -> None:
    segments = Segments((0, 1, *range(2, 600)), (-1, *[0] * 598))
    x_THD = torch.ones(segments.bounds[-1], 1, 1, dtype=torch.bfloat16, requires_grad=True)
    (d,) = torch.autograd.grad(attention.along_paths(x_THD, segments).sum(), x_THD)
    assert d[:, 0, 0].tolist() == [600.0] + [1.0] * 598  # 599, rounded once; bf16 alone counts no farther than 256


def test_it_is_chosen_where_it_knows_all_that_is_asked(card: SimpleNamespace, monkeypatch) -> None:
    def takes(spec: AttentionSpec = SPEC, **changes: Any) -> bool:
        return varlen.takes(SimpleNamespace(**{**vars(card), **changes}), spec)

    assert takes()
    assert takes(dtype=torch.float16)
    assert not takes(is_cuda=False)
    assert not takes(dtype=torch.float32)
    assert not takes(AttentionSpec(4, 2, 16, 16, 0.3, cap=50.0))
    assert not takes(AttentionSpec(4, 2, 12, 12, 0.3))
    assert not takes(AttentionSpec(1, 1, 512, 2, 0.3))
    monkeypatch.setattr(varlen, "library", lambda device: None)  # an older torch
    assert not takes()
    monkeypatch.setattr(varlen, "capability", lambda device: (7, 5))
    assert not takes()


def test_groups_are_repeated_for_kernels_that_do_not_know_them(
    card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wants(spec: AttentionSpec = SPEC, masked: bool = False, **changes: Any) -> bool:
        return varlen.wants_repeats(SimpleNamespace(**{**vars(card), **changes}), spec, masked)

    assert not wants()
    assert wants(masked=True)
    assert wants(dtype=torch.float32)
    assert not wants(AttentionSpec(4, 4, 16, 16, 0.3), masked=True)
    assert not wants(masked=True, is_cuda=False)
    monkeypatch.setattr(varlen, "capability", lambda device: (7, 5))
    assert wants()

    q_BHTD, k_BHSD, v_BHSD = torch.randn(2, 4, 5, 16), *torch.randn(2, 2, 2, 5, 16)
    expected = attention.dense_attention(q_BHTD, k_BHSD, v_BHSD, SPEC)
    monkeypatch.setattr(varlen, "wants_repeats", lambda *_: True)
    sdpa, options = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **b: options.append(b) or sdpa(*a, **b))
    assert (attention.dense_attention(q_BHTD, k_BHSD, v_BHSD, SPEC) - expected).abs().max() < 1e-5
    assert not options[0]["enable_gqa"]


def test_an_amd_cards_number_is_not_taken_for_nvidias(card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "capability", CAPABILITY)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    assert varlen.takes(card, SPEC)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not varlen.takes(card, SPEC)


@pytest.mark.parametrize(("cards", "installed", "active"), [
    ([(9, 0)], True, ["FA3"]), ([(9, 0)], False, []), ([(10, 0)], True, []), ([(8, 0)], True, []),
    ([(9, 0), (9, 0)], True, ["FA3"]), ([(9, 0), (8, 0)], True, []),
])  # fmt: skip
def test_flash_attention_3_is_taken_on_its_cards(cards, installed: bool, active: list[str], monkeypatch) -> None:
    """Where all are such, for torch takes it for all; one that cannot be imported leaves torch's own."""
    pytest.importorskip("torch.nn.attention.varlen")
    activated: list[str] = []

    def activate(name: str) -> None:
        activated.append(name)
        raise RuntimeError("built for another torch")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(varlen, "capability", lambda device: cards[device.index])
    monkeypatch.setattr(varlen, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activate)
    assert varlen.library.__wrapped__(torch.device("cuda:0")).varlen_attn
    assert activated == active


@pytest.mark.parametrize("segments", [ROOTS, FOREST], ids=["roots", "forest"])
def test_torchs_own_takes_views_of_the_joined_product(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shapes, dtypes and gradients, without numbers: on torch's device that has none."""
    own = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "takes", lambda q_THD, spec: True)
    monkeypatch.setattr(varlen, "library", lambda device: own)
    qkv = torch.empty(13, 144, dtype=torch.bfloat16, device="meta")[:, :128].requires_grad_()
    out = TORCH.attend(qkv, SPEC, None, segments)
    assert (out.shape, out.dtype) == ((13, 64), torch.bfloat16)
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


def test_on_the_processor_it_is_not_asked_for() -> None:
    q_THD = torch.randn(13, 4, 16, dtype=torch.bfloat16)
    assert not varlen.takes(q_THD, SPEC)
    assert attention.attend_rotated(q_THD, q_THD[:, :2], q_THD[:, :2], SPEC, ROOTS).shape == (13, 64)
