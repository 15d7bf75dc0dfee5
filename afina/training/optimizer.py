"""AdamW over whatever is trainable (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101)."""

import torch
from torch import Tensor, nn


class Optimizer:
    """Keeps fp32 moments, and fp32 masters of parameters that are stored in less, whose small updates would be rounded away."""

    def __init__(self, module: nn.Module, weight_decay: float) -> None:
        self._own = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._masters = {
            name: p if p.dtype == torch.float32 else p.detach().float().requires_grad_()
            for name, p in self._own.items()
        }
        self._adam = torch.optim.AdamW(self._masters.values(), weight_decay=weight_decay, fused=True)

    def step(self, rate: float, max_norm: float) -> float:
        """Takes a step along the gradients, scaled down to `max_norm`, and drops them; their norm before scaling.

        Where that is not finite nothing is changed.
        """
        for name, parameter in self._own.items():
            master = self._masters[name]
            if master is not parameter and parameter.grad is not None:
                master.grad, parameter.grad = parameter.grad.float(), None
        norm = float(torch.nn.utils.clip_grad_norm_(self._masters.values(), max_norm, foreach=True))
        if norm - norm == 0:
            for group in self._adam.param_groups:
                group["lr"] = rate
            self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in self._own.items():
                if self._masters[name] is not parameter:
                    parameter.copy_(self._masters[name])
        return norm

    def weights(self) -> dict[str, Tensor]:
        """Copies of the trained parameters, in fp32, by name."""
        return {name: master.detach().clone() for name, master in self._masters.items()}

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self._own.items():
            self._masters[name].copy_(weights[name])
            if self._masters[name] is not parameter:
                parameter.copy_(weights[name])

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state, by the parameter's name and its own; empty before the first step."""
        return {
            f"{name} {key}": value
            for name, master in self._masters.items()
            for key, value in self._adam.state.get(master, {}).items()
        }

    def set_moments(self, moments: dict[str, Tensor]) -> None:
        for key, value in moments.items():
            name, _, kind = key.rpartition(" ")
            master = self._masters[name]
            self._adam.state[master][kind] = value.clone().to(master.device)
