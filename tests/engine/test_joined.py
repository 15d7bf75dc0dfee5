"""Joined products against the same layers one by one, in both number formats."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from afina.core.device import cache_folder
from afina.engine.blocks import BlockLinear, quantise
from afina.engine.joined import JoinedLinear
from afina.engine.ops import TORCH, chosen
from afina.engine.ops.by_cpp import CppOps
from afina.lora import LoraConfig, inject

CPU = torch.device("cpu")


class Found(NamedTuple):
    y: torch.Tensor
    dx: torch.Tensor
    grads: dict[str, torch.Tensor]


def owner(rank: int) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Module()
    for name, width in (("q", 64), ("k", 32), ("v", 96)):
        module.add_module(name, nn.Linear(48, width, bias=name == "k"))
    inject(module, LoraConfig(rank=rank, target_modules=("q", "v"), alpha=7.0))
    for name, p in module.named_parameters():
        if "lora" in name:
            p.data = 0.2 * torch.randn(p.shape)
    return module.train()


def run(module: nn.Module, call, tokens: int, dtype: torch.dtype) -> Found:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, 48, generator=generator).to(dtype).requires_grad_()
    y = call(x)
    y.backward(torch.randn(y.shape, generator=generator).to(dtype))
    return Found(
        y.detach().float(), x.grad.float(), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    )


@pytest.mark.parametrize("tokens", [64, 37, 1])
@pytest.mark.parametrize(("rank", "dtype", "tolerance"), [
    (16, torch.float32, 1e-5), (16, torch.bfloat16, 0.02), (32, torch.bfloat16, 0.02), (5, torch.bfloat16, 0.02),
])  # fmt: skip
@pytest.mark.parametrize("fused", [True, False])
def test_joined_is_the_layers_side_by_side(
    tokens: int, rank: int, dtype: torch.dtype, tolerance: float, fused: bool
) -> None:
    exact = owner(rank)
    expected = run(exact, lambda x: torch.cat([exact.q(x), exact.k(x), exact.v(x)], 1), tokens, torch.float32)
    module = owner(rank)
    for layer in (module.q.base, module.k, module.v.base):
        layer.to(dtype)
    joined = JoinedLinear(module, "q", "k", "v")
    own = chosen(CPU, cache_folder()) if fused else TORCH
    found = run(module, lambda x: joined(x, own), tokens, dtype)
    assert found.grads.keys() == expected.grads.keys()
    pairs = [(found.y, expected.y), (found.dx, expected.dx)]
    pairs += [(found.grads[name], value) for name, value in expected.grads.items()]
    for a, b in pairs:
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, CppOps.few])
@pytest.mark.parametrize("rank", [0, 5, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [None, "nf4", "int8"])
def test_few_rows_are_the_layers(rows: int, rank: int, dtype: torch.dtype, kind: str | None) -> None:
    own = chosen(CPU, cache_folder())
    if own is TORCH:
        pytest.skip("no compiler here")
    torch.manual_seed(0)
    module = nn.Module()
    for name, width in (("q", 64), ("k", 35), ("v", 18)):
        module.add_module(name, nn.Linear(128, width, bias=name == "k"))
    if kind:  # of two layers; the third stays as it is
        for name in "qk":
            layer = getattr(module, name)
            module.add_module(name, BlockLinear(quantise(layer.weight, kind, torch.float32), layer.bias))
    if rank:
        inject(module, LoraConfig(rank=rank, target_modules=("q", "v"), alpha=7.0))
        for name, p in module.named_parameters():
            if "lora" in name:
                p.data = 0.2 * torch.randn(p.shape)
    module.eval()
    x = torch.randn(rows, 128).to(dtype)
    with torch.inference_mode():
        exact = torch.cat([module.q(x.float()), module.k(x.float()), module.v(x.float())], 1)
        for layer in module.children():
            getattr(layer, "base", layer).to(dtype)
        joined = JoinedLinear(module, "q", "k", "v")
        found = joined(x, own)
        assert joined._product is not None
        assert joined._product.few_rows(x) is not None
    assert (found.float() - exact).abs().max() <= (1e-5 if dtype == torch.float32 else 0.02) * exact.abs().max()


@pytest.mark.parametrize("by", [True, False], ids=["kernels", "torch"])
def test_what_is_kept_for_the_backward_pass_does_not_keep_the_outputs(by: bool) -> None:
    module, x = owner(16), torch.randn(64, 48, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = JoinedLinear(module, "q", "k", "v")(x, chosen(CPU, cache_folder()) if by else TORCH)
    assert y.requires_grad
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert y.untyped_storage().data_ptr() not in storages
    assert sum(storages.values()) == x.nbytes + 64 * 2 * 16 * 4  # and x Aᵀ of two adapters


def test_a_bias_that_is_changed_in_place_is_seen() -> None:
    module = owner(16).eval()
    joined, x = JoinedLinear(module, "q", "k", "v"), torch.randn(40, 48)
    with torch.no_grad():
        before = joined(x, TORCH)
        module.k.bias.copy_(torch.randn(32))  # as the best weights return after training
        after = joined(x, TORCH)
        assert not torch.equal(before, after)
        torch.testing.assert_close(after, torch.cat([module.q(x), module.k(x), module.v(x)], 1))
