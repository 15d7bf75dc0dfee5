"""Putting LoRA layers into a model, by the dotted paths of its modules, and finding them there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from afina.core.errors import AdapterError
from afina.core.layers import Quantised, replace
from afina.lora.config import LoraConfig
from afina.lora.inits import INITS, Sources
from afina.lora.layer import LoraLayer, Wrapper
from afina.lora.modules_to_save import TrainedCopy, train_copies, trained_biases, trained_copies
from afina.lora.targets import Unmatched, described, find_targets, refuse, saved_modules
from afina.lora.trainable_tokens import train_tokens
from afina.lora.variants import VARIANTS
from afina.lora.variants.lora import LoraLinear


def inject(
    model: nn.Module,
    config: LoraConfig,
    seed: int = 0,
    calibrate: Callable[[], None] | None = None,
    originals: Callable[[str], Tensor] | None = None,
    unmatched: Unmatched = refuse,
) -> list[str]:
    """Wraps the layers that `config` targets, in place, and freezes everything else; the paths that were wrapped.

    The same `seed` gives the same A and B. `calibrate` runs the model over a few batches, forward for init 'eva' and
    backward too for 'lora_ga'; `originals` gives the weight (out, in) that the quantised layer at a path was made from,
    for 'loftq'. Raises `AdapterError` where a target matches nothing (naming near names; see `find_targets` for what is
    left to `unmatched`) or matches a layer that cannot be adapted, where something that the init needs is not given, or
    where the model has an adapter already.
    """
    if next(adapter_modules(model), None):
        raise AdapterError("this model already has an adapter", "load a fresh base")
    variant, init = VARIANTS[config.variant], INITS[config.init]
    generator = torch.Generator().manual_seed(seed)
    sources = Sources(model, config, generator, calibrate, originals)
    init.check(sources)
    saved = saved_modules(model, config, unmatched)
    paths = find_targets(model, config, unmatched)
    _check_trainable(model, saved)
    _check_called(model, paths)
    targets = described(model, paths, config)
    variant.check(targets, config)
    model.requires_grad_(False)
    layers = {target.path: layer for target, layer in zip(targets, variant.build(targets, generator), strict=True)}
    for path, layer in layers.items():
        layer.train(layer.base.training)
        replace(model, path, layer)
    init.initialise({path: layer for path, layer in layers.items() if isinstance(layer, LoraLinear)}, sources)
    if config.trainable_tokens:
        train_tokens(model, config.trainable_tokens, saved)
    train_copies(model, [*trained_biases(model, config, paths), *saved])
    return paths


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """(path, layer) of every LoRA layer in `model`."""
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


def wrappers(model: nn.Module) -> Iterator[tuple[str, Wrapper]]:
    """(path, module) of every module in `model` that wraps one of the base's."""
    for path, module in model.named_modules():
        if isinstance(module, Wrapper):
            yield path, module


def adapter_modules(model: nn.Module) -> Iterator[Wrapper | TrainedCopy]:
    """Everything in `model` that belongs to an adapter."""
    for _, module in wrappers(model):
        yield module
    yield from trained_copies(model)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is its base."""
    on = [each for each in adapter_modules(model) if each.enabled]
    for each in on:
        each.enabled = False
    try:
        yield
    finally:
        for each in on:
            each.enabled = True


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers are trained, without the frozen ranks of inits from the base (see `LoraLinear.set_factors`)."""
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return total - sum(layer.frozen_numbers() for _, layer in lora_layers(model))


def undecayed_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trained parameters that weight decay leaves alone: those of an adapter's layers, unless a layer says so."""
    layers = [layer for _, layer in lora_layers(model) if not layer.decays]
    base = {id(p) for layer in layers for p in layer.base.parameters()}
    return [p for layer in layers for p in layer.parameters() if p.requires_grad and id(p) not in base]


def fast_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that LoRA+ gives a higher learning rate (every B)."""
    return [parameter for _, layer in lora_layers(model) for parameter in layer.fast_parameters()]


def factor_pairs(model: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """A (rank, in) and B (out, rank) of every update whose factors are both trained in full."""
    return [pair for _, layer in lora_layers(model) for pair in layer.factors() if all(p.requires_grad for p in pair)]


def _check_called(model: nn.Module, targets: list[str]) -> None:
    """torch's own encoder layer reads its layers' weights in a fast path, past any adapter."""
    for path in targets:
        parent = path.rpartition(".")[0]
        if isinstance(model.get_submodule(parent), nn.TransformerEncoderLayer):
            raise AdapterError(
                f"{path}: torch's TransformerEncoderLayer reads its weights past an adapter",
                "leave it out (exclude_modules), or use a layer that calls its submodules",
            )


def _check_trainable(model: nn.Module, saved: list[str]) -> None:
    for path in saved:
        if any(isinstance(module, Quantised) for module in model.get_submodule(path).modules()):
            raise AdapterError(
                f"{path or 'the model'} is quantised, and quantised weights cannot be trained in full",
                "load the base unquantised, or adapt these layers instead (method lora, without modules_to_save)",
            )
