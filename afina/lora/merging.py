"""Folding an adapter into a copy of its base."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from afina.lora.injection import lora_layers

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def merge(model: M) -> M:
    """A new model with W + s·BA in place of each adapted layer, without adapter; `model` stays as it is.

    The sum is formed in fp32 and rounded once to the weight's dtype. A weight that other layers share (tied embeddings) is
    untied first: only the adapted layer changes, as in the adapted model.
    """
    merged: Any = copy.deepcopy(model)
    shared = _shared_weights(merged)
    for path, layer in list(lora_layers(merged)):
        base: Any = layer.base
        weight = base.weight
        base.weight = nn.Parameter((weight.float() + layer.delta()).to(weight.dtype), requires_grad=False)
        if id(weight) in shared and hasattr(merged, "config"):
            merged.config.tie_word_embeddings = False
        parent, _, name = path.rpartition(".")
        setattr(merged.get_submodule(parent), name, base)
    return merged  # type: ignore[no-any-return]


def _shared_weights(model: nn.Module) -> set[int]:
    seen: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            seen.setdefault(id(parameter), set()).add(id(module))
    return {key for key, owners in seen.items() if len(owners) > 1}
