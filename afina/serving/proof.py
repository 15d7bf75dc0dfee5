"""Whether what was written is what was made: logits of the model in memory, and of one read from the files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from afina.core.errors import VerificationFailed
from afina.core.files import read_jsonl
from afina.engine.ops import Segments
from afina.measure.verification import relative_difference
from afina.models.load import Base
from afina.models.model import IGNORE_INDEX, Packed, unshared

_PROMPTS = 8  # that are compared
_TOKENS = 128  # of each, and of the vocabulary
_EQUAL = 1e-4  # of the largest logit: what equal sums on another path may change, in fp32


def sample(base: Base, predictions: Path | None = None) -> list[Packed]:
    """The beginnings of some prompts in the file `predictions` (a greeting, where there is none), and tokens from all
    over the vocabulary."""
    known = read_jsonl(predictions)[:_PROMPTS] if predictions and predictions.exists() else []
    texts = [row["prompt"] for row in known] or ["Hello."]
    tokenizer, longest = base.tokenizer, min(_TOKENS, base.facts.context_length)
    encode = tokenizer.encode if base.task.continues_text else tokenizer.encode_input
    rows = [*map(encode, texts), spread(base, longest)]
    device = next(base.model.module.parameters()).device
    found = []
    for row in [row for row in rows if len(row) > 1]:  # an encoder-decoder needs something to read, and an answer
        ids = torch.tensor(row[:longest], device=device)
        labels = ids.clone()
        if not base.task.continues_text:  # the last token stands for the answer
            labels[:-1] = IGNORE_INDEX
        found.append(unshared(ids, labels, Segments((0, len(ids)))))
    return found


def spread(base: Base, most: int) -> list[int]:
    """At most so many tokens from all over the vocabulary, none of them special."""
    last = min(len(base.tokenizer.inner), base.facts.vocabulary) - 1
    special = set(base.tokenizer.inner.all_special_ids)
    tokens = torch.linspace(0, last, min(most, last + 1)).long().tolist()
    return [token for token in tokens if token not in special]


@torch.no_grad()
def logits(base: Base, rows: Sequence[Packed]) -> Tensor:
    """Of all rows, (N, vocabulary), in fp32."""
    return torch.cat([base.model.label_logits(row).float().cpu() for row in rows])


def check_same(expected: Tensor, found: Tensor, what: str, allowed: float = _EQUAL) -> None:
    """Raises `VerificationFailed` where the logits differ by more than `allowed`, or are not finite."""
    difference = relative_difference(expected, found)
    if not difference <= allowed:
        raise VerificationFailed(
            f"{what}: the logits differ by {difference:.2g} of the largest, allowed is {allowed:g}",
            "nothing was written; please report it, with the adapter's adapter_config.json and the base's config.json",
        )
