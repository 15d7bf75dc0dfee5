"""The optimiser over whatever is trainable: masters, parameter groups, clipping, and its state for checkpoints."""

from typing import Any

import torch
from torch import Tensor, nn

from afina.core.device import overlaps
from afina.core.errors import AdapterError
from afina.lora.injection import factor_pairs, fast_parameters, undecayed_parameters
from afina.training.loss_scale import LossScale
from afina.training.optimizers import OPTIMIZERS
from afina.training.settings import TrainingSettings


def check_factors(module: nn.Module, settings: TrainingSettings) -> None:
    """Raises `AdapterError` where the settings treat factors of updates in their own way, and none are trained."""
    default = TrainingSettings()
    if settings.optimizer != default.optimizer and not factor_pairs(module):
        raise AdapterError(
            f"--train.optimizer {settings.optimizer} treats A and B of an update together, and nothing is trained here "
            "that has both in full",
            f"leave it out, for {default.optimizer}; it is for --method lora without an --lora.init or --lora.variant "
            "that freezes parts of A or B",
        )
    if settings.lora_plus_ratio != default.lora_plus_ratio and not fast_parameters(module):
        raise AdapterError(
            f"--train.lora_plus_ratio {settings.lora_plus_ratio:g} is the learning rate of B over that of A, and "
            "nothing is trained here that has a B",
            "leave it out",
        )


class Optimizer:
    """Keeps fp32 masters of parameters that are stored in less, whose small updates would be rounded away.

    Weight decay is for weights trained in full, not for adapters. `lora_plus` is the learning rate of every B over that
    of the rest (LoRA+, Hayou et al. 2024, https://arxiv.org/abs/2402.12354, section 4). `kind` names one of
    `OPTIMIZERS`. With a `scale` the gradients are those of the loss times its factor.
    """

    def __init__(
        self, module: nn.Module, weight_decay: float, lora_plus: float = 1.0, kind: str = "adamw",
        scale: LossScale | None = None,
    ) -> None:  # fmt: skip
        spec = OPTIMIZERS[kind]
        self._own = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._masters = {
            name: p if p.dtype == torch.float32 or not spec.master_bytes else p.detach().float().requires_grad_()
            for name, p in self._own.items()
        }
        undecayed, fast = ({id(p) for p in find(module)} for find in (undecayed_parameters, fast_parameters))
        groups: dict[tuple[float, float], list[Tensor]] = {}  # (decay, share of the learning rate) → parameters
        for name, master in self._masters.items():
            key = id(self._own[name])
            group = (0.0 if key in undecayed else weight_decay, lora_plus if key in fast else 1.0)
            groups.setdefault(group, []).append(master)
        self._shares = [share for _, share in groups]
        master_of = {id(own): self._masters[name] for name, own in self._own.items()}
        factors = [(master_of[id(a)], master_of[id(b)]) for a, b in factor_pairs(module)]
        self._inner: Any = spec.build(
            [{"params": masters, "weight_decay": decay} for (decay, _), masters in groups.items()], factors
        )
        self._scale = scale

    def step(self, learning_rate: float, max_norm: float) -> Tensor:
        """Takes a step along the gradients, scaled down to `max_norm`, and drops them; their norm before that (a
        scalar on their device).

        Where that is not finite nothing is changed. A card decides that by itself if the optimiser has a step for it,
        as all of ours have; else it is waited for.
        """
        for name, parameter in self._own.items():
            master = self._masters[name]
            if master is not parameter and parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.float(), None
        if self._scale is not None:
            gradients = [master.grad for master in self._masters.values() if master.grad is not None]
            if gradients:
                torch._foreach_mul_(gradients, 1 / self._scale.factor)
        norm = torch.nn.utils.clip_grad_norm_(self._masters.values(), max_norm)
        overflowed = (~norm.isfinite()).float()
        for group, share in zip(self._inner.param_groups, self._shares, strict=True):
            group["lr"] = learning_rate * share
        if overlaps(norm.device) and getattr(self._inner, "_step_supports_amp_scaling", False):
            self._inner.found_inf = overflowed
            self._inner.step()
        elif not overflowed:
            self._inner.step()
        if self._scale is not None:
            self._scale.update(overflowed)
        self._inner.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in self._own.items():
                if self._masters[name] is not parameter:
                    parameter.copy_(self._masters[name])
        return norm

    def weights(self) -> dict[str, Tensor]:
        """The trained parameters as they are now, in fp32, by name; later steps change them."""
        return {name: master.detach() for name, master in self._masters.items()}

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._own.items():
            self._masters[name].copy_(weights[name])
            if self._masters[name] is not parameter:
                parameter.copy_(weights[name])

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's state, by the parameter's name and its own; empty before the first step."""
        return {
            f"{name} {key}": value
            for name, master in self._masters.items()
            for key, value in self._inner.state.get(master, {}).items()
            if value is not None
        }

    def set_moments(self, moments: dict[str, Tensor]) -> None:
        for key, value in moments.items():
            name, _, kind = key.rpartition(" ")
            master = self._masters[name]
            self._inner.state[master][kind] = value.clone().to(master.device)
