"""The products with one narrow side against fp64."""

import pytest
import torch

from afina.core.device import cache_folder
from afina.engine import kernels
from afina.engine.ops import TORCH
from afina.engine.ops.by_cpp import CppOps


@pytest.mark.parametrize("rows", [1, 2, 33, 256, 259, 600])
@pytest.mark.parametrize(("width", "rank"), [(16, 16), (48, 32), (128, 16), (80, 48)])
def test_outer_products(rows: int, width: int, rank: int) -> None:
    """An odd row has no neighbour, widths end in half a block, and long passes take several blocks of rows."""
    library = kernels.load(cache_folder())
    if library is None or not library.multiplies_pairs:
        pytest.skip("no products of pairs of bf16 numbers here")
    torch.manual_seed(0)
    x = torch.randn(rows, width + 32).to(torch.bfloat16)[:, 16 : 16 + width]
    low = torch.randn(rows, rank).to(torch.bfloat16)
    expected = 0.5 * x.double().T @ low.double()
    for found in (CppOps(library).outer_product(x, low, 0.5), CppOps(library).outer_product(low, x, 0.5).T):
        assert found.shape == (width, rank)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_sums_of_bf16_are_not_rounded_to_it_by_torch() -> None:
    torch.manual_seed(0)
    x, low = torch.randn(300, 40).to(torch.bfloat16), torch.randn(300, 5).to(torch.bfloat16)
    found = TORCH.outer_product(x, low, 0.5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), 0.5 * x.double().T @ low.double(), rtol=1e-4, atol=1e-4)
