"""Putting LoRA layers into a model, by the dotted paths of its modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from afina.core.errors import AdapterError
from afina.core.layers import Quantised, is_conv1d, replace
from afina.lora.config import FROM_BASE, LoraConfig
from afina.lora.extras import Swap, TokenLogits, TokenRows, swap, swaps
from afina.lora.inits import eva, lora_ga
from afina.lora.inits import factors as starts
from afina.lora.layer import LoraEmbedding, LoraLayer, LoraLinear, Size, Wrapper
from afina.lora.targets import find_targets, pattern_value, saved_modules
from afina.lora.variants.dora import DoraLinear
from afina.lora.variants.experts import LoraExperts, expert_tensors
from afina.lora.variants.vera import Projections, VeraLinear


def inject(
    model: nn.Module,
    config: LoraConfig,
    seed: int = 0,
    calibrate: Callable[[], None] | None = None,
    originals: Callable[[str], Tensor] | None = None,
) -> list[str]:
    """Wraps the layers that `config` targets, in place, and freezes everything else; the paths that were wrapped.

    The same `seed` gives the same start. `calibrate` runs the model over a few batches, forward for init 'eva' and backward too
    for 'lora_ga'; `originals` gives the weight (out, in) that the quantised layer at a path was made from, for 'loftq'.
    Raises `AdapterError` where a target matches nothing (naming near names), matches a layer that cannot be adapted, where
    something that the start needs is not given, or where the model has an adapter already.
    """
    if next(parts(model), None):
        raise AdapterError("this model already has an adapter", "load a fresh base")
    targets = find_targets(model, config)
    whole = saved_modules(model, config)
    _check_trainable(model, whole)
    _check_called(model, targets)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    bases, experts = _by_module(model, targets)
    _check_experts(config, experts)
    shared = _projections(bases, config, generator) if config.variant == "vera" else None
    layers = {path: _wrap(path, base, config, generator, shared) for path, base in bases.items()}
    for path, names in experts.items():
        sizes = {name: _size(f"{path}.{name}", config) for name in names}
        layers[path] = LoraExperts(model.get_submodule(path), sizes, generator)
    for path, layer in layers.items():
        layer.train(layer.base.training)
        replace(model, path, layer)
    _start(model, layers, config, generator, calibrate, originals)
    for layer in layers.values():
        if config.variant == "lora_fa" and isinstance(layer, LoraLinear):  # Zhang et al. 2023, arXiv 2308.03303
            layer.lora_a.requires_grad_(False)
    if config.trainable_tokens:
        _free_tokens(model, config.trainable_tokens, whole)
    swap(model, [*_biases(model, config, targets), *whole])
    return targets


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """(path, layer) of every LoRA layer in `model`."""
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


def wrappers(model: nn.Module) -> Iterator[tuple[str, Wrapper]]:
    """(path, module) of every module in `model` that stands in the place of another."""
    for path, module in model.named_modules():
        if isinstance(module, Wrapper):
            yield path, module


def parts(model: nn.Module) -> Iterator[Wrapper | Swap]:
    """Everything in `model` that is an adapter's."""
    for _, module in wrappers(model):
        yield module
    yield from swaps(model)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is its base."""
    on = [part for part in parts(model) if part.enabled]
    for part in on:
        part.enabled = False
    try:
        yield
    finally:
        for part in on:
            part.enabled = True


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers are trained; the frozen ranks of starts from the base (see `LoraLinear.start`) do not count."""
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = 0
    for _, layer in lora_layers(model):
        if isinstance(layer, LoraLinear):
            widths = (
                layer.lora_a.shape[1] * layer.lora_a.requires_grad + layer.lora_b.shape[0] * layer.lora_b.requires_grad
            )
            frozen += layer.frozen_ranks * widths
    return total - frozen


def _check_called(model: nn.Module, targets: list[str]) -> None:
    """torch's own encoder layer reads its layers' weights in a fast path, past any adapter."""
    for path in targets:
        parent = path.rpartition(".")[0]
        if isinstance(model.get_submodule(parent), nn.TransformerEncoderLayer):
            raise AdapterError(
                f"{path}: torch's TransformerEncoderLayer reads its weights past an adapter",
                "leave it out (exclude_modules), or use a layer whose parts are called",
            )


