"""Cross-entropy on labelled positions only."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from afina.base.load import Base
from afina.data.batch import Batch, by_length, collate
from afina.data.template import IGNORED, Row


def summed_loss(base: Base, batch: Batch) -> Tensor:
    """The sum over the batch's labelled tokens of −log p(token), in nats, in fp32. Divide by a count of tokens yourself:

    over several passes of one step it must be the count of them all, or short passes would weigh more.
    """
    labelled_BT = batch.labels_BT != IGNORED
    logits_NV = base.model.label_logits(batch.ids_BT, batch.mask_BT, labelled_BT)
    return F.cross_entropy(logits_NV.float(), batch.labels_BT[labelled_BT], reduction="sum")


@torch.no_grad()
def mean_loss(base: Base, rows: Sequence[Row], batch_size: int = 16) -> float:
    """The loss a labelled token over all `rows`, in nats; its exponential is the perplexity."""
    module = base.model.module
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    total, tokens = 0.0, 0
    for group in by_length(rows, batch_size):
        batch = collate(group, base.tokenizer.pad_id, device)
        total += summed_loss(base, batch).item()
        tokens += batch.labelled
    module.train(was_training)
    return total / tokens
