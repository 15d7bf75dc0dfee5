"""Merging an adapter into its base, or into a copy of it."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from afina.core.layers import Quantised, replace
from afina.lora.injection import wrappers
from afina.lora.layer import LoraLayer
from afina.lora.modules_to_save import trained_copies
from afina.lora.trainable_tokens import TrainableTokens

M = TypeVar("M", bound=nn.Module)


def merge(model: M) -> M:
    """A new model with the merged weights in place of the adapted layers, without adapter; `model` stays as it is.

    See `merge_in_place`.
    """
    merged = copy.deepcopy(model)
    merge_in_place(merged)
    return merged


@torch.no_grad()
def merge_in_place(model: nn.Module) -> None:
    """Merges the adapter of `model` into its weights, quantised ones dequantised, and leaves no adapter.

    Sums are formed in fp32 and rounded once to the weight's dtype. Where layers share a weight (tied embeddings) and
    only one is adapted, each gets its own, as in the adapted model; the configuration then no longer ties them.
    """
    dequantise(model)
    rows: dict[tuple[int, int], nn.Parameter] = {}  # what layers share before, with the same trained rows, they share
    for path, wrapper in reversed(list(wrappers(model))):  # from the inside: an adapted head may hold trained rows
        base = wrapper.base
        if isinstance(wrapper, LoraLayer):
            for name, value in wrapper.merged().items():
                setattr(base, name, _frozen(value.to(getattr(base, name).dtype)))
        elif isinstance(wrapper, TrainableTokens):
            key = id(base.weight), id(wrapper.rows)
            if key not in rows:
                index = torch.tensor(wrapper.tokens, device=base.weight.device)
                rows[key] = _frozen(base.weight.index_copy(0, index, wrapper.rows.to(base.weight.dtype)))
            base.weight = rows[key]
        replace(model, path, base)
    for each in trained_copies(model):
        each.trained.requires_grad_(False)
    trained_copies(model).clear()
    _untie(model)


def dequantise(model: nn.Module) -> None:
    """Dequantises the layers of `model`, in place: quantised weights are too coarse for an update."""
    weights: dict[int, nn.Parameter] = {}
    for path, module in list(model.named_modules()):
        if isinstance(module, Quantised):
            plain: Any = module.dequantised()
            plain.weight = weights.setdefault(id(module.blocks), plain.weight)  # tied layers stay tied
            replace(model, path, plain)


def _untie(model: Any) -> None:
    """Where weights that the configuration ties are no longer one, gives each its own memory, so that files hold them
    all, and makes the configuration say so.

    Not that of an encoder-decoder: T5's kin scale their outputs by it. transformers ties, on reading, only what is
    equal or absent.
    """
    declared = getattr(model, "get_expanded_tied_weights_keys", None)  # of transformers' models, and of our decoder
    pairs: dict[str, str] = declared(all_submodels=True) if declared else {}
    owners = {}
    for path in dict.fromkeys([*pairs.values(), *pairs]):
        parent, _, name = path.rpartition(".")
        owners[path] = (model.get_submodule(parent), name)
    weights = {path: getattr(*owner) for path, owner in owners.items()}
    if all(weights[one] is weights[other] for one, other in pairs.items()):
        return
    seen: set[int] = set()
    for path, (owner, name) in owners.items():
        if id(weights[path]) in seen:
            setattr(owner, name, _frozen(weights[path].detach().clone()))
        seen.add(id(weights[path]))
    if not getattr(model.config, "is_encoder_decoder", False):
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)
