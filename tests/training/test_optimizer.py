"""Masters of parameters in bf16."""

import torch

from afina.training.optimizer import Optimizer


def test_masters_keep_updates_too_small_for_bf16() -> None:
    layer = torch.nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(layer.weight)
    optimizer = Optimizer(layer, 0.0)
    for _ in range(100):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step(1e-4, 1e9)
    assert torch.allclose(layer.weight.float(), torch.tensor(0.99), atol=0.003)
