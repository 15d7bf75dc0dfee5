"""What training a model will need, before it is begun."""

import psutil
import torch

from afina.base.decoder import Decoder
from afina.base.load import Base

_UNFUSED = 3  # the transformers path keeps about this many times as much (float norms, gates, scores)


def activation_bytes(base: Base) -> int:
    """Bytes a token that the backward pass of a whole model needs kept, without recomputation.

    Of each layer: the residual stream before each norm and what the norm gives, queries, keys and values, the attention's
    output and its log-sums, the MLP's inner values before and after the activation.
    """
    module = base.model.module
    size = torch.finfo(base.dtype).bits // 8
    if isinstance(module, Decoder):
        arch = module.arch
        inner = arch.inner * (3 if arch.gated else 2)
        return sum(
            size * (4 * arch.hidden + spec.qk_size + spec.kv_heads * spec.width + spec.q_size + inner) + 4 * spec.heads
            for spec in arch.specs
        )
    facts, config = base.facts, base.model.module.config
    inner = getattr(config, "intermediate_size", None) or 4 * facts.hidden_size
    return _UNFUSED * size * facts.layers * (8 * facts.hidden_size + 3 * inner)


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
