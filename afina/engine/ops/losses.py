"""Cross-entropy over the vocabulary, in chunks. N labelled positions, C channels, V tokens of the vocabulary."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.engine import blocks, kernels
from afina.engine.blocks import Blocks
from afina.engine.kernels import Kernels

CHUNK = 256  # labelled positions whose logits exist at one time
ROUND = 64  # rows of products are padded to a multiple of this: the matrix library keeps some MB for each new shape
_HEAD_ROWS = 4096  # of the output head, whose gradients are added at one time


def summed_cross_entropy(
    fused: Kernels | None, hidden_NC: Tensor, head_VC: Tensor | Blocks, labels_N: Tensor
) -> Tensor:
    """Σ −log p(label) with logits = hidden · headᵀ, in chunks: no (tokens × vocabulary) tensor ever exists.

    A head in blocks is dequantised tile by tile. The gradient of a frozen head's input, (softmax − onehot) · head, is
    formed in the forward pass, while the logits exist.
    """
    if isinstance(head_VC, Tensor) and not torch.is_grad_enabled():  # autograd functions do not see that
        head_VC = head_VC.detach()
    loss: Tensor = _CrossEntropy.apply(fused, hidden_NC, head_VC, labels_N)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Kernels | None, hidden: Tensor, head: Tensor | Blocks, labels: Tensor) -> Tensor:
        wanted, weighted = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        ctx.rows = len(labels)
        if fused is not None:
            kernels.expect(torch.int64, (labels, (len(hidden),)))
            kernels.expect_below(head.shape[0], labels)
        if missing := -ctx.rows % ROUND:  # rows of zeros, whose losses and gradients are dropped
            hidden, labels = F.pad(hidden, (0, 0, 0, missing)), F.pad(labels, (0, missing))
        dhidden = torch.empty_like(hidden) if wanted else None
        dhead = torch.zeros(head.shape, device=hidden.device) if weighted and isinstance(head, Tensor) else None
        losses = torch.empty(len(labels), device=hidden.device)
        for start in range(0, len(labels), CHUNK):
            chunk = slice(start, start + CHUNK)
            x = hidden[chunk]
            logits = blocks.product(x, head) if isinstance(head, Blocks) else F.linear(x, head)
            if fused is not None:
                logits = logits.contiguous()
                fused.call(
                    "cross_entropy", logits, labels[chunk], losses[chunk], len(logits), logits.shape[1],
                    int(wanted or weighted), torch.get_num_threads(),
                )  # fmt: skip
            else:
                log_p = logits.float().log_softmax(-1)
                losses[chunk] = F.nll_loss(log_p, labels[chunk], reduction="none")
                log_p.exp_()[torch.arange(len(logits), device=logits.device), labels[chunk]] -= 1
                logits = log_p.to(hidden.dtype)
            if dhidden is not None and isinstance(head, Blocks):
                dhidden[chunk] = blocks.product_back(logits, head)
            elif dhidden is not None and isinstance(head, Tensor):
                torch.mm(logits, head, out=dhidden[chunk])
            if dhead is not None:  # in slices: adding another dtype makes a copy of the summand in fp32
                for row in range(0, len(dhead), _HEAD_ROWS):
                    dhead[row : row + _HEAD_ROWS] += logits[:, row : row + _HEAD_ROWS].T @ x
        ctx.save_for_backward(None if dhidden is None else dhidden[: ctx.rows], dhead)
        return losses[: ctx.rows].sum()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        dhidden, dhead = ctx.saved_tensors
        # In place: a head's gradient is large.
        scaled = (None if d is None else d.mul_(dloss) for d in (dhidden, dhead))
        return None, *scaled, None
