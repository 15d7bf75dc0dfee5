"""What an adapter is made of."""

import re
from collections.abc import Sequence
from math import sqrt
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator, model_validator

from afina.core.config import Settings, setting

ALL_LINEAR = "all-linear"
PRESETS = (ALL_LINEAR, "attention", "mlp")
FROM_BASE = ("pissa", "olora", "lora_ga")  # starts that are a part of the base, or subtracted from it


def _names(value: Any) -> Any:
    """'q_proj,v_proj' → ('q_proj', 'v_proj'), as the command line gives it."""
    if isinstance(value, str) and value not in PRESETS and not value.startswith("re:"):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def _numbers(value: Any) -> Any:
    """'0-3,8' → (0, 1, 2, 3, 8)."""
    if not isinstance(value, str):
        return (value,) if isinstance(value, int) else value
    found: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"{part.strip()!r} is no number or range such as 0-3")
        if dash and int(last) < int(first):
            raise ValueError(f"{part.strip()!r} runs backwards")
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


Names = Annotated[str | tuple[str, ...], BeforeValidator(_names)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(_numbers)]
Start = Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "loftq", "eva", "lora_ga"]


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None


class LoraConfig(Settings):
    """LoRA, y = W x + (alpha / rank) · B(A x) (Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3)."""

    rank: int = setting(16, ge=1)
    """Inner dimension of A and B: the adapter's size."""
    alpha: float = setting(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    rslora: bool = False
    """Scale by alpha / √rank instead, which keeps large ranks learning (rsLoRA, Kalajdzievski 2023)."""
    dropout: float = setting(0.0, ge=0, lt=1)
    """Part of the adapter's inputs that is zeroed in training."""
    variant: Literal["lora", "dora", "vera", "lora_fa"] = "lora"
    """lora; dora (magnitude and direction); vera (two vectors, shared random A and B); lora_fa (A stays frozen)."""
    init: Start = "kaiming"
    """How A and B start: kaiming, gaussian, orthogonal, pissa, olora, loftq, eva or lora_ga (see docs/methods.md)."""
    eva_rho: float = setting(1.0, ge=1)
    """With eva: ranks up to this factor larger where the inputs need them, smaller elsewhere, as many in all."""
    target_modules: Names = ALL_LINEAR
    """Layers to adapt: all-linear (all but the output head, experts' tensors too), attention, mlp, names or ends of paths, or
    re:PATTERN."""
    exclude_modules: Names = ()
    """Names or ends of paths (or re:PATTERN) that are left alone."""
    layers: Numbers = ()
    """Numbers of the layers to adapt, such as 0-3,8 (all where empty)."""
    rank_pattern: dict[str, int] = setting({})
    """Ranks for layers whose path ends with a pattern, such as {'layers.0.*q_proj': 32}."""
    alpha_pattern: dict[str, float] = setting({})
    """The same for alpha."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases to train as well: none, all, or those of adapted layers."""
    modules_to_save: Names = ()
    """Modules to train whole, as copies beside the base's (heads, norms), by names or ends of paths."""
    trainable_tokens: Numbers = ()
    """Numbers (ids) of tokens whose rows of the embedding are trained (and of the output head where the two are tied)."""

    def saving(self, heads: Sequence[str]) -> "LoraConfig":
        """The configuration that trains the modules at the paths `heads` whole, too."""
        named = (self.modules_to_save,) if isinstance(self.modules_to_save, str) else self.modules_to_save
        return self.model_copy(update={"modules_to_save": tuple(dict.fromkeys([*named, *heads]))}) if heads else self

    def scaling(self, rank: int, alpha: float) -> float:
        return alpha / (sqrt(rank) if self.rslora else rank)

    def saved(self) -> "LoraConfig":
        """What the adapter is once saved. A start that is part of the base is subtracted by as many ranks again (see `LoraLinear`)."""
        if self.init not in FROM_BASE:
            return self
        grown = sqrt(2) if self.rslora else 2.0
        return self.model_copy(
            update={
                "init": "kaiming",
                "rank": 2 * self.rank,
                "alpha": grown * self.alpha,
                "rank_pattern": {pattern: 2 * rank for pattern, rank in self.rank_pattern.items()},
                "alpha_pattern": {pattern: grown * alpha for pattern, alpha in self.alpha_pattern.items()},
            }
        )

    @model_validator(mode="after")
    def _fits_together(self) -> "LoraConfig":
        if not (self.target_modules or self.modules_to_save or self.trainable_tokens or self.bias == "all"):
            raise ValueError("target_modules is empty: name at least one layer, all-linear, attention or mlp")
        if self.init != "kaiming" and self.variant == "vera":
            raise ValueError(f"init {self.init!r} is of no use to vera, whose A and B are random")
        if self.init in FROM_BASE and self.variant == "dora":
            raise ValueError(f"init {self.init!r} changes what dora takes the magnitude of; use kaiming")
        if self.rslora and self.variant == "vera":
            raise ValueError("vera has no scaling, so rslora would change nothing")
        if self.init == "orthogonal" and any(rank % 2 for rank in (self.rank, *self.rank_pattern.values())):
            raise ValueError("init 'orthogonal' needs even ranks")
        if self.eva_rho != 1 and self.init != "eva":
            raise ValueError("eva_rho is read with init 'eva' only")
        return self

    @field_validator("target_modules", "exclude_modules", "modules_to_save")
    @classmethod
    def _readable(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(value, str):
            _check_pattern(value.removeprefix("re:"))
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern in value:
            _check_pattern(pattern)
        if any(number <= 0 for number in value.values()):
            raise ValueError("ranks and alphas are greater than 0")
        return value
