"""Weighted sums of adapters, and adapters of lower rank, on files: no base is needed.

A layer's update is ΔW = s·BA. New adapters have scaling 1 (alpha = rank), as PEFT's `add_weighted_adapter` makes them.

Shapes: R rank, I inputs, O outputs, S ranks of all adapters in a sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.core.errors import AdapterError, VerificationFailed, counted
from afina.core.files import read_json
from afina.lora.config import LoraConfig
from afina.lora.peft_config import CONFIG, COPY_AGAIN, read_config
from afina.lora.peft_files import PREFIX, read_weights, write_adapter
from afina.lora.targets import matching, pattern_value
from afina.lora.variants import VARIANTS

Kind = Literal[
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd"
]
_ENDS = {
    "linear": (".lora_A.weight", ".lora_B.weight"),
    "embedding": (".lora_embedding_A", ".lora_embedding_B"),
}


class Factors(NamedTuple):
    """A (rank, in), B (out, rank) and the scaling s of one layer's update."""

    a: Tensor
    b: Tensor
    scaling: float

    def delta(self) -> Tensor:
        return self.scaling * (self.b @ self.a)


@dataclass(frozen=True)
class Pruning:
    """Keeps the share `density` of each tensor: the largest values (TIES), or random ones, scaled up (DARE)."""

    density: float
    seed: int


def read_factors(folder: Path) -> dict[str, Factors]:
    """The factors of the adapter in `folder`, by the names of A without PEFT's prefix.

    Raises `AdapterError` where the adapter is more than A and B of layers.
    """
    config = read_config(folder)
    if read_json(folder / CONFIG).get("target_parameters"):
        raise AdapterError(f"{folder} adapts experts, whose adapters cannot be summed or cut to a lower rank")
    state = read_weights(folder)
    factors: dict[str, Factors] = {}
    ends = [(name, a_end, b_end) for name in sorted(state) for a_end, b_end in _ENDS.values() if name.endswith(a_end)]
    with matching():
        for name, a_end, b_end in ends:
            path = name.removeprefix(PREFIX).removesuffix(a_end)
            rank = pattern_value(config.rank_pattern, path, config.rank)
            alpha = pattern_value(config.alpha_pattern, path, config.alpha)
            a, b = state[name].float(), state.get(name.removesuffix(a_end) + b_end, torch.empty(0)).float()
            if not (a.dim() == b.dim() == 2 and b.shape[1] == a.shape[0]):
                raise AdapterError(f"{folder}: the factors A and B of {path} do not fit each other", COPY_AGAIN)
            factors[path + a_end] = Factors(a, b, config.scaling(int(rank), alpha))
    if len(state) != 2 * len(factors) or not VARIANTS[config.variant].summable:
        raise AdapterError(
            f"adapter {folder} is more than A and B, and cannot be summed", "merge it into its base instead"
        )
    return factors


def check_one_shape(path: str, updates: Sequence[Factors]) -> None:
    """Raises `AdapterError` where the updates of one layer are not of one shape."""
    shapes = {(factors.b.shape[0], factors.a.shape[1]) for factors in updates}
    if len(shapes) > 1:
        raise AdapterError(
            f"the adapters are for different bases: {path} has shapes {sorted(shapes)}", "give adapters of one base"
        )


