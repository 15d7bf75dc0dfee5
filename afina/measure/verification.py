"""Whether what is on disk is what was trained, or made."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afina.core.errors import VerificationFailed
from afina.core.layers import evaluation_mode
from afina.data.batch import pack
from afina.data.template import Row
from afina.lora.injection import disabled
from afina.models.load import Base
from afina.models.model import IGNORE_INDEX

REFERENCE_ROWS, REFERENCE_TOKENS = 4, 128  # at most so many rows and labels, each with logits of the whole vocabulary
# Relative to the largest logit: the same sums in the same order, so only a different path may round differently.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Verification:
    """Largest differences of logits: the reloaded adapter from training, and from the base without it."""

    from_training: float
    from_base: float


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """The largest difference of two tensors of logits, over the largest of `expected`; NaN where either holds one."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def reference_logits(base: Base, rows: Sequence[Row]) -> Tensor:
    """Logits of the model as it is now at the labelled positions of the first few of `rows`, in fp32. Their order
    follows what the rows share, where the base shares."""
    module = base.model.module
    with evaluation_mode(module):
        on = next(module.parameters()).device
        logits = base.model.label_logits(pack(_first(rows), on, base.model.shares, base.facts.vocabulary))
    return logits.float().cpu()


def _first(rows: Sequence[Row]) -> list[Row]:
    """The first few rows; the last of them ends with the last label that is compared."""
    first: list[Row] = []
    left = REFERENCE_TOKENS
    for row in rows[:REFERENCE_ROWS]:
        labelled = [i for i, label in enumerate(row.labels) if label != IGNORE_INDEX][:left]
        if not labelled:
            break
        end = labelled[-1] + 1 if len(labelled) < row.labelled else len(row.labels)
        first.append(Row(row.input_ids[:end], row.labels[:end], row.location))
        left -= len(labelled)
    return first


def verify(reloaded: Base, rows: Sequence[Row], trained: Tensor) -> Verification:
    """Compares a fresh base that has read the adapter from disk with the trained model, and with itself without it.

    `trained` are the `reference_logits` after training, of a base that shares as this one does. Raises
    `VerificationFailed` where they differ, or where the adapter changes nothing.
    """
    again = reference_logits(reloaded, rows)
    with disabled(reloaded.model.module):
        plain = reference_logits(reloaded, rows)
    result = Verification((again - trained).abs().max().item(), (again - plain).abs().max().item())
    allowed = TOLERANCE[reloaded.dtype] * trained.abs().max().item()
    if not result.from_training <= allowed:
        raise VerificationFailed(
            f"the saved adapter does not give the trained model's logits: they differ by {result.from_training:.2g}, "
            f"allowed is {allowed:.2g}",
            "do not use this adapter; please report it with the run's config.yaml",
        )
    if result.from_base == 0:
        raise VerificationFailed(
            "the adapter changes nothing: its logits equal the base's",
            "train longer or with a higher --train.learning_rate",
        )
    return result
