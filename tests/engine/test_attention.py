"""The processor's attention against torch's, in fp32: rows, forests, windows, caps and widths that fill no vector."""

import pytest
import torch
from torch import Tensor

from afina.core.device import cache_folder
from afina.engine import ops
from afina.engine.ops import TORCH, AttentionSpec, Segments

ROWS = Segments((0, 1, 50, 199))
# Branches that begin at odd places, after ones that reached farther, and rows that end at them.
FOREST = Segments((0, 7, 72, 75, 140, 205, 206, 300), (-1, 0, 1, 0, 3, -1, 5))


@pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec(4, 2, 16, 0, 0.25),
        AttentionSpec(9, 3, 64, 0, 0.125),
        AttentionSpec(8, 1, 128, 0, 0.09),
        AttentionSpec(4, 2, 80, 0, 0.11),
        AttentionSpec(6, 2, 20, 0, 0.3, window=5),
        AttentionSpec(2, 2, 18, 0, 0.2, window=70, cap=3.0),
    ],
    ids=["narrow", "wide", "wider", "two widths of columns", "window", "cap"],
)
@pytest.mark.parametrize("segments", [ROWS, FOREST], ids=["rows", "forest"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)], ids=["fp32", "bf16"])
def test_output_and_gradients_are_those_of_torch(
    dtype: torch.dtype, within: float, segments: Segments, spec: AttentionSpec
) -> None:
    own = ops.chosen(torch.device("cpu"), cache_folder())
    if own is TORCH:
        pytest.skip("there is no C++ compiler here")
    torch.manual_seed(0)
    qkv = torch.randn(segments.bounds[-1], spec.qk_size + spec.kv_size).to(dtype)
    gradient = torch.randn(segments.bounds[-1], spec.q_size).to(dtype)

    def attended(by: ops.Ops, given: Tensor) -> tuple[Tensor, Tensor]:
        given = given.clone().requires_grad_()
        out = by.attend(given, spec, None, segments)
        return out.detach(), torch.autograd.grad(out, given, gradient.to(given.dtype))[0]

    expected = attended(TORCH, qkv.float())
    before, alone = torch.get_num_threads(), attended(own, qkv)[0]
    for threads in (1, 2, 5):  # one tree of the forest has most of the tokens: the heads of a group are divided
        torch.set_num_threads(threads)
        try:
            found, again = attended(own, qkv), attended(own, qkv)
        finally:
            torch.set_num_threads(before)
        for each, wanted in zip(found, expected, strict=True):
            assert (each.float() - wanted).norm() < within * wanted.norm()
            assert (each.float() - wanted).abs().max() < 4 * within * wanted.abs().max()
        assert all(map(torch.equal, found, again))
        assert torch.equal(found[0], alone)


def test_rows_that_are_one_row_in_memory_have_its_gradient() -> None:
    own, spec = ops.chosen(torch.device("cpu"), cache_folder()), AttentionSpec(4, 2, 16, 0, 0.25)
    torch.manual_seed(0)
    row, weight = torch.randn(1, spec.qk_size + spec.kv_size), torch.randn(20, spec.qk_size + spec.kv_size)

    def gradient(by: ops.Ops) -> Tensor:
        given = row.clone().requires_grad_()
        normed = by.rms_norm(given.expand(20, -1), torch.ones(row.shape[1]), 1e-6)
        out = by.attend(given.expand(20, -1), spec, None, Segments((0, 20))).sum() + (normed * weight).sum()
        return torch.autograd.grad(out, given)[0]

    torch.testing.assert_close(gradient(own), gradient(TORCH))
