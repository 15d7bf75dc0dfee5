"""Cross-entropy over the vocabulary, in chunks. N labelled positions, C channels, V tokens of the vocabulary."""

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.core.device import rows_at_once

if TYPE_CHECKING:
    from afina.engine.ops.by_torch import Ops

CHUNK = 256  # labelled positions whose logits exist at one time, or more of them on a card (`chunk_rows`)
# The matrix library sets up each new shape (1.4 ms and 0.8 MB for a product of the starter): products have one of 8
# numbers of rows between a power of two and the next, and none below 16.
_SHAPES, _FEWEST = 8, 16
_HEAD_ROWS = 4096  # of the output head, whose gradients are added at one time


class QuantisedHead(Protocol):
    """An output head (V, C) in blocks (`blocks.Blocks`), which are dequantised tile by tile."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def product(self, x_NC: Tensor) -> Tensor:
        """x Wᵀ, (N, V)."""

    def product_back(self, dy_NV: Tensor) -> Tensor:
        """dy W, (N, C)."""


def padded(rows: int) -> int:
    """How many rows the products of a training pass have for so many tokens."""
    step = max(_FEWEST, (1 << (rows - 1).bit_length()) // 2 // _SHAPES)
    return -(-rows // step) * step


def chunk_rows(hidden_NC: Tensor, vocabulary: int) -> int:
    """Labelled positions whose logits exist at one time, of these hidden states. Every chunk reads the whole head."""
    return rows_at_once(hidden_NC.device, vocabulary * hidden_NC.element_size(), CHUNK)


def summed_cross_entropy(
    ops: "Ops", hidden_NC: Tensor, head_VC: Tensor | QuantisedHead, labels_N: Tensor, weights_N: Tensor | None = None
) -> Tensor:
    """Σ −log p(label), each times its weight where there are any, with logits = hidden · headᵀ, in chunks: no (tokens ×
    vocabulary) tensor ever exists.

    The gradient of a frozen head's input, (softmax − onehot) · head, is formed in the forward pass, while the logits
    exist.
    """
    if isinstance(head_VC, Tensor) and not torch.is_grad_enabled():  # autograd functions do not see that
        head_VC = head_VC.detach()
    loss: Tensor = _CrossEntropy.apply(ops, hidden_NC, head_VC, labels_N, weights_N)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def cross_entropies(ops: "Ops", hidden_NC: Tensor, head_VC: Tensor | QuantisedHead, labels_N: Tensor) -> Tensor:
    """−log p(label) of each (N), in nats, in fp32, without gradients; the logits of a chunk at a time."""
    losses_N = torch.empty(len(labels_N), device=hidden_NC.device)
    ops.check_labels(labels_N, len(hidden_NC), head_VC.shape[0])
    rows = chunk_rows(hidden_NC, head_VC.shape[0])
    memory = hidden_NC.new_empty(min(rows, len(labels_N)), head_VC.shape[0])  # fresh pages for each chunk take longer
    for start in range(0, len(labels_N), rows):
        chunk = slice(start, start + rows)
        logits = _logits(hidden_NC[chunk], head_VC, memory)
        ops.chunk_losses(logits, labels_N[chunk], losses_N[chunk], False)
    return losses_N


def _logits(hidden_NC: Tensor, head_VC: Tensor | QuantisedHead, memory: Tensor) -> Tensor:
    """Of a chunk, in `memory` where that can be."""
    if isinstance(head_VC, Tensor):
        return torch.mm(hidden_NC, head_VC.T, out=memory[: len(hidden_NC)])
    return head_VC.product(hidden_NC)


def chunk_losses_by_torch(logits_NV: Tensor, labels_N: Tensor, losses_N: Tensor, gradient: bool) -> Tensor:
    """`Ops.chunk_losses` in torch on any device."""
    log_p = logits_NV.float().log_softmax(-1)
    losses_N.copy_(F.nll_loss(log_p, labels_N, reduction="none"))
    if gradient:
        log_p.exp_()[torch.arange(len(log_p), device=log_p.device), labels_N] -= 1
    return log_p.to(logits_NV.dtype)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ops: "Ops", hidden: Tensor, head: Tensor | QuantisedHead, labels: Tensor, weights: Tensor | None
    ) -> Tensor:
        wanted, weighted = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        ctx.rows = len(labels)
        ops.check_labels(labels, len(hidden), head.shape[0])
        if missing := padded(ctx.rows) - ctx.rows:  # rows of zeros, whose losses and gradients are dropped
            hidden, labels = F.pad(hidden, (0, 0, 0, missing)), F.pad(labels, (0, missing))
        dhidden = torch.empty_like(hidden) if wanted else None
        dhead = torch.zeros(head.shape, device=hidden.device) if weighted and isinstance(head, Tensor) else None
        losses = torch.empty(len(labels), device=hidden.device)
        rows = chunk_rows(hidden, head.shape[0])
        memory = hidden.new_empty(min(rows, len(labels)), head.shape[0])
        for start in range(0, len(labels), rows):
            chunk = slice(start, start + rows)
            x = hidden[chunk]
            logits = ops.chunk_losses(_logits(x, head, memory), labels[chunk], losses[chunk], wanted or weighted)
            if dhidden is not None:
                if isinstance(head, Tensor):
                    torch.mm(logits, head, out=dhidden[chunk])
                else:
                    dhidden[chunk] = head.product_back(logits)
            if dhead is not None:  # in slices: adding another dtype makes a copy of the summand in fp32
                if weights is not None:
                    own = weights[chunk]
                    x = F.pad(own, (0, len(x) - len(own)))[:, None].to(x.dtype) * x
                for row in range(0, len(dhead), _HEAD_ROWS):
                    dhead[row : row + _HEAD_ROWS] += logits[:, row : row + _HEAD_ROWS].T @ x
        if dhidden is not None:
            dhidden = dhidden[: ctx.rows]
            if weights is not None:
                dhidden *= weights[:, None]
        ctx.save_for_backward(dhidden, dhead)
        return losses[: ctx.rows].sum() if weights is None else losses[: ctx.rows] @ weights

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        dhidden, dhead = ctx.saved_tensors
        # In place: a head's gradient is large.
        scaled = (None if d is None else d.mul_(dloss) for d in (dhidden, dhead))
        return None, *scaled, None, None
