"""RMSNorm. T tokens, C channels."""

import torch
from torch import Tensor


def rms_norm_by_torch(x_TC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """`Ops.rms_norm` over the last dimension, in torch on any device."""
    x32 = x_TC.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight_C.float()).to(x_TC.dtype)