def combine(
    folders: Sequence[Path | str], weights: Sequence[float], out: Path | str, *, kind: Kind = "svd",
    rank: int | None = None, density: float = 0.5, seed: int = 0,
) -> LoraConfig:  # fmt: skip
    """Writes the weighted sum of the adapters in `folders` to `out`; its configuration.

    linear: A = Σ √(w s) A, B = Σ √(w s) B, all of one rank (close to the sum of updates where adapters are similar).
    cat: exact, with the sum of the ranks. svd: the sum of updates cut to `rank` (by default the largest of theirs).
    ties (Yadav et al. 2023, https://arxiv.org/abs/2306.01708): the largest values of each, averaged over those with the
    majority's sign. dare (Yu et al. 2023, https://arxiv.org/abs/2311.03099): random values of each, scaled up. Both
    on A and B separately, or with _svd on the updates. Raises `AdapterError` where adapters do not fit together.
    """
    if kind not in get_args(Kind):
        raise AdapterError(f"adapters cannot be combined by {kind!r}", f"choose from {', '.join(get_args(Kind))}")
    if len(folders) != len(weights) or len(folders) < 2:
        raise AdapterError(
            f"{counted(len(folders), 'adapter')} and {counted(len(weights), 'weight')} were given",
            "give two or more, and a weight each",
        )
    if not 0 < density <= 1:
        raise AdapterError(f"density is {density:g}", "give a share above 0 and up to 1")
    adapters = [read_factors(Path(folder)) for folder in folders]
    ranks = [max(len(factors.a) for factors in adapter.values()) for adapter in adapters]
    if kind in _MERGES and len({f.a.shape[0] for adapter in adapters for f in adapter.values()}) > 1:
        raise AdapterError(
            f"{kind} needs adapters of one rank, these have {', '.join(map(str, ranks))}",
            "use cat, svd or another kind with _svd",
        )
    new_rank = sum(ranks) if kind == "cat" else rank or max(ranks)
    pruning = Pruning(density, seed)
    paths = list(dict.fromkeys(path for adapter in adapters for path in adapter))
    result: dict[str, Factors] = {}
    for path in paths:
        present = [(adapter[path], w) for adapter, w in zip(adapters, weights, strict=True) if path in adapter]
        check_one_shape(path, [factors for factors, _ in present])
        result[path] = _padded(_combined(present, kind, new_rank, pruning), new_rank)
    return _write(result, new_rank, Path(folders[0]), Path(out))


def rerank(folder: Path | str, rank: int, out: Path | str) -> float:
    """Writes the adapter cut to `rank` by its largest singular values; the relative error, ‖ΔW − ΔW′‖ / ‖ΔW‖, over all
    layers. Raises `AdapterError` where the adapter has a lower rank already."""
    folder = Path(folder)
    lost = total = 0.0
    result = {}
    known = read_factors(folder)
    highest = max(len(factors.a) for factors in known.values())
    if rank > highest:
        raise AdapterError(f"the adapter in {folder} has rank {highest}, {rank} is more", "give a lower rank")
    for path, factors in known.items():
        components = _decomposed([(factors, 1.0)])
        lost += float(components[1][rank:].square().sum())
        total += float(components[1].square().sum())
        result[path] = _padded(_cut(components, rank), rank)
    _write(result, rank, folder, Path(out))
    return float((lost / total) ** 0.5) if total else 0.0


def _combined(present: list[tuple[Factors, float]], kind: Kind, rank: int, pruning: Pruning) -> tuple[Tensor, Tensor]:
    if kind == "cat":
        return torch.cat([f.a * (w * f.scaling) for f, w in present]), torch.cat([f.b for f, _ in present], 1)
    if kind == "svd":
        return _cut(_decomposed(present), rank)
    merge = _MERGES[kind.removesuffix("_svd")]
    if kind.endswith("_svd"):
        delta = merge([f.delta() for f, _ in present], torch.tensor([w for _, w in present]), pruning)
        return _cut(torch.linalg.svd(delta, full_matrices=False), rank)
    shares = torch.tensor([w * f.scaling for f, w in present])
    roots = shares.abs().sqrt()  # a negative weight's sign goes to one side
    return merge([f.a for f, _ in present], roots * shares.sign(), pruning), merge(
        [f.b for f, _ in present], roots, pruning
    )


