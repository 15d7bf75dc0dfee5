"""Optimisers for low-rank factors against closed forms and plain references in fp64, and what all of them keep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.linalg import solve_sylvester
from torch import Tensor, nn

from afina.lora import LoraConfig, inject
from afina.training.checkpoint import State, read_latest, write
from afina.training.optimizer import Optimizer
from afina.training.optimizers import OPTIMIZERS
from afina.training.optimizers.lora_pro import adjusted
from afina.training.optimizers.muon import orthogonalised
from afina.training.optimizers.riemannian import preconditioned

RATE = 0.01
Precondition = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def wide(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def gradients(a: Tensor, b: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, B and their gradients where `gradient` is BA's, each as a stack of one."""
    return a[None], b[None], (b.T @ gradient)[None], (gradient @ a.T)[None]


def steps(name: str, a: Tensor, b: Tensor, targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A and B after steps that make BA more like each of the targets."""
    own_a, own_b = nn.Parameter(a.clone()), nn.Parameter(b.clone())
    optimizer = OPTIMIZERS[name].build([{"params": [own_a, own_b], "weight_decay": 0.0}], [(own_a, own_b)])
    optimizer.param_groups[0]["lr"] = RATE
    for target in targets:
        optimizer.zero_grad()
        (own_b @ own_a - target).square().sum().backward()
        optimizer.step()
    return own_a.detach(), own_b.detach()


@pytest.fixture
def adapted() -> nn.Module:
    """Two layers with factors of the same shape, and one that is trained whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    inject(model, LoraConfig(rank=2, target_modules=("0", "1"), modules_to_save=("2",)))
    for layer in model[:2]:
        layer.lora_b.data = torch.randn(6, 2)
    return model


def learn(model: nn.Module, optimizer: Optimizer, count: int) -> None:
    x = torch.linspace(-1, 1, 48).reshape(8, 6)
    for _ in range(count):
        (model(x) - 1).square().sum().backward()
        optimizer.step(RATE, 1e9)


# The closed form of each: what a step along its gradients does to BA, given that of the weight and the projections to
# the spaces of A's rows and B's columns.
CHANGES: dict[str, tuple[Precondition, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "riemannian": (preconditioned, lambda g, rows, columns: columns @ g + g @ rows),
    "lora_pro": (adjusted, lambda g, rows, columns: columns @ g + g @ rows - columns @ g @ rows),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_gradients_change_the_update_alike_however_it_is_divided(name: str) -> None:
    torch.manual_seed(0)
    precondition, closed = CHANGES[name]
    a, b, gradient, change = wide(4, 9), wide(7, 4), wide(7, 9), wide(4, 4)
    for own_a, own_b in ((a, b), (change @ a, b @ torch.linalg.inv(change))):
        da, db = precondition(*gradients(own_a, own_b, gradient))
        expected = closed(gradient, torch.linalg.pinv(a) @ a, b @ torch.linalg.pinv(b))
        assert torch.allclose(own_b @ da[0] + db[0] @ own_a, expected, atol=1e-4 * float(expected.abs().max()))


def test_lora_pro_takes_of_the_nearest_pairs_that_nearest_to_the_gradients() -> None:
    torch.manual_seed(0)
    pairs = [(wide(4, 9), wide(7, 4), wide(7, 9)) for _ in range(3)]
    stacks = [torch.cat(parts) for parts in zip(*(gradients(*pair) for pair in pairs), strict=True)]
    for i, found in enumerate(zip(*adjusted(*stacks), strict=True)):
        a, b, gradient = pairs[i]
        least = torch.linalg.inv(b.T @ b) @ b.T @ gradient
        x = torch.from_numpy(solve_sylvester((b.T @ b).numpy(), (a @ a.T).numpy(), (-least @ a.T).numpy()))
        rest = (torch.eye(7, dtype=torch.float64) - b @ torch.linalg.pinv(b)) @ gradient @ torch.linalg.pinv(a)
        for one, expected in zip(found, (least + x @ a, rest - b @ x), strict=True):
            assert torch.allclose(one, expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", list(CHANGES))
def test_they_are_adamw_on_those_gradients(name: str, adapted: nn.Module) -> None:
    layer = adapted[0]
    optimizer = Optimizer(adapted, 0.0, kind=name)
    twins = [nn.Parameter(p.detach().clone()) for p in (layer.lora_a, layer.lora_b)]
    theirs = torch.optim.AdamW(twins, lr=RATE, weight_decay=0.0)
    for _ in range(3):
        adapted(torch.linspace(-1, 1, 48).reshape(8, 6)).square().sum().backward()
        sides = layer.lora_a, layer.lora_b
        made = CHANGES[name][0](*(s.detach()[None] for s in sides), *(s.grad[None] for s in sides))
        for twin, gradient in zip(twins, made, strict=True):
            twin.grad = gradient[0].clone()
        theirs.step()
        optimizer.step(RATE, 1e9)
        assert torch.allclose(layer.lora_a, twins[0], atol=1e-5)
        assert torch.allclose(layer.lora_b, twins[1], atol=1e-5)


def test_orthogonalised_is_newton_and_schulz() -> None:
    torch.manual_seed(0)
    stack = wide(3, 4, 9)
    stack[2] = 0
    for found, x in zip(orthogonalised(stack), stack, strict=True):
        x = x / max(float(x.norm()), 1e-7)
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
        assert torch.allclose(found, x, atol=1e-9)
    sizes = torch.linalg.svdvals(orthogonalised(stack[:2].float()))
    assert float(sizes.min()) > 0.6
    assert float(sizes.max()) < 1.3


def test_muon_is_that_of_torch() -> None:
    """Theirs computes in bf16, whose rounding errors are the tolerance."""
    torch.manual_seed(0)
    a, b = torch.randn(4, 9), torch.zeros(12, 4)
    targets = [torch.randn(12, 9) for _ in range(4)]
    twins = [nn.Parameter(a.clone()), nn.Parameter(b.clone())]
    theirs = torch.optim.Muon(twins, lr=RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for target in targets:
        theirs.zero_grad()
        (twins[1] @ twins[0] - target).square().sum().backward()
        theirs.step()
    for before, after, twin in zip((a, b), steps("muon", a, b, targets), twins, strict=True):
        assert float((after - twin.detach()).abs().max()) < 0.05 * float((after - before).abs().max())


def rite_by_hand(a: Tensor, b: Tensor, targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The paper's algorithm 1 (with moments that fade), by QR instead of the polar decomposition: the bases differ by a
    rotation, which the steps do not see."""
    factors, state = [a.T.clone(), b.clone()], [{}, {}]
    for t, target in enumerate(targets, 1):
        error = 2 * (factors[1] @ factors[0].T - target)
        slopes = [error.T @ factors[1], error @ factors[0]]
        divided = [torch.linalg.qr(f) for f in factors]
        moved = []
        for i in range(2):
            (u, r), slope, now = divided[1 - i], slopes[i], state[i]
            slope = slope @ torch.linalg.inv(r)
            beta1, beta2 = (beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in (0.9, 0.999))
            variance, lost, mean = torch.zeros(len(r), len(r), dtype=torch.float64), 0.0, torch.zeros_like(slope)
            if now:
                p = u.T @ now["u"]
                variance, mean = p @ now["variance"] @ p.T, now["mean"] @ p.T
                before, after = torch.linalg.eigvalsh(now["variance"]), torch.linalg.eigvalsh(variance)
                lost = beta2 * (now["lost"] + float((before - after).abs().max()))
            variance = beta2 * variance + (1 - beta2) * slope.T @ slope / len(slope)
            values, vectors = torch.linalg.eigh(variance + lost * torch.eye(len(r)))
            root = vectors @ torch.diag(values**-0.5) @ vectors.T
            mean = beta1 * mean + (1 - beta1) * slope @ root
            state[i] = {"u": u, "variance": variance, "lost": lost, "mean": mean}
            moved.append(factors[i] - RATE * mean @ torch.linalg.inv(r).T)
        factors = moved
    return factors[0].T, factors[1]


def test_lora_rite_is_its_algorithm() -> None:
    torch.manual_seed(0)
    a, b, targets = wide(4, 9), wide(7, 4), [wide(7, 9) for _ in range(5)]
    for found, expected in zip(steps("lora_rite", a, b, targets), rite_by_hand(a, b, targets), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_lora_rite_steps_alike_however_the_update_is_divided() -> None:
    torch.manual_seed(0)
    a, b, change, targets = wide(4, 9), wide(7, 4), wide(4, 4), [wide(7, 9) for _ in range(5)]
    ends = [steps("lora_rite", a, b, targets), steps("lora_rite", change @ a, b @ torch.linalg.inv(change), targets)]
    one, other = (end_b @ end_a for end_a, end_b in ends)
    assert float((one - b @ a).abs().max()) > 0.01
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_the_first_steps_from_zero_are_small(name: str) -> None:
    """B is zero at first, and A has no gradient then; later steps are as long as the learning rate makes AdamW's."""
    torch.manual_seed(0)
    a, b, target = torch.randn(4, 30) / 30**0.5, torch.zeros(20, 4), torch.randn(20, 30)
    first_a, first_b = steps(name, a, b, [target])
    assert torch.equal(first_a, a)
    assert 0.1 * RATE < float(first_b.square().mean().sqrt()) < 3 * RATE
    losses = [
        float((end_b @ end_a - target).square().sum())
        for end_a, end_b in (steps(name, a, b, [target] * count) for count in (0, 1, 10, 40))
    ]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_what_is_no_factor_gets_adamw(name: str, adapted: nn.Module) -> None:
    head = adapted[2]
    twins = [nn.Parameter(p.detach().clone()) for p in head.parameters()]
    theirs = torch.optim.AdamW(twins, lr=RATE, weight_decay=0.1)
    optimizer = Optimizer(adapted, 0.1, kind=name)
    for _ in range(3):
        adapted(torch.linspace(-1, 1, 48).reshape(8, 6)).square().sum().backward()
        for twin, own in zip(twins, head.parameters(), strict=True):
            twin.grad = own.grad.clone()
        theirs.step()
        optimizer.step(RATE, 1e9)
    for twin, own in zip(twins, head.parameters(), strict=True):
        assert torch.allclose(own, twin, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_checkpoint_holds_all_it_keeps(name: str, adapted: nn.Module, tmp_path: Path) -> None:
    """What is resumed from it ends with the same bits, and it is no larger than the forecast says."""
    optimizer = Optimizer(adapted, 0.0, kind=name)
    learn(adapted, optimizer, 3)
    write(tmp_path, State(step=3, weights=optimizer.weights(), moments=optimizer.moments()), "")
    found = read_latest(tmp_path)
    assert found
    numbers = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    matrices = [m for m in found[0].moments.values() if m.numel() > 4]  # without counters and matrices of the rank
    kept = sum(m.numel() * m.element_size() for m in matrices) / numbers
    assert OPTIMIZERS[name].moment_bytes / 2 < kept <= OPTIMIZERS[name].moment_bytes
    learn(adapted, optimizer, 3)
    expected = {key: value.clone() for key, value in optimizer.weights().items()}
    resumed = Optimizer(adapted, 0.0, kind=name)
    resumed.set_weights(found[0].weights)
    resumed.set_moments(found[0].moments)
    learn(adapted, resumed, 3)
    for key, value in resumed.weights().items():
        assert torch.equal(value, expected[key])


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_lora_plus_is_the_rate_of_b(name: str, adapted: nn.Module) -> None:
    layer = adapted[0]
    before = {key: value.clone() for key, value in Optimizer(adapted, 0.0).weights().items()}
    moved: list[Any] = []
    for ratio in (1.0, 4.0):
        optimizer = Optimizer(adapted, 0.0, ratio, name)
        optimizer.set_weights(before)
        learn(adapted, optimizer, 1)
        moved.append([layer.lora_a - before["0.lora_a"], layer.lora_b - before["0.lora_b"]])
    assert torch.allclose(moved[1][0], moved[0][0], atol=1e-6)
    assert torch.allclose(moved[1][1], 4 * moved[0][1], atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
@pytest.mark.parametrize("init", ["pissa", "kaiming"])
def test_frozen_ranks_stay_as_they_are(name: str, init: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12))
    weight = model[0].weight.detach().clone()
    inject(model, LoraConfig(rank=2, target_modules=("0",), init=init), 0, None, lambda path: weight)
    layer = model[0]
    frozen = layer.lora_a.detach().clone()[2:]
    optimizer = Optimizer(model, 0.0, kind=name)
    for _ in range(2):
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step(RATE, 1e9)
    assert torch.equal(layer.lora_a[2:], frozen)
