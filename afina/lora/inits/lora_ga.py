"""LoRA-GA: the first step goes where full fine-tuning's would (Wang et al. 2024, https://arxiv.org/abs/2407.05000,
equation 11).

    dL/dW = U S Vᵀ,   A = c · the first `rank` rows of Vᵀ,   B = c · columns rank + 1 to 2·rank of U,
    c = out^¼ / √γ,   γ = 16

The initial update is subtracted in the product, so that training begins at the base.
"""

from typing import TYPE_CHECKING

from afina.core.errors import AdapterError
from afina.core.layers import Quantised
from afina.lora.inits import Init, Needs, Sources
from afina.lora.inits._decompositions import largest_components

if TYPE_CHECKING:
    from afina.lora.layer import Size
    from afina.lora.variants.lora import LoraLinear

GAMMA = 16.0


class _LoraGA(Init):
    """Quantised weights have no gradients: during calibration they are held in memory dequantised."""

    name = "lora_ga"
    needs: Needs = "backward"
    from_base = True

    def largest_rank(self, size: "Size") -> int:
        return min(size.outputs, size.inputs) // 2  # singular directions for A, and as many others for B

    def initialise(self, layers: "dict[str, LoraLinear]", sources: Sources) -> None:
        assert sources.calibrate is not None
        quantised = {layer: layer.base for layer in layers.values() if isinstance(layer.base, Quantised)}
        for layer, base in quantised.items():
            layer.base = base.dequantised()
        weights = {path: layer.base.weight for path, layer in layers.items()}
        for path, layer in layers.items():
            layer.enabled = False
            weights[path].requires_grad_(True)
        try:
            sources.calibrate()
            for path, layer in layers.items():
                if weights[path].grad is None:
                    raise AdapterError(
                        f"init 'lora_ga': no gradient reaches {path}", "leave it out, or use another init"
                    )
                gradient = weights[path].grad.float()
                u, _, vt = largest_components(gradient.T if layer.transposed else gradient, 2 * layer.rank)
                rank = len(vt) // 2
                c = len(u) ** 0.25 / GAMMA**0.5
                layer.set_factors(c * vt[:rank], c * u[:, rank : 2 * rank], from_base=True)
        finally:
            for path, layer in layers.items():
                layer.enabled = True
                weights[path].requires_grad_(False)
                weights[path].grad = None
            for layer, base in quantised.items():
                layer.base = base


INIT = _LoraGA()
