"""Merging an adapter into a copy of its base."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from afina.core.layers import Quantised, replace
from afina.lora.injection import wrappers
from afina.lora.layer import LoraLayer
from afina.lora.modules_to_save import trained_copies
from afina.lora.trainable_tokens import TrainableTokens

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def merge(model: M) -> M:
    """A new model with the merged weight in place of each adapted layer, without adapter; `model` stays as it is.

    Sums are formed in fp32 and rounded once to the weight's dtype. A weight that other layers share (tied embeddings)
    is untied first: only the adapted layer changes, as in the adapted model.
    """
    merged: Any = copy.deepcopy(model)
    shared = _shared_weights(merged)

    def untie(weight: Any) -> None:
        if id(weight) in shared and hasattr(merged, "config"):
            merged.config.tie_word_embeddings = False

    dequantise(merged)
    for path, wrapper in list(wrappers(merged)):
        base = wrapper.base
        if isinstance(wrapper, LoraLayer):
            for name, value in wrapper.merged().items():
                original = getattr(base, name)
                setattr(base, name, nn.Parameter(value.to(original.dtype), requires_grad=False))
                untie(original)
        elif isinstance(wrapper, TrainableTokens):
            weight = base.weight
            rows = wrapper.rows.to(weight.dtype)
            merged_weight = weight.index_copy(0, torch.tensor(wrapper.tokens), rows)
            shared_by_all = nn.Parameter(merged_weight, requires_grad=False)
            for other in merged.modules():  # a tied head has the same rows
                if getattr(other, "_parameters", {}).get("weight") is weight:
                    other.weight = shared_by_all
        replace(merged, path, base)
    for each in trained_copies(merged):
        untie(getattr(each.original, "weight", None))
        each.trained.requires_grad_(False)
    trained_copies(merged).clear()
    return merged  # type: ignore[no-any-return]


def dequantise(model: nn.Module) -> None:
    """Dequantises the layers of `model`, in place: quantised weights are too coarse for an update."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Quantised):
            replace(model, path, module.dequantised())


def _shared_weights(model: nn.Module) -> set[int]:
    seen: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            seen.setdefault(id(parameter), set()).add(id(module))
    return {key for key, owners in seen.items() if len(owners) > 1}
