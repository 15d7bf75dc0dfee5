"""Greedy generation in batches; rows that have ended leave the batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from afina.base.load import Base


@dataclass(frozen=True)
class Answer:
    """What the model wrote: `text` without special tokens, `tokens` new ones, `stopped` by itself or cut at the limit."""

    text: str
    tokens: int
    stopped: bool


@torch.inference_mode()
def generate(
    base: Base,
    prompts: list[list[int]],
    max_new_tokens: int,
    batch_size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """The most likely continuation, token by token, of each of the `prompts` (token ids), in their order.

    An answer ends at one of the base's stop tokens, or after `max_new_tokens`. Prompts of similar length go together.
    """
    was_training = base.model.module.training
    base.model.module.eval()
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: list[Answer | None] = [None] * len(prompts)
    for at in range(0, len(order), batch_size):
        rows = order[at : at + batch_size]
        for row, (ids, stopped) in zip(rows, _batch(base, [prompts[i] for i in rows], max_new_tokens), strict=True):
            answers[row] = Answer(base.tokenizer.decode(ids).strip(), len(ids), stopped)
        if on_progress:
            on_progress(min(at + batch_size, len(order)), len(order))
    base.model.module.train(was_training)
    return [answer for answer in answers if answer is not None]


def _batch(base: Base, prompts: list[list[int]], max_new_tokens: int) -> list[tuple[list[int], bool]]:
    device = next(base.model.module.parameters()).device
    width = max(map(len, prompts))
    pad = base.tokenizer.pad_id
    ids_BT = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    stops = torch.tensor(sorted(base.tokenizer.stop_ids), device=device)
    written: list[list[int]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    active = torch.arange(len(prompts), device=device)
    logits_BV, state = base.model.start(ids_BT, mask_BT)
    for length in range(max_new_tokens):
        next_B = logits_BV.argmax(-1)
        ended_B = torch.isin(next_B, stops)
        for row, token, end in zip(active.tolist(), next_B.tolist(), ended_B.tolist(), strict=True):
            if end:
                stopped[row] = True
            else:
                written[row].append(token)
        going = (~ended_B).nonzero().squeeze(1)
        if not len(going) or length + 1 == max_new_tokens:
            break
        if len(going) < len(active):
            state.keep(going)
            active, next_B = active[going], next_B[going]
        logits_BV = state.step(next_B)
    return list(zip(written, stopped, strict=True))
