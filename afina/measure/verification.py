"""Whether the adapter on disk is the adapter that was trained."""

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
from afina.models.model import IGNORED

PROBE_ROWS, PROBE_TOKENS = (
    4,
    128,
)  # at most so many labelled positions, of each of which the logits of all words are kept
# Relative to the largest logit: the same sums in the same order, so only a different path may round differently.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Verification:
    """Largest differences of logits: the reloaded adapter from training, and from the base without it."""

    from_training: float
    from_base: float


@torch.no_grad()
def probe(base: Base, rows: Sequence[Row]) -> Tensor:
    """Logits of the model as it is now at the labelled positions of the first few of `rows`, in fp32."""
    module = base.model.module
    with evaluation_mode(module):
        logits = base.model.label_logits(pack(_first(rows), next(module.parameters()).device))
    return logits.float().cpu()


def _first(rows: Sequence[Row]) -> list[Row]:
    """The first few rows; the last of them ends with the last label that is looked at."""
    found: list[Row] = []
    left = PROBE_TOKENS
    for row in rows[:PROBE_ROWS]:
        labelled = [i for i, label in enumerate(row.labels) if label != IGNORED][:left]
        if not labelled:
            break
        end = labelled[-1] + 1 if len(labelled) < row.labelled else len(row.labels)
        found.append(Row(row.input_ids[:end], row.labels[:end], row.location))
        left -= len(labelled)
    return found


def verify(reloaded: Base, rows: Sequence[Row], trained: Tensor) -> Verification:
    """Compares a fresh base with the adapter read from disk against the `trained` probe, and against itself without.

    Raises `VerificationFailed` where the first differs or the second does not.
    """
    again = probe(reloaded, rows)
    with disabled(reloaded.model.module):
        plain = probe(reloaded, rows)
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
            "the adapter changes nothing: its logits are the base's",
            "train longer or with a higher --train.learning_rate",
        )
    return result
