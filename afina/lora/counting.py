"""How many parameters an adapter trains, without building it: for models of which only the shapes are known."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from afina.lora.config import LoraConfig
from afina.lora.inits import INITS
from afina.lora.targets import described, find_targets, layer_number, saved_modules
from afina.lora.variants import VARIANTS


@dataclass(frozen=True)
class Trained:
    """How many parameters get gradients: those of the `adapter` (with the frozen ranks of inits from the base), and
    `copies` of what is trained in full. `fixed` ones of the adapter get none (VeRA's shared A and B, LoRA-FA's A).
    `depth` is the share of the repeated layers that the backward pass goes through.
    """

    adapter: int
    copies: int
    fixed: int
    depth: float

    @property
    def numbers(self) -> int:
        return self.adapter + self.copies


def trained(model: nn.Module, config: LoraConfig) -> Trained:
    """What `inject` would train of `model`, which may be on the meta device.

    Raises `AdapterError` as `inject` does where a target matches nothing or cannot be adapted by the variant.
    """
    saved = saved_modules(model, config)
    paths = find_targets(model, config)
    targets = described(model, paths, config)
    # An init from the base adds as many frozen ranks again to linear layers.
    doubled = [target for target in targets if target.kind == "linear"] if INITS[config.init].from_base else []
    added = VARIANTS[config.variant].parameter_count([*targets, *doubled])
    copied = {id(p): p.numel() for path in saved for p in model.get_submodule(path).parameters()}
    ends = tuple(f"{path}.bias" for path in paths)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and (config.bias == "all" or (config.bias == "lora_only" and name in ends)):
            copied[id(parameter)] = parameter.numel()
    known: Any = model
    tokens = config.trainable_tokens
    count = sum(map(len, tokens.values())) if isinstance(tokens, dict) else len(tokens)
    embeddings = count * known.get_input_embeddings().weight.shape[1] if tokens else 0
    everywhere = config.bias == "all" or bool(tokens)
    depth = 1.0 if everywhere else _depth(model, [*paths, *saved])
    return Trained(added.trained, sum(copied.values()) + embeddings, added.fixed, depth)


def _depth(model: nn.Module, paths: list[str]) -> float:
    """The share of the layers from the first one on that any of `paths` is in or before."""
    numbers = {path: layer_number(path) for path, _ in model.named_modules()}
    layers = 1 + max((n for n in numbers.values() if n is not None), default=0)
    wanted = set(paths)
    seen, first = 0, layers  # the number of the layer that the walk, in the model's order, has come to
    for path, number in numbers.items():
        seen = seen if number is None else number + 1
        names = path.split(".")
        if any(".".join(names[:n]) in wanted for n in range(1, len(names) + 1)):
            first = min(first, seen if number is None else number)
    return (layers - first) / layers