def _decomposed(present: list[tuple[Factors, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """The singular components of Σ w·ΔW, from the factors: QR of each side and a small SVD between, so that no (out,
    in) matrix is formed."""
    q_OS, left = torch.linalg.qr(torch.cat([f.b * (w * f.scaling) for f, w in present], 1))
    q_IS, right = torch.linalg.qr(torch.cat([f.a for f, _ in present]).T)
    u, sizes, vt = torch.linalg.svd(left @ right.T)
    return q_OS @ u[:, : len(sizes)], sizes, vt[: len(sizes)] @ q_IS.T


def _cut(components: tuple[Tensor, Tensor, Tensor], rank: int) -> tuple[Tensor, Tensor]:
    """A and B of the `rank` largest of the singular components (U, S, Vᵀ)."""
    u, sizes, vt = components
    return vt[:rank], u[:, :rank] * sizes[:rank]


def _linear(tensors: list[Tensor], weights: Tensor, pruning: Pruning) -> Tensor:
    return torch.stack([w * t for t, w in zip(tensors, weights, strict=True)]).sum(0)


def _ties(tensors: list[Tensor], weights: Tensor, pruning: Pruning) -> Tensor:
    return _agreed([_largest(t, pruning.density) for t in tensors], weights)


def _dare_linear(tensors: list[Tensor], weights: Tensor, pruning: Pruning) -> Tensor:
    return _linear(_dropped(tensors, pruning), weights, pruning)


def _dare_ties(tensors: list[Tensor], weights: Tensor, pruning: Pruning) -> Tensor:
    return _agreed(_dropped(tensors, pruning), weights)


_MERGES: dict[str, Callable[[list[Tensor], Tensor, Pruning], Tensor]] = {
    "linear": _linear,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
}


def _largest(x: Tensor, density: float) -> Tensor:
    if density == 1:
        return x
    kept = torch.zeros_like(x).flatten()
    kept[x.abs().flatten().topk(int(density * x.numel())).indices] = 1
    return x * kept.view_as(x)


def _dropped(tensors: list[Tensor], pruning: Pruning) -> list[Tensor]:
    if pruning.density == 1:
        return tensors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pruning.seed)
        return [t * torch.bernoulli(torch.full_like(t, pruning.density)) / pruning.density for t in tensors]


def _agreed(tensors: list[Tensor], weights: Tensor) -> Tensor:
    """The elementwise weighted mean of the values that have the sign of their sum."""
    stacked = torch.stack(tensors)
    agree = stacked.sign() == torch.where(stacked.sum(0) >= 0, 1, -1)
    weighted = stacked * weights.view(-1, *[1] * (stacked.dim() - 1))
    return (weighted * agree).sum(0) / agree.sum(0).clamp(min=1)


def _padded(factors: tuple[Tensor, Tensor], rank: int) -> Factors:
    """The factors with zeros up to `rank`, so that all layers have the same."""
    a_RI, b_OR = factors
    missing = rank - len(a_RI)
    return Factors(F.pad(a_RI, (0, 0, 0, missing)), F.pad(b_OR, (0, missing)), 1.0)


def _write(result: dict[str, Factors], rank: int, like: Path, out: Path) -> LoraConfig:
    """Writes an adapter of plain LoRA to `out`, for the base of the one in `like`."""
    state: dict[str, Tensor] = {}
    paths = []
    for key, factors in result.items():
        a_end, b_end = next(ends for ends in _ENDS.values() if key.endswith(ends[0]))
        paths.append(key.removesuffix(a_end))
        state[f"{PREFIX}{key}"] = factors.a
        state[f"{PREFIX}{paths[-1]}{b_end}"] = factors.b
    config = LoraConfig(rank=rank, alpha=float(rank), target_modules=tuple(paths))
    write_adapter(state, config, like, out)
    _verify(result, out)
    return config


def _verify(result: dict[str, Factors], folder: Path) -> None:
    """Raises `VerificationFailed` where the files in `folder`, read back, do not give the updates in `result`."""
    read = read_factors(folder)
    for path, factors in result.items():
        found = read.get(path)
        if found is None or found.scaling != factors.scaling or not all(map(torch.equal, found[:2], factors[:2])):
            raise VerificationFailed(
                f"the adapter in {folder}, read back, has another update of {path} than was written",
                "do not use it; please report it, with the adapter_config.json of those it was made of",
            )
