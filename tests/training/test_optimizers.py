"""Optimisers for low-rank factors against closed forms."""

import pytest
import torch
from torch import nn

from afina.lora import LoraConfig, inject
from afina.training.optimizer import Optimizer
from afina.training.optimizers.riemannian import preconditioned


def factors(a: torch.Tensor, b: torch.Tensor, gradient: torch.Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B with the gradients that come with that of BA."""
    own_a, own_b = nn.Parameter(a), nn.Parameter(b)
    ((own_b @ own_a) * gradient).sum().backward()
    return own_a, own_b


def test_riemannian_changes_the_update_alike_however_it_is_divided() -> None:
    torch.manual_seed(0)
    a, b, gradient = torch.randn(4, 9), torch.randn(7, 4), torch.randn(7, 9)
    change = torch.randn(4, 4) + 4 * torch.eye(4)

    def update(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        own_a, own_b = factors(a, b, gradient)
        da, db = preconditioned(own_a, own_b)
        return (b @ da + db @ a).detach()

    expected = update(a, b)
    most = float(expected.abs().max())
    assert torch.allclose(update(change @ a, b @ torch.linalg.inv(change)), expected, atol=1e-3 * most)
    # With P_A and P_B the projections to their rows' and columns' spaces: P_B G + G P_A.
    rows, columns = torch.linalg.pinv(a) @ a, b @ torch.linalg.pinv(b)
    assert torch.allclose(expected, columns @ gradient + gradient @ rows, atol=1e-3 * most)


def test_riemannian_is_adamw_on_those_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    inject(model, LoraConfig(rank=2, target_modules=("0",), modules_to_save=("1",)))
    layer = model[0]
    layer.lora_b.data = torch.randn(5, 2)
    optimizer = Optimizer(model, 0.0, kind="riemannian")
    x = torch.randn(8, 6)
    twins = [nn.Parameter(p.detach().clone()) for p in (layer.lora_a, layer.lora_b)]
    theirs = torch.optim.AdamW(twins, lr=0.01, weight_decay=0.0)
    for _ in range(3):
        model(x).square().sum().backward()
        gradients = preconditioned(layer.lora_a, layer.lora_b)
        for twin, gradient in zip(twins, gradients, strict=True):
            twin.grad = gradient.clone()
        theirs.step()
        optimizer.step(0.01, 1e9)
        assert torch.allclose(layer.lora_a, twins[0], atol=1e-6)
        assert torch.allclose(layer.lora_b, twins[1], atol=1e-6)


@pytest.mark.parametrize("init", ["pissa", "kaiming"])
def test_frozen_ranks_stay_as_they_are(init: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12))
    weight = model[0].weight.detach().clone()
    inject(model, LoraConfig(rank=2, target_modules=("0",), init=init), 0, None, lambda path: weight)
    layer = model[0]
    frozen = layer.lora_a.detach().clone()[2:]
    optimizer = Optimizer(model, 0.0, kind="riemannian")
    for _ in range(2):
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step(0.01, 1e9)
    assert torch.equal(layer.lora_a[2:], frozen)
