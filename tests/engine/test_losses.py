"""The loss of each label, and their sum with its gradients, against torch's own cross-entropy."""

import pytest
import torch
from torch.nn import functional as F

from afina.core.device import cache_folder
from afina.engine import ops


@pytest.mark.parametrize("fused", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("labels", [1, 63, ops.CHUNK, 2 * ops.CHUNK + 65])
def test_losses_and_gradients_are_those_of_torch(labels: int, fused: bool) -> None:
    own = ops.chosen(torch.device("cpu"), cache_folder()) if fused else ops.TORCH
    if fused and own is ops.TORCH:
        pytest.skip("there is no C++ compiler here")
    torch.manual_seed(0)
    hidden_NC, head_VC = torch.randn(labels, 32, requires_grad=True), torch.randn(301, 32, requires_grad=True)
    labels_N = torch.randint(0, 301, (labels,))
    expected_N = F.cross_entropy(hidden_NC @ head_VC.T, labels_N, reduction="none")
    found_N = ops.cross_entropies(own, hidden_NC, head_VC, labels_N)
    assert not found_N.requires_grad
    assert torch.allclose(found_N, expected_N, atol=1e-5)
    gradients = torch.autograd.grad(expected_N.sum(), (hidden_NC, head_VC))
    total = ops.summed_cross_entropy(own, hidden_NC, head_VC, labels_N)
    assert total.item() == pytest.approx(expected_N.sum().item(), rel=1e-6)
    for found, expected in zip(torch.autograd.grad(total, (hidden_NC, head_VC)), gradients, strict=True):
        assert torch.allclose(found, expected, atol=1e-4)
