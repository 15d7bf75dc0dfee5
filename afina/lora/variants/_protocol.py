"""What a variant of LoRA says of itself, so that no other file needs to know it by name."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from afina.core.errors import AdapterError
from afina.lora.layer import LoraLayer, ParameterCount, Target

if TYPE_CHECKING:
    from afina.lora.config import LoraConfig

_KINDS = {"linear": "is a linear layer", "embedding": "is an embedding", "experts": "holds tensors of experts"}


class Variant(Protocol):
    """A way to update frozen weights. The defaults are those of A and B in PEFT's LoRA format.

    `layers`: its classes of layers, one per kind of target; other targets are refused. `peft_type`: PEFT's name for
    the format, or a name of its own where it is none of PEFT's. `summable`: an adapter on disk is A and B and
    nothing else, so that adapters can be combined and cut to a lower rank (`arithmetic`). `tuned`: `afina tune`
    tries it.
    """

    name: str
    layers: tuple[type[LoraLayer], ...]
    peft_type: str
    summable: bool = False
    tuned: bool = False

    def refuses(self, config: "LoraConfig") -> Iterator[str]:
        """What is wrong with the settings in `config` for this variant, whatever the model."""
        yield from ()

    def check(self, targets: Sequence[Target], config: "LoraConfig") -> None:
        """Raises `AdapterError` where a target is of a kind, or of a size, that cannot be adapted."""
        for target in targets:
            self._layer(target).check(target, config)

    def build(self, targets: Sequence[Target], generator: torch.Generator) -> list[LoraLayer]:
        """The layers that take the places of `targets`, in their order, drawn from `generator` in that order."""
        return [self._layer(target)(target, generator) for target in targets]

    def parameter_count(self, targets: Sequence[Target]) -> ParameterCount:
        """How many parameters the layers of `targets` add, with what they share.

        Raises `AdapterError` where a target is of a kind that cannot be adapted.
        """
        return ParameterCount.total(self._layer(target).parameter_count(target) for target in targets)

    def reads(self, raw: Mapping[str, Any]) -> bool:
        """Whether the adapter_config.json `raw` describes an adapter of this variant."""
        return raw.get("peft_type") == self.peft_type

    def from_peft(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of `LoraConfig` in `raw`, but for which modules are adapted and saved.

        Raises `KeyError` or `TypeError` where `raw` is incomplete.
        """
        return {
            "rank": raw["r"],
            "alpha": raw["lora_alpha"],
            "rslora": raw.get("use_rslora") or False,
            "dropout": raw.get("lora_dropout", 0.0),
            "rank_pattern": raw.get("rank_pattern") or {},
            "alpha_pattern": raw.get("alpha_pattern") or {},
            "trainable_tokens": _token_ids(raw.get("trainable_token_indices")),
        }

    def to_peft(self, config: "LoraConfig", common: dict[str, Any]) -> dict[str, Any]:
        """The adapter_config.json of an adapter; `common` are the keys that all of PEFT's formats have."""
        return common | {
            "peft_type": self.peft_type,
            "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
            "lora_dropout": config.dropout,
            "rank_pattern": config.rank_pattern,
            "alpha_pattern": config.alpha_pattern,
            "init_lora_weights": True,
            "use_rslora": config.rslora,
            "use_dora": False,
            "trainable_token_indices": _listed(config.trainable_tokens) or None,
        }

    def seed(self, raw: Mapping[str, Any]) -> int:
        """The seed that random numbers which are not saved were drawn from."""
        return 0

    def may_be_absent(self, name: str, raw: Mapping[str, Any]) -> bool:
        """Whether the file of weights beside `raw` need not hold the tensor `name`."""
        return False

    def _layer(self, target: Target) -> type[LoraLayer]:
        for layer in self.layers:
            if layer.kind == target.kind:
                return layer
        kinds = " and ".join(layer.kind for layer in self.layers)
        raise AdapterError(
            f"{self.name} is for {kinds} layers; {target.path} {_KINDS[target.kind]}",
            "leave it out (exclude_modules), or use variant lora",
        )


def _token_ids(value: Any) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """PEFT writes a list of token ids, or such lists by the names of layers."""
    if isinstance(value, dict):
        return {name: tuple(ids) for name, ids in value.items()}
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)


def _listed(tokens: tuple[int, ...] | dict[str, tuple[int, ...]]) -> list[int] | dict[str, list[int]]:
    return {name: list(ids) for name, ids in tokens.items()} if isinstance(tokens, dict) else list(tokens)
