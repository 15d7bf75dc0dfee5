"""Answers to many prompts at one time, greedy or sampled."""

from collections.abc import Callable, Sequence

from afina.core.layers import evaluation_mode
from afina.models.batcher import MAX_BATCH_SIZE, Batcher
from afina.models.load import Base
from afina.models.model import Answer, Answerer
from afina.models.sampling import GREEDY, Sampling


def generate(
    base: Base,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
    batch_size: int = MAX_BATCH_SIZE,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """An answer to each of the `prompts` (token ids), in their order; `sampling` is one for all of them, or one each.

    A classifier names a class, and an encoder-decoder generates greedily, whatever `sampling` says. An answer ends at
    a stop token or stop string, or after `max_new_tokens`. `on_progress(done, total)` is called whenever answers are
    complete. Raises `NonFiniteLogits`.
    """
    if not prompts:
        return []
    if isinstance(base.model, Answerer):
        return base.model.answers(base.tokenizer, prompts, max_new_tokens, on_progress)
    how = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    with evaluation_mode(base.model.module):
        batcher = Batcher(base.model, base.tokenizer, batch_size)
        longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        requests = {i: batcher.submit(prompts[i], max_new_tokens, how[i]) for i in longest_first}
        done = 0
        while batcher.busy:
            finished = [request for request in batcher.step() if request.finish_reason is not None]
            if fault := next((request.fault for request in finished if request.fault), None):
                raise fault
            done += len(finished)
            if finished and on_progress:
                on_progress(done, len(prompts))
    return [batcher.answer(requests[i]) for i in range(len(prompts))]
