"""Generation in batches: greedy or sampled. Texts that have ended leave the batch, and waiting ones enter it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afina.core.layers import evaluation_mode
from afina.models.encoders import ClassifierModel, Seq2SeqModel
from afina.models.load import Base
from afina.models.model import Answer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest; the other settings are as in `transformers`.

    `top_k` (0: all) and `top_p` keep the likeliest tokens (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751);
    `repetition_penalty` makes tokens that were there less likely (Keskar et al. 2019, https://arxiv.org/abs/1909.05858);
    an answer ends before any of the strings `stop`. The same `seed` gives the same answer, whatever else is in the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


GREEDY = Sampling()
BATCH = 32  # texts in the making at one time
WORTH_SHARING = 64  # tokens


class _Text:
    """One answer in the making."""

    def __init__(self, place: int, prompt: list[int], sampling: Sampling, device: torch.device) -> None:
        self.place, self.prompt, self.sampling = place, prompt, sampling
        self.ids: list[int] = []
        self.stopped = False
        self.generator = torch.Generator(device).manual_seed(sampling.seed) if sampling.temperature else None

    def choose(self, logits_V: Tensor) -> int:
        """The next token by the sampling settings."""
        how = self.sampling
        scores = logits_V.float()
        if how.repetition_penalty != 1.0:
            seen = torch.tensor(sorted({*self.prompt, *self.ids}), device=scores.device)
            old = scores[seen]
            scores = scores.index_put(
                (seen,), torch.where(old < 0, old * how.repetition_penalty, old / how.repetition_penalty)
            )
        if self.generator is None:
            return int(scores.argmax())
        ranked, order = (scores / how.temperature).sort(descending=True)
        p = ranked.softmax(0)
        dropped = p.cumsum(0) - p >= how.top_p  # the first token that reaches top_p is kept
        if how.top_k:
            dropped[how.top_k :] = True
        p[dropped] = 0.0
        return int(order[torch.multinomial(p, 1, generator=self.generator)])


@torch.inference_mode()
def generate(
    base: Base,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
    batch_size: int = BATCH,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """A continuation of each of the `prompts` (token ids), in their order; `sampling` for all of them or one each.

    A classifier names a class, and encoder-decoders write greedily, whatever `sampling` says. An answer ends at one of the base's stop tokens or stop strings, or after `max_new_tokens`.
    """
    if not prompts:
        return []
    if isinstance(base.model, ClassifierModel | Seq2SeqModel):
        return base.model.answers(base.tokenizer, prompts, max_new_tokens, on_progress)
    how = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    with evaluation_mode(base.model.module):
        return _written(base, prompts, max_new_tokens, how, batch_size, on_progress)


def _written(
    base: Base,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    how: Sequence[Sampling],
    batch_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[Answer]:
    device = next(base.model.module.parameters()).device
    texts = [_Text(i, prompt, how[i], device) for i, prompt in enumerate(prompts)]
    waiting = sorted(texts, key=lambda text: -len(text.prompt))
    answers: dict[int, Answer] = {}
    room = max(map(len, prompts)) + max_new_tokens
    prefix = _shared(prompts)
    while waiting:
        writing = base.model.start(min(batch_size, len(waiting)), room, prefix)
        active: list[_Text] = []
        logits_BV: Tensor | None = None
        while active or (waiting and (writing.can_enter or logits_BV is None)):
            free = batch_size - len(active)
            # Reading a prompt alone costs nearly what reading several does, so a quarter of the batch enters at one time.
            if waiting and (logits_BV is None or (writing.can_enter and free >= min(batch_size / 4, len(waiting)))):
                new = waiting[:free]
                del waiting[:free]
                read_BV = writing.enter([text.prompt for text in new])
                logits_BV = read_BV if logits_BV is None or not active else torch.cat([logits_BV, read_BV])
                active += new
            assert logits_BV is not None
            tokens = _choose(active, logits_BV)
            going = []
            for i, (text, token) in enumerate(zip(active, tokens, strict=True)):
                if _ends(base, text, token, max_new_tokens):
                    answers[text.place] = _answer(base, text)
                else:
                    going.append(i)
            if len(going) < len(active):
                writing.keep(going)
                active = [active[i] for i in going]
                if on_progress:
                    on_progress(len(answers), len(texts))
            if active:
                logits_BV = writing.step(torch.tensor([text.ids[-1] for text in active], device=device))
    return [answers[i] for i in range(len(texts))]


def _shared(prompts: Sequence[list[int]]) -> list[int]:
    """What all prompts begin with (a template, instructions), where reading it once saves more than a pass of its own costs."""
    low, high = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1  # each prompt keeps a token of its own
    n = next((i for i in range(most) if low[i] != high[i]), most)
    return low[:n] if n * (len(prompts) - 1) >= WORTH_SHARING else []


def _choose(active: list[_Text], logits_BV: Tensor) -> list[int]:
    if all(text.sampling.temperature == 0 and text.sampling.repetition_penalty == 1 for text in active):
        return logits_BV.float().argmax(-1).tolist()  # argmax over bf16 is five times slower
    return [text.choose(logits_V) for text, logits_V in zip(active, logits_BV, strict=True)]


def _ends(base: Base, text: _Text, token: int, max_new_tokens: int) -> bool:
    """Takes the token into the text; whether the text is complete."""
    if token in base.tokenizer.stop_ids:
        text.stopped = True
        return True
    text.ids.append(token)
    if text.sampling.stop:
        written = base.tokenizer.decode(text.ids)
        text.stopped = any(string in written for string in text.sampling.stop)
    return text.stopped or len(text.ids) >= max_new_tokens


def _answer(base: Base, text: _Text) -> Answer:
    written = base.tokenizer.decode(text.ids)
    for string in text.sampling.stop:
        written = written.split(string)[0]
    return Answer(written.strip(), len(text.ids), text.stopped)
