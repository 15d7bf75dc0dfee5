"""How many numbers an adapter trains, without making it: for models of which only the shapes are known."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from afina.core.layers import is_conv1d
from afina.lora.config import LoraConfig
from afina.lora.targets import find_targets, layer_number, pattern_value, saved_modules
from afina.lora.variants.experts import expert_tensors


@dataclass(frozen=True)
class Trained:
    """Numbers that get gradients: in `adapter` beside the weights (with the frozen ranks of starts from the base), and in `copies`
    of what is trained whole. `fixed` numbers of the adapter get none (VeRA's shared A and B, LoRA-FA's A). `depth` is the share of the
    repeated layers that the backward pass goes through.
    """

    adapter: int
    copies: int
    fixed: int
    depth: float

    @property
    def numbers(self) -> int:
        return self.adapter + self.copies


def trained(model: nn.Module, config: LoraConfig) -> Trained:
    """What `inject` would make of `model`, which may be on the meta device. Raises `AdapterError` as `find_targets` does."""
    whole = saved_modules(model, config)
    targets = find_targets(model, config)
    tensors = set(expert_tensors(model))
    adapter = fixed = widest = tallest = 0
    for path in targets:
        rank = int(pattern_value(config.rank_pattern, path, config.rank)) * (1 + (config.saved().rank != config.rank))
        if path in tensors:
            module, _, name = path.rpartition(".")
            experts, outputs, inputs = getattr(model.get_submodule(module), name).shape
            adapter += experts * rank * (outputs + inputs)
            continue
        inputs, outputs = _width(model.get_submodule(path))
        widest, tallest = max(widest, inputs), max(tallest, outputs)
        if config.variant == "vera":
            adapter += rank + outputs
        elif config.variant == "lora_fa":
            adapter += rank * outputs
            fixed += rank * inputs
        else:
            adapter += rank * (inputs + outputs) + (outputs if config.variant == "dora" else 0)
    if config.variant == "vera":
        fixed += config.rank * (widest + tallest)
    copied = {id(p): p.numel() for path in whole for p in model.get_submodule(path).parameters()}
    ends = tuple(f"{path}.bias" for path in targets)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and (config.bias == "all" or (config.bias == "lora_only" and name in ends)):
            copied[id(parameter)] = parameter.numel()
    known: Any = model
    rows = len(config.trainable_tokens) * known.get_input_embeddings().weight.shape[1] if config.trainable_tokens else 0
    everywhere = config.bias == "all" or bool(rows)
    depth = 1.0 if everywhere else _depth(model, [*targets, *whole])
    return Trained(adapter, sum(copied.values()) + rows, fixed, depth)


def _depth(model: nn.Module, paths: list[str]) -> float:
    """The share of the layers from the first one on that any of `paths` is in or before."""
    numbers = {path: layer_number(path) for path, _ in model.named_modules()}
    layers = 1 + max((n for n in numbers.values() if n is not None), default=0)
    wanted = set(paths)
    seen, first = 0, layers  # the number of the layer that the walk, in the model's order, has come to
    for path, number in numbers.items():
        seen = seen if number is None else number + 1
        parts = path.split(".")
        if any(".".join(parts[:n]) in wanted for n in range(1, len(parts) + 1)):
            first = min(first, seen if number is None else number)
    return (layers - first) / layers


def _width(layer: Any) -> tuple[int, int]:
    """Inputs and outputs."""
    outputs, inputs = layer.weight.shape[::-1] if is_conv1d(layer) else layer.weight.shape
    if isinstance(layer, nn.Embedding):
        outputs, inputs = inputs, outputs
    return int(inputs), int(outputs)
