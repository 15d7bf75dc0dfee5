"""Triton's kernels, run by its interpreter on the processor, against their twins in torch: values and gradients."""

import re
from collections.abc import Callable
from pathlib import Path
from threading import Thread, local
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from afina.engine.blocks import GGML_FORMATS, NF4, quantise
from afina.engine.ops import TORCH, AttentionSpec, Rotation, Segments, choice, chosen, why_torch
from afina.engine.ops.rotary import rotate_by_torch
from afina.engine.ops.unpack import row_bytes

pytest.importorskip("triton", reason="Triton is not installed")

from afina.engine.ops.cards import by_triton
from afina.engine.ops.cards.by_triton import TritonOps

OPS = TritonOps(devices=("cpu",))
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES)


def strided(rows: int, columns: int, room: int, dtype: torch.dtype) -> Tensor:
    """Rows with other numbers between them."""
    return torch.randn(rows, columns + room).to(dtype)[:, :columns]


def check(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """To the rounding of `dtype`."""
    assert found.shape == expected.shape
    scale = max(0.1, float(expected.abs().max()))
    assert (found.float() - expected.float()).abs().max() <= TOLERANCES[dtype] * scale


def compare(
    call: Callable[[TritonOps, tuple[Tensor, ...]], tuple[Tensor, ...]], inputs: tuple[Tensor, ...]
) -> list[Tensor]:
    """Results and gradients of Triton against torch's in fp32 on the same numbers; the gradients found."""
    results = []
    for ops, dtype in ((OPS, None), (TORCH, torch.float32)):
        # Copies that are strided alike: detach keeps a view's memory, which an operation may write.
        own = [_copy(x, dtype).requires_grad_() for x in inputs]
        out = call(ops, tuple(own))
        generator = torch.Generator().manual_seed(1)
        seeds = [torch.randn(y.shape, generator=generator).to(inputs[0].dtype).to(y.dtype) for y in out]
        results.append((out, torch.autograd.grad(out, own, seeds)))
    for found, expected in zip(results[0], results[1], strict=True):
        for one, other in zip(found, expected, strict=True):
            check(one.detach(), other.detach(), inputs[0].dtype)
    return list(results[0][1])


def _copy(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    new = torch.empty_strided(x.shape, x.stride(), dtype=dtype or x.dtype)
    return new.copy_(x).detach()


@DTYPES
@pytest.mark.parametrize(("rows", "columns", "room"), [(1, 1, 0), (5, 48, 16), (3, 77, 3)])
def test_norms(rows: int, columns: int, room: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, added = strided(rows, columns, room + 2, dtype), strided(rows, columns, room, dtype)
    weight = torch.randn(columns)
    (dx, _) = compare(lambda ops, given: (ops.rms_norm(*given, 1e-6),), (x, weight))
    assert dx.stride(0) == x.stride(0)
    dx, *_ = compare(lambda ops, given: ops.add_rms_norm(*given, 1e-6), (x, added, weight))
    assert dx.stride(0) == added.stride(0)  # the sum's gradient lies as what was added: a joined product's output
    # Where the sum alone, or the norm alone, is used again.
    compare(lambda ops, given: ops.add_rms_norm(*given, weight, 1e-6)[:1], (x, added))
    compare(lambda ops, given: ops.add_rms_norm(*given, weight, 1e-6)[1:], (x, added))


@DTYPES
@pytest.mark.parametrize("kind", ["silu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize(("rows", "inner", "room"), [(1, 1, 0), (3, 1100, 16), (4, 53, 5)])
def test_gated(rows: int, inner: int, room: int, kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = 2 * strided(rows, 2 * inner, room, dtype)
    x = torch.empty_strided((rows, 2 * inner), (2 * inner + room, 1), dtype=dtype).copy_(x)
    (d,) = compare(lambda ops, given: (ops.gated(given[0], kind),), (x,))
    assert d.stride(0) == x.stride(0)


SPECS = {
    "grouped": AttentionSpec(4, 2, 16, 16, 0.25),
    "partly rotated": AttentionSpec(3, 1, 20, 6, 0.2),
    "a norm of each head": AttentionSpec(3, 3, 12, 12, 0.3, norm=1, eps=1e-6),
    "a norm of each head, partly rotated": AttentionSpec(2, 1, 24, 10, 0.2, norm=1, eps=1e-5),
    "a norm of all heads": AttentionSpec(6, 2, 8, 8, 0.3, norm=2, eps=1e-6),
    "a norm of all heads, partly rotated": AttentionSpec(3, 1, 10, 4, 0.3, norm=2, eps=1e-6),
}


def rotation_of(spec: AttentionSpec, segments: Segments) -> Rotation:
    angles = torch.arange(segments.longest)[:, None] * torch.rand(spec.rotary_dim // 2)
    widths = (spec.q_size, spec.kv_size) if spec.norm == 2 else 2 * (spec.head_dim,)
    weights = [torch.randn(width) for width in widths] if spec.norm else [None, None]
    return Rotation(angles.cos(), angles.sin(), segments.positions_T, *weights)


@DTYPES
@pytest.mark.parametrize("name", SPECS)
def test_rotation(name: str, dtype: torch.dtype) -> None:
    """In attention, where queries and keys are turned in place, and alone, where they are not."""
    torch.manual_seed(0)
    spec, segments = SPECS[name], Segments((0, 3, 4, 7))
    rotation = rotation_of(spec, segments)
    width = spec.qk_size + spec.kv_size
    qkv = torch.empty_strided((7, width), (width + 9, 1), dtype=dtype).copy_(torch.randn(7, width))
    with torch.no_grad():
        check(OPS.rotate(qkv, spec, rotation), TORCH.rotate(qkv.float(), spec, rotation), dtype)

    def attended(ops: TritonOps, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (ops.attend(given[0], spec, rotation, segments),)

    (d,) = compare(attended, (qkv,))
    assert d.stride(0) == qkv.stride(0)


@pytest.mark.parametrize("name", SPECS)
def test_a_gradient_may_be_one_number_for_all(name: str) -> None:
    """As that of a sum is: its rows have no numbers side by side."""
    torch.manual_seed(0)
    spec, segments = SPECS[name], Segments((0, 3, 4, 7))
    rotation = rotation_of(spec, segments)
    qkv = torch.randn(7, spec.qk_size + spec.kv_size)

    def gradient(rotated: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
        own = qkv.clone().requires_grad_()
        return torch.autograd.grad(sum((i + 1) * x.sum() for i, x in enumerate(rotated(1 * own))), own)[0]

    found = gradient(lambda x: by_triton.apply(by_triton._Rotate, x, spec, rotation))
    values = spec.qk_size
    expected = gradient(lambda x: (*rotate_by_torch(x, spec, rotation), x[:, values:]))
    check(found, expected, torch.float32)


def test_norms_of_heads_that_are_trained_are_torchs() -> None:
    torch.manual_seed(0)
    spec, segments = SPECS["a norm of each head"], Segments((0, 4))
    rotation = rotation_of(spec, segments)
    rotation.q_weight.requires_grad_()
    qkv = torch.randn(4, spec.qk_size + spec.kv_size)
    found = torch.autograd.grad(OPS.attend(qkv, spec, rotation, segments).sum(), rotation.q_weight)
    expected = torch.autograd.grad(TORCH.attend(qkv, spec, rotation, segments).sum(), rotation.q_weight)
    check(found[0], expected[0], torch.float32)


@DTYPES
@pytest.mark.parametrize("words", [1, 7, 300])
def test_losses(words: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several blocks, of rows with others between them; the gradient is in the place of the logits."""
    monkeypatch.setattr("afina.engine.ops.cards.by_triton._WORDS_BLOCK", 64)
    torch.manual_seed(0)
    logits, labels = 5 * torch.randn(6, words + 3).to(dtype)[:, :words], torch.randint(0, words, (6,))
    expected, losses = torch.empty(6), torch.empty(6)
    gradient = TORCH.chunk_losses(logits.float(), labels, expected, True)
    kept = logits.clone()
    assert OPS.chunk_losses(logits, labels, losses, False) is logits
    assert torch.equal(logits, kept)
    check(losses, expected, torch.float32)
    found = OPS.chunk_losses(logits, labels, losses, True)
    assert found.data_ptr() == logits.data_ptr()
    assert (found.float() - gradient).abs().max() <= TOLERANCES[dtype]
    labels[2] = words  # which nobody asks the card about: no number outside the row is read
    OPS.chunk_losses(kept, labels, losses, True)
    assert losses.isnan().tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("kind", [*GGML_FORMATS, NF4])
@DTYPES
def test_every_format_is_read(kind: int, dtype: torch.dtype) -> None:
    """Random bytes, with scales that are numbers, into rows that are strided."""
    torch.manual_seed(0)
    columns = 320 if kind == NF4 or GGML_FORMATS[kind][1] == 32 else 1280
    size = row_bytes(kind, columns)
    data = torch.randint(0, 256, (3, size), dtype=torch.uint8)
    if kind == NF4:
        data = quantise(torch.randn(3, columns), "nf4", torch.float32).data
    else:
        numbers, block = GGML_FORMATS[kind][1:]
        blocks = data.view(3, columns // numbers, block)
        halves = {2: (0,), 3: (0, 2), 6: (0,), 7: (0, 2), 8: (0,), 10: (80, 82), 11: (108,), 12: (0, 2), 13: (0, 2)}
        for at in halves.get(kind, (208,)):
            steps = torch.randn(3, columns // numbers, 1).half().view(torch.uint8)
            blocks[..., at : at + 2] = steps
    found, expected = torch.zeros(3, columns + 5, dtype=dtype), torch.empty(3, columns)
    OPS.unpack(data, kind, found[:, :columns])
    TORCH.unpack(data, kind, expected)
    check(found[:, :columns], expected, dtype)
    assert not found[:, columns:].any()


def test_products_of_adapters_gradients_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a format of the product's own, which torch has for NVIDIA's cards, else of widened numbers."""
    x, low, asked = torch.randn(7, 5).bfloat16(), torch.randn(7, 4).bfloat16(), []

    def mm(a: Tensor, b: Tensor, **options: torch.dtype) -> Tensor:
        asked.append((a.dtype, options))
        return torch.matmul(a.float(), b.float())

    for is_cuda in (False, True):
        monkeypatch.setattr(by_triton, "_sums_in_fp32", lambda x, is_cuda=is_cuda: is_cuda)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "mm", mm)
            found = OPS.outer_product(x, low, 0.5)
        assert found.dtype == torch.float32
        assert torch.equal(found, 0.5 * (x.T.float() @ low.float()))
    assert asked == [(torch.bfloat16, {"out_dtype": torch.float32})]


def test_where_products_sum_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    def sums(is_cuda: bool, dtype: torch.dtype) -> bool:
        return by_triton._sums_in_fp32(SimpleNamespace(is_cuda=is_cuda, dtype=dtype))

    monkeypatch.setattr(torch.ops.aten.mm, "dtype", None, raising=False)
    assert sums(True, torch.bfloat16)
    assert sums(True, torch.float16)
    assert not sums(True, torch.float32)
    assert not sums(False, torch.bfloat16)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not sums(True, torch.bfloat16)


def test_another_dtype_or_device_is_torchs() -> None:
    assert OPS.takes(torch.empty(1))
    assert not OPS.takes(torch.empty(1, dtype=torch.float64))
    assert not TritonOps().takes(torch.empty(1))


def test_a_card_gets_them_where_triton_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where it can be imported alone: it needs a compiler, and does not know every card."""
    monkeypatch.setattr(choice, "_by_triton", choice._by_triton.__wrapped__)
    card, tried = torch.device("cuda:1"), []
    monkeypatch.setattr(by_triton, "try_on", tried.append)
    assert isinstance(chosen(card, tmp_path), TritonOps)
    assert tried == [card]
    assert not why_torch(card)
    assert chosen(torch.device("mps"), tmp_path) is TORCH

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler.\n Please specify via CC environment variable")

    monkeypatch.setattr(by_triton, "try_on", fail)
    assert chosen(card, tmp_path) is TORCH
    why, remedy = why_torch(card) or ("", "")
    assert re.match(r"Triton cannot run a kernel \(Failed .+\): slower, same results", why)
    assert "compiler" in remedy


def test_the_kernel_that_is_tried_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    by_triton.try_on(torch.device("cpu"))
    monkeypatch.setattr(by_triton, "_launch", lambda kernel, grid, x, *_, **__: None)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)
    with pytest.raises(ArithmeticError, match=r"0\.0, 0\.0"):
        by_triton.try_on(torch.device("cpu"))


def test_kernels_run_on_their_tensors_card_in_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which card is current is a thread's own, as with CUDA, and the first until the thread says otherwise."""
    current, ran = local(), []

    def exchange(index: int) -> int:
        before = getattr(current, "card", 0)
        current.card = before if index < 0 else index
        return before

    def launch() -> None:
        by_triton._launch(kernel, (1,), SimpleNamespace(is_cuda=True, get_device=lambda: 1))
        ran.append(current.card)

    kernel = {(1,): lambda x: ran.append(current.card)}
    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    thread = Thread(target=launch)
    thread.start()
    thread.join()
    assert ran == [1, 0]
