"""LoRA-GA: the first step goes where full fine-tuning's would (Wang et al. 2024, https://arxiv.org/abs/2407.05000, equation 11).

    dL/dW = U S Vᵀ,   A = c · the first `rank` rows of Vᵀ,   B = c · columns rank + 1 to 2·rank of U,   c = out^¼ / √γ,  γ = 16

The update that A and B begin with is taken away from the product, so that training begins at the base.
"""

from collections.abc import Callable

from afina.core.layers import Quantised
from afina.lora.inits.factors import largest
from afina.lora.layer import LoraLinear

GAMMA = 16.0


def start(layers: list[LoraLinear], calibrate: Callable[[], None]) -> None:
    """Takes the gradients of the frozen weights by `calibrate` (forward and backward over a few batches), and sets A and B.

    Weights of few bits have no gradients: for that time their numbers are in memory.
    """
    quantised = {layer: layer.base for layer in layers if isinstance(layer.base, Quantised)}
    for layer, base in quantised.items():
        layer.base = base.dequantised()
    weights = [layer.base.weight for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        layer.enabled = False
        weight.requires_grad_(True)
    try:
        calibrate()
        for layer, weight in zip(layers, weights, strict=True):
            gradient = weight.grad.float()
            u, _, vt = largest(gradient.T if layer.transposed else gradient, 2 * layer.rank)
            r = len(vt) // 2
            c = len(u) ** 0.25 / GAMMA**0.5
            layer.start(c * vt[:r], c * u[:, r : 2 * r], from_base=True)
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.enabled = True
            weight.requires_grad_(False)
            weight.grad = None
        for layer, base in quantised.items():
            layer.base = base