def _by_module(model: nn.Module, targets: list[str]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The layers among `targets` by path; and the names of the experts' tensors by the path of their module."""
    tensors = set(expert_tensors(model))
    experts: dict[str, list[str]] = {}
    for path in targets:
        if path in tensors:
            module, _, name = path.rpartition(".")
            experts.setdefault(module, []).append(name)
    return {path: model.get_submodule(path) for path in targets if path not in tensors}, experts


def _check_experts(config: LoraConfig, experts: dict[str, list[str]]) -> None:
    if not experts:
        return
    path = next(iter(experts))
    hint = "leave it out, or exclude the experts (--lora.exclude_modules)"
    if config.variant != "lora":
        raise AdapterError(f"variant {config.variant!r} is for layers; {path} holds tensors of experts", hint)
    if config.init != "kaiming":
        raise AdapterError(f"init {config.init!r} is for layers; {path} holds tensors of experts", hint)
    if config.dropout:
        raise AdapterError(f"dropout is for layers; the inputs of the experts in {path} cannot be told apart", hint)


def _size(path: str, config: LoraConfig) -> Size:
    rank = int(pattern_value(config.rank_pattern, path, config.rank))
    alpha = pattern_value(config.alpha_pattern, path, config.alpha)
    return Size(rank, config.scaling(rank, alpha), config.dropout)


def _wrap(
    path: str, base: Any, config: LoraConfig, generator: torch.Generator, shared: Projections | None
) -> LoraLayer:
    size = _size(path, config)
    shape = base.weight.shape
    most = min(shape) if config.init in ("pissa", "olora", "loftq", "eva", "lora_ga") else max(shape)
    if config.init == "lora_ga":  # singular directions for A, and as many others for B
        most //= 2
    if size.rank > most and config.variant != "vera":
        raise AdapterError(f"rank {size.rank} is more than the layer {path} is wide ({most})", "lower --lora.rank")
    if isinstance(base, nn.Embedding):
        if config.variant in ("dora", "vera"):
            raise AdapterError(
                f"{config.variant} is for linear layers; {path} is an embedding", "use variant lora for it"
            )
        return LoraEmbedding(base, size, generator)
    if shared is not None:
        return VeraLinear(base, size, shared)
    return (DoraLinear if config.variant == "dora" else LoraLinear)(base, size, generator)


def _check_trainable(model: nn.Module, whole: list[str]) -> None:
    for path in whole:
        if any(isinstance(module, Quantised) for module in model.get_submodule(path).modules()):
            raise AdapterError(
                f"{path or 'the model'} is quantised, and weights of few bits cannot be trained whole (--method, modules_to_save)",
                "leave --quantize out, or adapt these layers instead",
            )


def _projections(bases: dict[str, Any], config: LoraConfig, generator: torch.Generator) -> Projections:
    if config.rank_pattern or config.alpha_pattern:
        raise AdapterError("vera's layers share A and B, so that all have one rank", "leave the patterns out")
    shapes = [(base.weight.shape[::-1] if is_conv1d(base) else base.weight.shape) for base in bases.values()]
    return Projections(config.rank, max(i for _, i in shapes), max(o for o, _ in shapes), generator)


def _start(
    model: nn.Module, layers: dict[str, LoraLayer], config: LoraConfig, generator: torch.Generator,
    calibrate: Callable[[], None] | None, originals: Callable[[str], Tensor] | None,
) -> None:  # fmt: skip
    linear = {path: layer for path, layer in layers.items() if isinstance(layer, LoraLinear)}
    if config.init in ("eva", "lora_ga"):
        if calibrate is None:
            raise AdapterError(
                f"init {config.init!r} looks at data", "give `calibrate`, which runs the model over a few batches"
            )
        if config.init == "eva":
            eva.start(model, linear, config.eva_rho, calibrate)
        else:
            lora_ga.start(list(linear.values()), calibrate)
    elif config.init == "loftq":
        if originals is None:
            raise AdapterError(
                "init 'loftq' makes up for what quantisation lost",
                "give a base of few bits: --quantize nf4 or int8 (in the library: `inject(…, originals=…)`)",
            )
        lost = False
        for path, layer in linear.items():
            w = layer.frozen_weight().float()
            rest = originals(path).to(w) - w
            if rest.any():  # a layer that lost nothing keeps the usual start: from zeros it could not learn
                layer.start(*starts.residual(rest, layer.rank, layer.scaling))
                lost = True
        if not lost:
            raise AdapterError(
                "init 'loftq' makes up for what quantisation lost, and no layer lost anything", "leave it out"
            )
    elif config.init != "kaiming":
        for layer in linear.values():
            w = layer.frozen_weight().float()
            factors = starts.STARTS[config.init](w, layer.rank, layer.scaling, generator)
            layer.start(*factors, from_base=config.init in FROM_BASE)


def _biases(model: nn.Module, config: LoraConfig, targets: list[str]) -> list[str]:
    own = [name for name, _ in model.named_parameters() if name.rsplit(".", 1)[-1] == "bias"]
    if config.bias == "lora_only":
        wrapped = {f"{path}.base.bias" for path in targets}
        own = [name for name in own if name in wrapped]
    return own if config.bias != "none" else []


def _free_tokens(model: nn.Module, tokens: tuple[int, ...], whole: list[str]) -> None:
    known: Any = model
    if not hasattr(model, "get_input_embeddings"):
        raise AdapterError(
            "trainable_tokens need a model that names its embedding (get_input_embeddings)", "leave them out"
        )
    embedding = known.get_input_embeddings()
    words = len(embedding.weight)
    path = next(path for path, module in model.named_modules() if module is embedding)
    if isinstance(embedding, LoraLayer) or any(path == each or path.startswith(f"{each}.") for each in whole):
        raise AdapterError(
            "trainable_tokens and an embedding that is trained otherwise exclude each other", "leave one of them out"
        )
    if max(tokens) >= words or min(tokens) < 0 or len(set(tokens)) < len(tokens):
        raise AdapterError(
            f"trainable_tokens must be different numbers from 0 to {words - 1}", "look the tokens up in the tokenizer"
        )
    head = known.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight, rows = embedding.weight, TokenRows(embedding, tokens)
    for path, module in list(model.named_modules()):
        if module is embedding:
            replace(model, path, rows)
        elif isinstance(module, nn.Embedding) and module.weight is weight:  # an encoder's and a decoder's may be one
            replace(model, path, TokenRows(module, tokens, rows.rows))
        elif module is head and head.weight is weight:
            replace(model, path, TokenLogits(head, rows))
