"""What an adapter is made of."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, field_validator

from afina.core.config import Settings, setting

ALL_LINEAR = "all-linear"


def _names(value: Any) -> Any:
    """'q_proj,v_proj' → ('q_proj', 'v_proj'), as the command line gives it."""
    if isinstance(value, str) and value != ALL_LINEAR and not value.startswith("re:"):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


Names = Annotated[str | tuple[str, ...], BeforeValidator(_names)]


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
    dropout: float = setting(0.0, ge=0, lt=1)
    """Part of the adapter's inputs that is zeroed in training."""
    target_modules: Names = ALL_LINEAR
    """Layers to adapt: all-linear (all but the output head), names or ends of paths with commas, or re:PATTERN."""
    exclude_modules: Names = ()
    """Names or ends of paths (or re:PATTERN) that are left alone."""
    rank_pattern: dict[str, int] = setting({})
    """Ranks for layers whose path ends with a pattern, such as {'layers.0.*q_proj': 32}."""
    alpha_pattern: dict[str, float] = setting({})
    """The same for alpha."""

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _readable(cls, value: str | tuple[str, ...], info: ValidationInfo) -> str | tuple[str, ...]:
        if not value and info.field_name == "target_modules":
            raise ValueError("name at least one layer, or all-linear")
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
