"""The settings of an adapter."""

import re
from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator, model_validator

from afina.core.config import Settings, build, changed, setting
from afina.core.errors import brief
from afina.core.limits import ALPHA, PATTERN_CHARACTERS
from afina.core.limits.yaml_text import parse_yaml
from afina.core.registry import OneOf
from afina.lora.inits import INITS
from afina.lora.variants import VARIANTS

ALL_LINEAR = "all-linear"
PRESETS = (ALL_LINEAR, "attention", "mlp")


def _names(value: Any) -> Any:
    """'q_proj,v_proj' → ('q_proj', 'v_proj'), as the command line gives it."""
    if isinstance(value, str) and value not in PRESETS and not value.startswith("re:"):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def _integers(value: Any) -> Any:
    """'0-3,8' → (0, 1, 2, 3, 8)."""
    if not isinstance(value, str):
        return (value,) if isinstance(value, int) else value
    numbers: list[int] = []
    for each in value.split(","):
        first, dash, last = each.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"{each.strip()!r} is neither a number nor a range such as 0-3")
        if dash and int(last) < int(first):
            raise ValueError(f"{each.strip()!r} runs backwards")
        numbers += range(int(first), int(last if dash else first) + 1)
    return tuple(numbers)


def _tokens(value: Any) -> Any:
    """As `_integers`, or '{embed_tokens: 5-9, lm_head: 5-9}'."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = parse_yaml(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a mapping such as {{embed_tokens: 5-9}}") from None
    if isinstance(value, dict):
        return {name: _integers(ids) for name, ids in value.items() if ids != []}
    return _integers(value)


Names = Annotated[str | tuple[str, ...], BeforeValidator(_names)]
Integers = Annotated[tuple[int, ...], BeforeValidator(_integers)]


def _check_pattern(pattern: str) -> None:
    if len(pattern) > PATTERN_CHARACTERS:
        raise ValueError(f"{pattern[:40]!r}… has more than {PATTERN_CHARACTERS:,} characters")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression ({brief(error)})") from None


class LoraConfig(Settings):
    """LoRA, y = W x + (alpha / rank) · B(A x) (Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3)."""

    rank: int = setting(16, ge=1)
    """Inner dimension of A and B: the adapter's size."""
    alpha: float = setting(32.0, gt=0, le=ALPHA)
    """The update is scaled by alpha / rank."""
    rslora: bool = False
    """Scale by alpha / √rank instead, which keeps large ranks learning (rsLoRA, Kalajdzievski 2023)."""
    dropout: float = setting(0.0, ge=0, lt=1)
    """Dropout probability of the adapter's inputs, in training."""
    variant: Annotated[str, OneOf(VARIANTS)] = "lora"
    """The form of the update (docs/methods.md has the formula of each)."""
    init: Annotated[str, OneOf(INITS)] = "kaiming"
    """How A and B are initialised (docs/methods.md has the formula of each)."""
    eva_rho: float = setting(1.0, ge=1)
    """With init eva: ranks up to this factor larger where the inputs need them, smaller elsewhere; the sum stays."""
    target_modules: Names = ALL_LINEAR
    """Layers to adapt: all-linear (all but the output head, experts' tensors too), attention, mlp, names or ends of
    paths, or re:PATTERN."""
    exclude_modules: Names = ()
    """Layers not to adapt, by names or ends of paths, or re:PATTERN."""
    layers: Integers = ()
    """Numbers of the layers to adapt, such as 0-3,8 (all where empty); a target given by its entire path, such as
    lm_head, is adapted as well."""
    layers_pattern: Names = ()
    """Names of the lists that `layers` counts in, such as h; by default the first number in a path counts."""
    rank_pattern: dict[str, int] = setting({})
    """Ranks for layers whose path ends with a pattern, such as {'layers.0.*q_proj': 32}."""
    alpha_pattern: dict[str, float] = setting({})
    """The same for alpha."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases to train as well: none, all, or those of adapted layers."""
    modules_to_save: Names = ()
    """Modules to train in full, as copies beside the base's (heads, norms), by names or ends of paths."""
    trainable_tokens: Annotated[tuple[int, ...] | dict[str, tuple[int, ...]], BeforeValidator(_tokens)] = ()
    """Ids of tokens whose embeddings are trained (and their rows of the output head where the two are tied), such as
    5-9; or by the names of layers, such as {embed_tokens: 5-9, lm_head: 5-9}."""

    def saving(self, heads: Sequence[str]) -> "LoraConfig":
        """The configuration that trains the modules at the paths `heads` in full, too."""
        named = (self.modules_to_save,) if isinstance(self.modules_to_save, str) else self.modules_to_save
        return changed(self, {"modules_to_save": tuple(dict.fromkeys([*named, *heads]))}) if heads else self

    def adapting(self, path: str) -> "LoraConfig":
        """The configuration that adapts the layer at `path`, too."""
        named = (self.target_modules,) if isinstance(self.target_modules, str) else self.target_modules
        return changed(self, {"target_modules": tuple(dict.fromkeys([*named, path]))})

    def scaling(self, rank: int, alpha: float) -> float:
        return alpha / (sqrt(rank) if self.rslora else rank)

    def saved(self) -> "LoraConfig":
        """The configuration of the adapter on disk: an init from the base doubles its ranks (see `LoraLinear`)."""
        if not INITS[self.init].from_base:
            return self
        factor = sqrt(2) if self.rslora else 2.0  # leaves the scaling as it is
        doubled = {
            "init": "kaiming",
            "rank": 2 * self.rank,
            "alpha": factor * self.alpha,
            "rank_pattern": {pattern: 2 * rank for pattern, rank in self.rank_pattern.items()},
            "alpha_pattern": {pattern: factor * alpha for pattern, alpha in self.alpha_pattern.items()},
        }
        return build(LoraConfig, self.model_dump() | doubled)

    @model_validator(mode="after")
    def _fits_together(self) -> "LoraConfig":
        if not (self.target_modules or self.modules_to_save or self.trainable_tokens or self.bias == "all"):
            raise ValueError("target_modules is empty: name at least one layer, all-linear, attention or mlp")
        if self.layers_pattern and not self.layers:
            raise ValueError("layers_pattern is read with layers only: give both")
        problems = [*VARIANTS[self.variant].refuses(self), *INITS[self.init].refuses(self), *self._unread()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _unread(self) -> Iterator[str]:
        """Settings that are changed though only another init reads them."""
        for init in INITS:
            for name in init.settings:
                if init.name != self.init and getattr(self, name) != type(self).model_fields[name].default:
                    yield f"{name} is read with init {init.name!r} only"

    @field_validator("target_modules", "exclude_modules", "modules_to_save")
    @classmethod
    def _readable(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (value,) if isinstance(value, str) else value:
            if name.startswith("re:"):
                _check_pattern(name.removeprefix("re:"))
        return value

    @field_validator("layers_pattern")
    @classmethod
    def _lists(cls, value: str | tuple[str, ...]) -> tuple[str, ...]:
        names = (value,) if isinstance(value, str) else value
        for name in names:
            _check_pattern(name)
        return names

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern in value:
            _check_pattern(pattern)
        if not all(0 < number <= ALPHA for number in value.values()):
            raise ValueError(f"ranks and alphas must be greater than 0, and at most {ALPHA:,.0f}")
        return value
