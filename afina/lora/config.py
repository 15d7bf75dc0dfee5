"""What an adapter is made of."""

from typing import Annotated, Any

from pydantic import BeforeValidator, field_validator

from afina.core.config import Settings, setting

ALL_LINEAR = "all-linear"


def _names(value: Any) -> Any:
    """'q_proj,v_proj' → ('q_proj', 'v_proj'), as the command line gives it."""
    if isinstance(value, str) and value != ALL_LINEAR and not value.startswith("re:"):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


Names = Annotated[str | tuple[str, ...], BeforeValidator(_names)]


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

    @field_validator("target_modules")
    @classmethod
    def _some_target(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("name at least one layer, or all-linear")
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        if any(number <= 0 for number in value.values()):
            raise ValueError("ranks and alphas are greater than 0")
        return value
