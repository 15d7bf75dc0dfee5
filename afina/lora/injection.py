"""Putting LoRA layers into a model, by the dotted paths of its modules."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from afina.core.errors import AdapterError, near
from afina.lora.config import ALL_LINEAR, LoraConfig
from afina.lora.layer import LoraEmbedding, LoraLayer, LoraLinear, is_conv1d


def inject(model: nn.Module, config: LoraConfig, seed: int = 0) -> list[str]:
    """Wraps the layers that `config` targets, in place, and freezes everything else; the paths that were wrapped.

    The same `seed` gives the same start. Raises `AdapterError` where a target matches nothing (naming near names), matches a
    layer that cannot be adapted, or where the model has an adapter already.
    """
    if next(lora_layers(model), None):
        raise AdapterError("this model already has an adapter", "load a fresh base")
    targets = find_targets(model, config)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for path in targets:
        base: Any = model.get_submodule(path)
        rank = _pattern_value(config.rank_pattern, path, config.rank)
        alpha = _pattern_value(config.alpha_pattern, path, config.alpha)
        if rank > max(base.weight.shape):
            raise AdapterError(
                f"rank {rank:g} is more than the layer {path} is wide ({max(base.weight.shape)})", "lower --lora.rank"
            )
        kind = LoraEmbedding if isinstance(base, nn.Embedding) else LoraLinear
        layer = kind(base, int(rank), alpha, config.dropout, generator)
        layer.train(base.training)
        _replace(model, path, layer)
    return targets


def find_targets(model: nn.Module, config: LoraConfig) -> list[str]:
    """The paths of the layers that `config` targets, in the model's order. Raises `AdapterError` as `inject` does."""
    adaptable = [path for path, module in model.named_modules() if _adaptable(module)]
    if config.target_modules == ALL_LINEAR:
        head = _output_head(model)
        wanted = [
            path
            for path in adaptable
            if not isinstance(module := model.get_submodule(path), nn.Embedding) and module is not head
        ]
    else:
        wanted = [path for path in adaptable if _matches(config.target_modules, path)]
        _complain_of_unmatched(model, config, adaptable)
    targets = [path for path in wanted if not _matches(config.exclude_modules, path)]
    patterns = [*config.rank_pattern, *config.alpha_pattern]
    unread = [key for key in patterns if not any(_ends_with(key, path) for path in targets)]
    if unread:
        raise AdapterError(f"pattern {unread[0]!r} of rank_pattern or alpha_pattern matches no adapted layer")
    if not targets:
        raise AdapterError(
            f"target {config.target_modules!r} without {config.exclude_modules!r} leaves no layer to adapt",
            "change --lora.target_modules or --lora.exclude_modules",
        )
    return targets


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """(path, layer) of every LoRA layer in `model`."""
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is its base."""
    layers = [layer for _, layer in lora_layers(model) if layer.enabled]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) or is_conv1d(module)


def _output_head(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if getter else None


def _matches(names: str | tuple[str, ...], path: str) -> bool:
    """PEFT's rule: a name is a whole path or the end of one; a pattern (re:…) matches the whole path."""
    if isinstance(names, str):
        return bool(re.fullmatch(names.removeprefix("re:"), path))
    return any(path == name or path.endswith(f".{name}") for name in names)


def _complain_of_unmatched(model: nn.Module, config: LoraConfig, adaptable: list[str]) -> None:
    names = config.target_modules
    single = (names,) if isinstance(names, str) else tuple((name,) for name in names)
    unmatched = [name for name in single if not any(_matches(name, path) for path in adaptable)]
    if not unmatched:
        return
    ends = sorted({path.rsplit(".", 1)[-1] for path in adaptable})
    problems = []
    for name in unmatched:
        text = name if isinstance(name, str) else name[0]
        other = [type(m).__name__ for path, m in model.named_modules() if path and _matches(name, path)]
        why = f"matches {other[0]} layers, which cannot be adapted" if other else "matches no layer"
        problems.append(f"target {text!r} {why}.{near(text, ends)}")
    raise AdapterError(problems, f"layers that can be adapted: {', '.join(ends)}; or all-linear")


def _pattern_value(patterns: dict[str, int] | dict[str, float], path: str, default: float) -> float:
    """The value of the first pattern that matches the end of `path` (PEFT's rule for rank_pattern and alpha_pattern)."""
    return next((value for key, value in patterns.items() if _ends_with(key, path)), default)


def _ends_with(pattern: str, path: str) -> bool:
    return bool(re.match(rf"(.*\.)?({pattern})$", path))


def _replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
